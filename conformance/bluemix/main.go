// Makes every public call of bluemix-go's packages for identity and access once against a server:
// policies, authorizations, access groups, service IDs, API keys, roles and users.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	bluemix "github.com/IBM-Cloud/bluemix-go"
	"github.com/IBM-Cloud/bluemix-go/api/iam/iamv1"
	"github.com/IBM-Cloud/bluemix-go/api/iampap/iampapv1"
	"github.com/IBM-Cloud/bluemix-go/api/iampap/iampapv2"
	"github.com/IBM-Cloud/bluemix-go/api/iamuum/iamuumv1"
	"github.com/IBM-Cloud/bluemix-go/api/iamuum/iamuumv2"
	"github.com/IBM-Cloud/bluemix-go/api/usermanagement/usermanagementv2"
	"github.com/IBM-Cloud/bluemix-go/authentication"
	"github.com/IBM-Cloud/bluemix-go/crn"
	"github.com/IBM-Cloud/bluemix-go/helpers"
	"github.com/IBM-Cloud/bluemix-go/http"
	"github.com/IBM-Cloud/bluemix-go/models"
	"github.com/IBM-Cloud/bluemix-go/rest"
	"github.com/IBM-Cloud/bluemix-go/session"
)

func env(name string) string {
	value := os.Getenv(name)
	if value == "" {
		fmt.Fprintln(os.Stderr, name, "is not set")
		os.Exit(1)
	}
	return value
}

func need[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

// logIn makes a session of whoever has the API key.
func logIn(apiKey string) *session.Session {
	return need(session.New(&bluemix.Config{BluemixAPIKey: apiKey, MaxRetries: helpers.Int(0)}))
}

// role is what /v1/policies wants.
func role(name string) []iampapv1.Role {
	return []iampapv1.Role{{RoleID: "crn:v1:bluemix:public:iam::::serviceRole:" + name}}
}

// oldRole is what the older paths want.
func oldRole(name string) []models.PolicyRole {
	parsed := need(crn.Parse("crn:v1:bluemix:public:iam::::serviceRole:" + name))
	return []models.PolicyRole{{ID: parsed}}
}

var instance, account string

// world is what the calls are about.
type world struct {
	*report
	service models.ServiceID
	scope   string
}

func main() {
	url := env("CLAVIGER_URL")
	for _, name := range []string{"IBMCLOUD_IAM_API_ENDPOINT", "IBMCLOUD_IAMPAP_API_ENDPOINT", "IBMCLOUD_USER_MANAGEMENT_ENDPOINT"} {
		os.Setenv(name, url)
	}
	instance = env("CONFORMANCE_INSTANCE_ID")
	sess := logIn(env("CLAVIGER_API_KEY"))
	identity := need(iamv1.New(sess))

	w := &world{report: newReport()}
	w.call("Identity.UserInfo", func() error {
		info, err := identity.Identity().UserInfo()
		if err != nil {
			return err
		}
		account = info.Account.Bss
		return equal([]any{info.Active, len(account)}, []any{true, 32})
	})
	w.scope = "a/" + account
	w.tokens(url)
	w.serviceIDs(identity.ServiceIds())
	w.apiKeys(identity.APIKeys())
	policies := need(iampapv1.New(sess))
	w.policies(policies.V1Policy())
	w.authorizations(policies.AuthorizationPolicies())
	w.olderPolicies(policies.IAMPolicy(), identity.ServicePolicies(), identity.UserPolicies())
	w.roles(identity.ServiceRoles(), need(iampapv2.New(sess)).IAMRoles())
	w.groups(need(iamuumv2.New(sess)))
	w.olderGroups(need(iamuumv1.New(sess)))
	w.users(need(usermanagementv2.New(sess)).UserInvite())
	w.strangers()
	w.call("ServiceIds.Delete", func() error { return identity.ServiceIds().Delete(w.service.UUID) })

	var (
		ids    iamv1.ServiceIDRepository
		keys   iamv1.APIKeyRepository
		svc    iamv1.ServicePolicyRepository
		usr    iamv1.UserPolicyRepository
		rls    iamv1.ServiceRoleRepository
		v1     iampapv1.V1PolicyRepository
		auth   iampapv1.AuthorizationPolicyRepository
		old    iampapv1.IAMPolicy
		v2     iampapv2.RoleRepository
		groups iamuumv2.AccessGroupRepository
		member iamuumv2.AccessGroupMemberRepositoryV2
		rules  iamuumv2.DynamicRuleRepository
		group1 iamuumv1.AccessGroupRepository
		mem1   iamuumv1.AccessGroupMemberRepository
		users  usermanagementv2.Users
	)
	for part, of := range map[string]any{
		"ServiceIds": &ids, "APIKeys": &keys, "ServicePolicies": &svc, "UserPolicies": &usr,
		"ServiceRoles": &rls, "V1Policy": &v1, "AuthorizationPolicies": &auth, "IAMPolicy": &old,
		"IAMRoles": &v2, "AccessGroup": &groups, "AccessGroupMember": &member, "DynamicRule": &rules,
		"AccessGroupV1": &group1, "AccessGroupMemberV1": &mem1, "UserInvite": &users,
	} {
		w.missing(part, of)
	}
}

// tokens gets them in the ways that the client has.
func (w *world) tokens(url string) {
	config := &bluemix.Config{BluemixAPIKey: env("CLAVIGER_API_KEY"), TokenProviderEndpoint: &url}
	auth := need(authentication.NewIAMAuthRepository(config, &rest.Client{HTTPClient: http.NewHTTPClient(config)}))
	w.call("AuthenticateAPIKey", func() error { return auth.AuthenticateAPIKey(env("CLAVIGER_API_KEY")) })
	w.call("RefreshToken", func() error {
		before := config.IAMAccessToken
		after, err := auth.RefreshToken()
		if err == nil && (after == before || after == "") {
			err = errors.New("no new token")
		}
		return err
	})
	w.refused("AuthenticateAPIKey (unknown)", 400, "there is no such API key", func() error {
		return auth.AuthenticateAPIKey("unknown")
	})
	w.refused("AuthenticatePassword", 400, "people log in by API keys", func() error {
		return auth.AuthenticatePassword("name", "password")
	})
	w.refused("AuthenticateSSO", 400, "people log in by API keys", func() error {
		return auth.AuthenticateSSO("passcode")
	})
	w.leave("out of scope: there is no console to give a passcode to", "GetPasscode")
}

func (w *world) serviceIDs(ids iamv1.ServiceIDRepository) {
	bound := fmt.Sprintf("crn:v1:bluemix:public:iam-identity::a/%s::account:%s", account, account)
	w.call("ServiceIds.Create", func() (err error) {
		w.service, err = ids.Create(models.ServiceID{Name: "conformance", Description: "judges", BoundTo: bound})
		return err
	})
	w.call("ServiceIds.Get", func() error {
		got, err := ids.Get(w.service.UUID)
		if err != nil {
			return err
		}
		return equal(got, w.service)
	})
	w.call("ServiceIds.List", func() error {
		all, err := ids.List(bound)
		if err != nil {
			return err
		}
		return equal(slices.ContainsFunc(all, func(s models.ServiceID) bool { return s.IAMID == w.service.IAMID }), true)
	})
	w.call("ServiceIds.FindByName", func() error {
		found, err := ids.FindByName(bound, "conformance")
		if err != nil {
			return err
		}
		return equal(len(found) > 0, true)
	})
	w.refused("ServiceIds.Update (stale)", 409, "it was changed meanwhile", func() error {
		_, err := ids.Update(w.service.UUID, models.ServiceID{Name: "conformance"}, "1-stale")
		return err
	})
	w.call("ServiceIds.Update", func() error {
		changed, err := ids.Update(w.service.UUID, models.ServiceID{Name: "conformance", Description: "judges still"}, w.service.Version)
		if err != nil {
			return err
		}
		return equal([]any{changed.Description, changed.Version != w.service.Version}, []any{"judges still", true})
	})
}

func (w *world) apiKeys(keys iamv1.APIKeyRepository) {
	var key *models.APIKey
	w.call("APIKeys.Create", func() (err error) {
		key, err = keys.Create(models.APIKey{Name: "conformance", BoundTo: w.service.CRN})
		if err != nil {
			return err
		}
		return equal(key.APIKey != "", true)
	})
	if key == nil {
		key = &models.APIKey{}
	}
	w.call("APIKeys.Get", func() error {
		got, err := keys.Get(key.UUID)
		if err != nil {
			return err
		}
		return equal([]any{got.Name, got.BoundTo, got.APIKey}, []any{"conformance", w.service.CRN, ""})
	})
	w.call("APIKeys.List", func() error {
		all, err := keys.List(w.service.CRN)
		if err != nil {
			return err
		}
		return equal(len(all), 1)
	})
	w.call("APIKeys.FindByName", func() error {
		all, err := keys.FindByName("conformance", w.service.CRN)
		if err != nil {
			return err
		}
		return equal(len(all), 1)
	})
	w.refused("APIKeys.Update (stale)", 409, "it was changed meanwhile", func() error {
		_, err := keys.Update(key.UUID, "1-stale", models.APIKey{Name: "renamed"})
		return err
	})
	w.call("APIKeys.Update", func() error {
		changed, err := keys.Update(key.UUID, key.Version, models.APIKey{Name: "renamed"})
		if err != nil {
			return err
		}
		return equal(changed.Name, "renamed")
	})
	w.call("APIKeys.Delete", func() error { return keys.Delete(key.UUID) })
	w.refused("APIKeys.Get (deleted)", 404, "it is gone", func() error {
		_, err := keys.Get(key.UUID)
		return err
	})
}

func (w *world) policies(policies iampapv1.V1PolicyRepository) {
	subject, resource := iampapv1.Subject{}, iampapv1.Resource{}
	subject.SetIAMID(w.service.IAMID)
	resource.SetAccountID(account)
	resource.SetServiceName("kms")
	resource.SetServiceInstance(instance)
	wanted := iampapv1.Policy{
		Type: iampapv1.AccessPolicyType, Subjects: []iampapv1.Subject{subject},
		Roles: role("Reader"), Resources: []iampapv1.Resource{resource},
	}
	var made iampapv1.Policy
	w.call("V1Policy.Create", func() (err error) {
		made, err = policies.Create(wanted)
		if err != nil {
			return err
		}
		return equal([]any{made.ID != "", made.Version != ""}, []any{true, true})
	})
	w.refused("V1Policy.Create (again)", 409, "there is the same policy", func() error {
		_, err := policies.Create(wanted)
		return err
	})
	w.refused("V1Policy.Create (unknown attribute)", 400, "without it the policy would be wider", func() error {
		wider := wanted
		narrow := iampapv1.Resource{Attributes: slices.Clone(resource.Attributes)}
		narrow.SetRegion("eu-de")
		wider.Resources = []iampapv1.Resource{narrow}
		_, err := policies.Create(wider)
		return err
	})
	w.call("V1Policy.Get", func() error {
		got, err := policies.Get(made.ID)
		if err != nil {
			return err
		}
		return equal(got, made)
	})
	w.call("V1Policy.List", func() error {
		all, err := policies.List(iampapv1.SearchParams{AccountID: account, IAMID: w.service.IAMID, Type: "access"})
		if err != nil {
			return err
		}
		return equal([]any{len(all), all[0].ID}, []any{1, made.ID})
	})
	wanted.Roles = role("Writer")
	w.refused("V1Policy.Update (stale)", 412, "it was changed meanwhile", func() error {
		_, err := policies.Update(made.ID, wanted, "1-stale")
		return err
	})
	w.call("V1Policy.Update", func() error {
		changed, err := policies.Update(made.ID, wanted, made.Version)
		if err != nil {
			return err
		}
		return equal([]any{changed.Roles[0].Name, changed.Version != made.Version}, []any{"Writer", true})
	})
	w.call("V1Policy.Delete", func() error { return policies.Delete(made.ID) })
	w.refused("V1Policy.Get (deleted)", 404, "it is gone", func() error {
		_, err := policies.Get(made.ID)
		return err
	})
}

func (w *world) authorizations(all iampapv1.AuthorizationPolicyRepository) {
	wanted := iampapv1.AuthorizationPolicy{
		Type: iampapv1.AuthorizationPolicyType, Roles: oldRole("Reader"),
		Subjects:  []models.PolicyResource{{AccountID: account, ServiceName: "containers-kubernetes", ServiceInstance: "conformancecluster00"}},
		Resources: []models.PolicyResource{{AccountID: account, ServiceName: "kms", ServiceInstance: instance}},
	}
	var made iampapv1.AuthorizationPolicy
	w.call("AuthorizationPolicies.Create", func() (err error) {
		made, err = all.Create(account, wanted)
		if err != nil {
			return err
		}
		return equal([]any{made.Type, made.Version != ""}, []any{"authorization", true})
	})
	w.call("AuthorizationPolicies.Get", func() error {
		got, err := all.Get(account, made.ID)
		if err != nil {
			return err
		}
		return equal(got, made)
	})
	w.call("AuthorizationPolicies.List", func() error {
		listed, err := all.List(account, &iampapv1.AuthorizationPolicySearchQuery{Type: "authorization"})
		if err != nil {
			return err
		}
		return equal(slices.ContainsFunc(listed, func(p iampapv1.AuthorizationPolicy) bool { return p.ID == made.ID }), true)
	})
	w.call("AuthorizationPolicies.Update", func() error {
		narrower := wanted
		narrower.Resources = []models.PolicyResource{{
			ServiceName: "kms", ServiceInstance: instance, ResourceType: "keyRing", Resource: "default",
		}}
		changed, err := all.Update(account, made.ID, narrower, made.Version)
		if err != nil {
			return err
		}
		return equal(changed.Resources[0].ResourceType, "keyRing")
	})
	w.refused("AuthorizationPolicies.Create (Manager)", 400, "clusters only use keys", func() error {
		wider := wanted
		wider.Roles = oldRole("Manager")
		_, err := all.Create(account, wider)
		return err
	})
	w.call("AuthorizationPolicies.Delete", func() error { return all.Delete(account, made.ID) })
}

func (w *world) olderPolicies(old iampapv1.IAMPolicy, services iamv1.ServicePolicyRepository, users iamv1.UserPolicyRepository) {
	params := iampapv1.AccessPolicyRequest{
		Roles:     []iampapv1.Roles{{ID: "crn:v1:bluemix:public:iam::::serviceRole:Reader"}},
		Resources: []iampapv1.Resources{{ServiceName: "kms", ServiceInstance: instance}},
	}
	var made iampapv1.AccessPolicyResponse
	var tag string
	w.call("IAMPolicy.Create", func() (err error) {
		made, tag, err = old.Create(account, w.service.IAMID, params)
		return err
	})
	w.call("IAMPolicy.Get", func() error {
		got, err := old.Get(account, w.service.IAMID, made.ID)
		if err != nil {
			return err
		}
		return equal([]any{got.ID, got.Resources[0].ServiceInstance}, []any{made.ID, instance})
	})
	w.call("IAMPolicy.List", func() error {
		list, err := old.List(account, w.service.IAMID)
		if err != nil {
			return err
		}
		return equal(len(list.Policies), 1)
	})
	w.call("IAMPolicy.Update", func() error {
		params.Roles[0].ID = "crn:v1:bluemix:public:iam::::serviceRole:Writer"
		changed, _, err := old.Update(account, w.service.IAMID, made.ID, tag, params)
		if err != nil {
			return err
		}
		return equal(changed.Roles[0].DisplayName, "Writer")
	})
	w.call("IAMPolicy.Delete", func() error { return old.Delete(account, w.service.IAMID, made.ID) })

	policy := models.Policy{Roles: oldRole("Reader"), Resources: []models.PolicyResource{{ServiceName: "kms", ServiceInstance: instance}}}
	changed := models.Policy{Roles: oldRole("Manager"), Resources: policy.Resources}
	var one models.Policy
	w.call("ServicePolicies.Create", func() (err error) {
		one, err = services.Create(w.scope, w.service.IAMID, policy)
		return err
	})
	w.call("ServicePolicies.Get", func() error {
		got, err := services.Get(w.scope, w.service.IAMID, one.ID)
		if err != nil {
			return err
		}
		return equal(got.Version, one.Version)
	})
	w.call("ServicePolicies.List", func() error {
		list, err := services.List(w.scope, w.service.IAMID)
		if err != nil {
			return err
		}
		return equal(len(list), 1)
	})
	which := iamv1.ServicePolicyIdentifier{Scope: w.scope, IAMID: w.service.IAMID, PolicyID: one.ID}
	w.call("ServicePolicies.Update", func() error {
		which.PolicyID = one.ID
		got, err := services.Update(which, changed, one.Version)
		if err != nil {
			return err
		}
		return equal(got.Roles[0].DisplayName, "Manager")
	})
	w.call("ServicePolicies.Delete", func() error { return services.Delete(which) })

	w.call("UserPolicies.Create", func() (err error) {
		one, err = users.Create(w.scope, w.service.IAMID, policy)
		return err
	})
	w.call("UserPolicies.Get", func() error {
		got, err := users.Get(w.scope, w.service.IAMID, one.ID)
		if err != nil {
			return err
		}
		return equal(got.Roles[0].DisplayName, "Reader")
	})
	w.call("UserPolicies.List", func() error {
		list, err := users.List(w.scope, w.service.IAMID)
		if err != nil {
			return err
		}
		return equal(len(list), 1)
	})
	w.call("UserPolicies.List (nobody)", func() error {
		list, err := users.List(w.scope, "IBMid-NOBODY")
		if err != nil {
			return err
		}
		return equal(len(list), 0)
	})
	w.call("UserPolicies.Update", func() error {
		_, err := users.Update(w.scope, w.service.IAMID, one.ID, changed, one.Version)
		return err
	})
	w.call("UserPolicies.Delete", func() error { return users.Delete(w.scope, w.service.IAMID, one.ID) })
}

func (w *world) roles(older iamv1.ServiceRoleRepository, roles iampapv2.RoleRepository) {
	some := func(least int, list func() ([]models.PolicyRole, error)) func() error {
		return func() error {
			all, err := list()
			if err == nil && (len(all) < least || all[0].ID.Resource == "") {
				err = fmt.Errorf("%d roles: %v", len(all), all)
			}
			return err
		}
	}
	w.call("ServiceRoles.ListServiceRoles", some(10, func() ([]models.PolicyRole, error) { return older.ListServiceRoles("kms") }))
	w.call("ServiceRoles.ListSystemDefinedRoles", some(4, older.ListSystemDefinedRoles))
	w.call("ServiceRoles.ListServiceSpecificRoles", some(6, func() ([]models.PolicyRole, error) { return older.ListServiceSpecificRoles("kms") }))
	w.call("ServiceRoles.ListAuthorizationRoles", some(1, func() ([]models.PolicyRole, error) {
		return older.ListAuthorizationRoles("containers-kubernetes", "kms")
	}))
	newer := func(least int, list func() ([]iampapv2.Role, error)) func() error {
		return func() error {
			all, err := list()
			if err == nil && len(all) < least {
				err = fmt.Errorf("%d roles: %v", len(all), all)
			}
			return err
		}
	}
	w.call("IAMRoles.ListSystemDefinedRoles", newer(4, roles.ListSystemDefinedRoles))
	w.call("IAMRoles.ListServiceRoles", newer(6, func() ([]iampapv2.Role, error) { return roles.ListServiceRoles("kms") }))
	w.call("IAMRoles.ListCustomRoles", newer(0, func() ([]iampapv2.Role, error) { return roles.ListCustomRoles(account, "kms") }))
	w.call("IAMRoles.ListAll", newer(10, func() ([]iampapv2.Role, error) {
		return roles.ListAll(iampapv2.RoleQuery{AccountID: account, ServiceName: "kms"})
	}))
	w.leave("out of scope: there are no custom roles", "IAMRoles.Create", "IAMRoles.Get", "IAMRoles.Update", "IAMRoles.Delete")
}

func (w *world) groups(api iamuumv2.IAMUUMServiceAPIv2) {
	groups, members := api.AccessGroup(), api.AccessGroupMember()
	name := "conformance " + w.service.UUID
	var made models.AccessGroupV2
	w.call("AccessGroup.Create", func() error {
		group, err := groups.Create(models.AccessGroupV2{AccessGroup: models.AccessGroup{Name: name, Description: "judges"}}, account)
		if err != nil {
			return err
		}
		made = *group
		return equal(made.AccountID, account)
	})
	w.refused("AccessGroup.Create (again)", 409, "the name is taken", func() error {
		_, err := groups.Create(models.AccessGroupV2{AccessGroup: models.AccessGroup{Name: name}}, account)
		return err
	})
	var revision string
	w.call("AccessGroup.Get", func() error {
		got, tag, err := groups.Get(made.ID)
		if err != nil {
			return err
		}
		revision = tag
		return equal(*got, made)
	})
	w.call("AccessGroup.List", func() error {
		all, err := groups.List(account)
		if err != nil {
			return err
		}
		return equal(slices.Contains(all, made), true)
	})
	w.call("AccessGroup.FindByName", func() error {
		found, err := groups.FindByName(name, account)
		if err != nil {
			return err
		}
		return equal(len(found), 1)
	})
	w.refused("AccessGroup.Update (stale)", 409, "it was changed meanwhile", func() error {
		_, err := groups.Update(made.ID, iamuumv2.AccessGroupUpdateRequest{Description: "x"}, "1-stale")
		return err
	})
	w.call("AccessGroup.Update", func() error {
		changed, err := groups.Update(made.ID, iamuumv2.AccessGroupUpdateRequest{Description: "still"}, revision)
		if err != nil {
			return err
		}
		return equal(changed.Description, "still")
	})
	w.call("AccessGroupMember.Add", func() error {
		added, err := members.Add(made.ID, iamuumv2.AddGroupMemberRequestV2{Members: []models.AccessGroupMemberV2{
			{ID: w.service.IAMID, Type: iamuumv2.AccessGroupMemberService},
		}})
		if err != nil {
			return err
		}
		return equal(added.Members[0].StatusCode, 200)
	})
	w.call("AccessGroupMember.List", func() error {
		all, err := members.List(made.ID)
		if err != nil {
			return err
		}
		return equal([]any{len(all), all[0].ID}, []any{1, w.service.IAMID})
	})
	w.call("AccessGroup.List (of a member)", func() error {
		all, err := groups.List(account, w.service.IAMID)
		if err != nil {
			return err
		}
		return equal(len(all), 1)
	})
	w.refused("AccessGroup.Delete (with members)", 409, "its members would lose its roles", func() error {
		return groups.Delete(made.ID, false)
	})
	w.call("AccessGroupMember.Remove", func() error { return members.Remove(made.ID, w.service.IAMID) })
	w.call("AccessGroup.Delete", func() error { return groups.Delete(made.ID, true) })
	w.leave("out of scope: people come in by API keys, so there are no claims to make rules of",
		"DynamicRule.Create", "DynamicRule.List", "DynamicRule.Get", "DynamicRule.Replace", "DynamicRule.Delete")
}

func (w *world) olderGroups(api iamuumv1.IAMUUMServiceAPI) {
	groups, members := api.AccessGroup(), api.AccessGroupMember()
	name := "conformance older " + w.service.UUID
	var made models.AccessGroup
	w.call("AccessGroupV1.Create", func() error {
		group, err := groups.Create(models.AccessGroup{Name: name}, account)
		if err != nil {
			return err
		}
		made = *group
		return equal(made.Name, name)
	})
	var revision string
	w.call("AccessGroupV1.Get", func() (err error) {
		_, revision, err = groups.Get(made.ID)
		return err
	})
	w.call("AccessGroupV1.List", func() error {
		all, err := groups.List(account)
		if err != nil {
			return err
		}
		return equal(slices.Contains(all, made), true)
	})
	w.call("AccessGroupV1.FindByName", func() error {
		found, err := groups.FindByName(name, account)
		if err != nil {
			return err
		}
		return equal(len(found), 1)
	})
	w.call("AccessGroupV1.Update", func() error {
		changed, err := groups.Update(made.ID, iamuumv1.AccessGroupUpdateRequest{Description: "d"}, revision)
		if err != nil {
			return err
		}
		return equal(changed.Description, "d")
	})
	w.call("AccessGroupMemberV1.Add", func() error {
		added, err := members.Add(made.ID, iamuumv1.AddGroupMemberRequest{Members: []models.AccessGroupMember{
			{ID: w.service.IAMID, Type: iamuumv1.AccessGroupMemberService},
		}})
		if err != nil {
			return err
		}
		return equal(added.Members[0].OK, true)
	})
	w.call("AccessGroupMemberV1.List", func() error {
		all, err := members.List(made.ID)
		if err != nil {
			return err
		}
		return equal([]any{len(all), all[0].ID}, []any{1, w.service.IAMID})
	})
	w.call("AccessGroupMemberV1.Remove", func() error { return members.Remove(made.ID, w.service.IAMID) })
	w.call("AccessGroupV1.Delete", func() error { return groups.Delete(made.ID, false) })
}

func (w *world) users(users usermanagementv2.Users) {
	var first usermanagementv2.UserInfo
	w.call("UserInvite.GetUsers", func() error {
		list, err := users.GetUsers(account)
		if err != nil {
			return err
		}
		first = list.Resources[0]
		return equal(list.TotalUsers > 0, true)
	})
	w.call("UserInvite.ListUsers", func() error {
		all, err := users.ListUsers(account)
		if err != nil {
			return err
		}
		return equal(slices.Contains(all, first), true)
	})
	w.call("UserInvite.GetUserProfile", func() error {
		got, err := users.GetUserProfile(account, first.IamID)
		if err != nil {
			return err
		}
		return equal(got, first)
	})
	w.refused("UserInvite.RemoveUsers", 404, "there is no such user", func() error {
		return users.RemoveUsers(account, "IBMid-NOBODY")
	})
	w.leave("out of scope: nobody is invited by e-mail; `claviger iam user create` lets a person in", "UserInvite.InviteUsers")
	w.leave("out of scope: a user has no profile or settings of his own here",
		"UserInvite.UpdateUserProfile", "UserInvite.GetUserSettings", "UserInvite.ManageUserSettings")
}

// strangers may not administer.
func (w *world) strangers() {
	sess := logIn(env("CLAVIGER_READER_API_KEY"))
	policies := need(iampapv1.New(sess)).V1Policy()
	w.refused("V1Policy.List (Reader)", 401, "only administrators see policies", func() error {
		_, err := policies.List(iampapv1.SearchParams{AccountID: account})
		return err
	})
	groups := need(iamuumv2.New(sess)).AccessGroup()
	w.refused("AccessGroup.Create (Reader)", 401, "only administrators make groups", func() error {
		_, err := groups.Create(models.AccessGroupV2{AccessGroup: models.AccessGroup{Name: "x"}}, account)
		return err
	})
}
