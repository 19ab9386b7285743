// Makes every public call of the Go client once against a key service, and walks the ways in which
// Rook and ceph-csi use it, call by call.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"

	kp "github.com/IBM/keyprotect-go-client"
	"github.com/google/uuid"
)

// wait is the longest of Key Protect that a test can sit out: enable and restore come 30 s after
// the action before.
const wait = 31 * time.Second

var ctx = context.Background()

func env(name string) string {
	value := os.Getenv(name)
	if value == "" {
		fmt.Fprintln(os.Stderr, name, "is not set")
		os.Exit(1)
	}
	return value
}

func config(apiKey string) kp.ClientConfig {
	url := env("CLAVIGER_URL")
	return kp.ClientConfig{
		BaseURL: url, TokenURL: url + "/oidc/token", APIKey: apiKey,
		InstanceID: env("CONFORMANCE_INSTANCE_ID"), Verbose: kp.VerboseNone,
	}
}

func client(config kp.ClientConfig) *kp.Client {
	made, err := kp.New(config, kp.DefaultTransport())
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot make a client:", err)
		os.Exit(1)
	}
	return made
}

func b64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

func random(length int) []byte {
	bytes := make([]byte, length)
	_, _ = rand.Read(bytes)
	return bytes
}

func ptr[T any](value T) *T { return &value }

func main() {
	r := newReport()
	calls(r)
	rook(r)
	cephCSI(r)
}

func calls(r *report) {
	c := client(config(env("CONFORMANCE_API_KEY")))
	secondKey := os.Getenv("CLAVIGER_API_KEY_2")
	if secondKey == "" {
		secondKey = env("CONFORMANCE_API_KEY")
	}
	second := client(config(secondKey))

	// create notes the id of the key that it made; an id of nobody if it could not.
	create := func(name string, work func() (*kp.Key, error)) string {
		id := uuid.NewString()
		r.call(name, func() error {
			key, err := work()
			if err == nil {
				id = key.ID
			}
			return err
		})
		return id
	}
	expiry := ptr(time.Now().Add(240 * time.Hour).UTC().Truncate(time.Second))
	policy := kp.Policy{Rotation: &kp.Rotation{Enabled: ptr(true), Interval: 3}}
	dual := kp.Policy{DualAuth: &kp.DualAuth{Enabled: ptr(false)}}
	material, text := b64(random(32)), b64(random(40))

	root := create("CreateKey", func() (*kp.Key, error) { return c.CreateKey(ctx, "conformance", nil, false) })
	create("CreateKeyWithOptions", func() (*kp.Key, error) {
		key, err := c.CreateKeyWithOptions(ctx, "conformance", false, kp.WithExpiration(expiry),
			kp.WithDescription("a key with everything"), kp.WithTags([]string{"one", "two"}),
			kp.WithAliases([]string{"conformance-options"}))
		if err != nil {
			return nil, err
		}
		return key, equal([]any{key.Tags, key.Aliases, key.Expiration.Equal(*expiry)},
			[]any{[]string{"one", "two"}, []string{"conformance-options"}, true})
	})
	imported := create("CreateImportedKey", func() (*kp.Key, error) {
		return c.CreateImportedKey(ctx, "conformance", nil, material, "", "", false)
	})
	paused := create("CreateRootKey", func() (*kp.Key, error) { return c.CreateRootKey(ctx, "conformance", nil) })
	standard := create("CreateStandardKey", func() (*kp.Key, error) { return c.CreateStandardKey(ctx, "conformance", nil) })
	spare := create("CreateImportedRootKey", func() (*kp.Key, error) {
		return c.CreateImportedRootKey(ctx, "conformance", nil, material, "", "")
	})
	stored := create("CreateImportedStandardKey", func() (*kp.Key, error) {
		return c.CreateImportedStandardKey(ctx, "conformance", nil, text)
	})
	create("CreateKeyWithAliases", func() (*kp.Key, error) {
		return c.CreateKeyWithAliases(ctx, "conformance", nil, false, []string{"conformance-1"})
	})
	create("CreateImportedKeyWithAliases", func() (*kp.Key, error) {
		return c.CreateImportedKeyWithAliases(ctx, "conformance", nil, material, "", "", false, []string{"conformance-2"})
	})
	create("CreateKeyWithPolicyOverrides", func() (*kp.Key, error) {
		return c.CreateKeyWithPolicyOverrides(ctx, "conformance", nil, false, []string{"conformance-3"}, policy)
	})
	create("CreateKeyWithPolicyOverridesWithOptions", func() (*kp.Key, error) {
		key, err := c.CreateKeyWithPolicyOverridesWithOptions(ctx, "conformance", false, policy, kp.WithDescription("some text"))
		if err != nil {
			return nil, err
		}
		return key, equal(key.Rotation.Interval, 3)
	})
	create("CreateRootKeyWithPolicyOverrides", func() (*kp.Key, error) {
		return c.CreateRootKeyWithPolicyOverrides(ctx, "conformance", nil, nil, policy)
	})
	create("CreateStandardKeyWithPolicyOverrides", func() (*kp.Key, error) {
		return c.CreateStandardKeyWithPolicyOverrides(ctx, "conformance", nil, nil, dual)
	})
	create("CreateImportedKeyWithPolicyOverrides", func() (*kp.Key, error) {
		return c.CreateImportedKeyWithPolicyOverrides(ctx, "conformance", nil, material, "", "", false, nil, dual)
	})
	create("CreateImportedRootKeyWithPolicyOverrides", func() (*kp.Key, error) {
		return c.CreateImportedRootKeyWithPolicyOverrides(ctx, "conformance", nil, material, "", "", nil, dual)
	})
	create("CreateImportedStandardKeyWithPolicyOverrides", func() (*kp.Key, error) {
		return c.CreateImportedStandardKeyWithPolicyOverrides(ctx, "conformance", nil, text, nil, dual)
	})
	doomed := create("CreateKey (to be deleted by two)", func() (*kp.Key, error) {
		return c.CreateKey(ctx, "conformance", nil, false)
	})

	// What has to be waited for begins first.
	r.call("DisableKey", func() error { return c.DisableKey(ctx, paused) })
	r.call("DeleteKey", func() error {
		key, err := c.DeleteKey(ctx, spare, kp.ReturnRepresentation)
		if err != nil {
			return err
		}
		return equal(key.State, int(kp.Destroyed))
	})
	later := time.Now().Add(wait)
	r.refused("PurgeKey", refusal{409, "REQ_TOO_EARLY_ERR", "four hours after the deletion"}, func() error {
		_, err := c.PurgeKey(ctx, spare, kp.ReturnRepresentation)
		return err
	})

	r.call("GetKeys", func() error {
		keys, err := c.GetKeys(ctx, 0, 0)
		if err != nil {
			return err
		}
		return equal(len(keys.Keys), keys.Metadata.NumberOfKeys)
	})
	r.call("ListKeys", func() error {
		sort := kp.GetKeySortStr(kp.WithCreationDateDesc(), kp.WithState())
		keys, err := c.ListKeys(ctx, &kp.ListKeysOptions{
			Extractable: ptr(true), Limit: ptr(uint32(2)), Offset: ptr(uint32(1)),
			State: []kp.KeyState{kp.Active, kp.Suspended}, Sort: sort,
		})
		if err != nil {
			return err
		}
		return equal(len(keys.Keys), 2)
	})
	r.call("ListKeys (search)", func() error {
		search, err := kp.GetKeySearchQuery(ptr("conformance-1"), kp.WithExactMatch(), kp.AddAliasScope())
		if err != nil {
			return err
		}
		keys, err := c.ListKeys(ctx, &kp.ListKeysOptions{Search: search})
		if err != nil {
			return err
		}
		return equal(len(keys.Keys), 1)
	})
	r.call("ListKeys (filter)", func() error {
		filter := kp.GetFilterQueryBuilder().CreationDate().GreaterThan(time.Now().Add(-time.Hour)).
			Extractable(true).Build()
		keys, err := c.ListKeys(ctx, &kp.ListKeysOptions{Filter: &filter})
		if err != nil {
			return err
		}
		return equal(len(keys.Keys), 4)
	})
	r.call("GetKey", func() error {
		key, err := c.GetKey(ctx, root)
		if err != nil {
			return err
		}
		return equal([]any{key.ID, *key.Deleted}, []any{root, false})
	})
	r.call("GetKey (standard)", func() error {
		key, err := c.GetKey(ctx, stored)
		if err != nil {
			return err
		}
		return equal(key.Payload, text)
	})
	r.call("GetKeyMetadata", func() error {
		key, err := c.GetKeyMetadata(ctx, standard)
		if err != nil {
			return err
		}
		return equal([]any{key.ID, key.Payload}, []any{standard, ""})
	})

	aad := &[]string{"volume-1", "namespace"}
	var plain, wrapped, unwrapped []byte
	r.call("Wrap", func() (err error) {
		wrapped, err = c.Wrap(ctx, root, []byte(b64(random(20))), aad)
		return err
	})
	r.call("WrapV2", func() error {
		answer, err := c.WrapV2(ctx, root, []byte(b64(random(20))), aad)
		if err != nil {
			return err
		}
		return equal(answer.KeyVersion.ID != "", true)
	})
	r.call("WrapCreateDEK", func() (err error) {
		plain, wrapped, err = c.WrapCreateDEK(ctx, root, aad)
		return err
	})
	r.call("WrapCreateDEKV2", func() error {
		answer, err := c.WrapCreateDEKV2(ctx, root, nil)
		if err != nil {
			return err
		}
		dek, err := c.Unwrap(ctx, root, []byte(answer.CipherText), nil)
		if err != nil {
			return err
		}
		return equal(string(dek), answer.PlainText)
	})
	r.call("RotateV2", func() error { return c.RotateV2(ctx, root, nil) })
	r.call("Rotate", func() error { return c.Rotate(ctx, imported, b64(random(32))) })
	r.refused("Rotate (twice)", refusal{409, "KEY_ROTATION_NOT_PERMITTED", "once an hour"}, func() error {
		return c.RotateV2(ctx, root, nil)
	})
	r.call("Unwrap", func() (err error) {
		unwrapped, err = c.Unwrap(ctx, root, wrapped, aad)
		if err != nil {
			return err
		}
		return equal(string(unwrapped), string(plain))
	})
	r.call("UnwrapV2", func() error {
		text, again, err := c.UnwrapV2(ctx, root, wrapped, aad)
		if err != nil {
			return err
		}
		return equal([]any{string(text), len(again) > 0}, []any{string(plain), true})
	})
	r.refused("Unwrap (wrong aad)", refusal{422, "UNPROCESSABLE_CIPHERTEXT_ERR", "other authenticated data"}, func() error {
		_, err := c.Unwrap(ctx, root, wrapped, &[]string{"volume-2"})
		return err
	})
	r.call("ListKeyVersions", func() error {
		versions, err := c.ListKeyVersions(ctx, root, &kp.ListKeyVersionsOptions{TotalCount: ptr(true)})
		if err != nil {
			return err
		}
		return equal([]any{len(versions.KeyVersion), *versions.Metadata.TotalCount}, []any{2, uint32(2)})
	})

	r.call("CreateKeyAlias", func() error {
		alias, err := c.CreateKeyAlias(ctx, "conformance-alias", root)
		if err != nil {
			return err
		}
		return equal(alias.KeyID, root)
	})
	r.refused("CreateKeyAlias (taken)", refusal{409, "KEY_ALIAS_NOT_UNIQUE_ERR", "another key has it"}, func() error {
		_, err := c.CreateKeyAlias(ctx, "conformance-alias", doomed)
		return err
	})
	r.call("DeleteKeyAlias", func() error { return c.DeleteKeyAlias(ctx, "conformance-alias", root) })
	r.call("CreateKeyRing", func() error { return c.CreateKeyRing(ctx, "conformance") })
	r.call("GetKeyRings", func() error {
		rings, err := c.GetKeyRings(ctx)
		if err != nil {
			return err
		}
		return equal(len(rings.KeyRings), 2)
	})
	r.call("SetKeyRing", func() error {
		inDefault := config(env("CONFORMANCE_API_KEY"))
		inDefault.KeyRing = "default"
		key, err := client(inDefault).SetKeyRing(ctx, root, "conformance")
		if err != nil {
			return err
		}
		return equal(key.KeyRingID, "conformance")
	})
	r.call("SetKeyRing (back)", func() error {
		inRing := config(env("CONFORMANCE_API_KEY"))
		inRing.KeyRing = "conformance"
		_, err := client(inRing).SetKeyRing(ctx, root, "default")
		return err
	})
	r.call("DeleteKeyRing", func() error { return c.DeleteKeyRing(ctx, "conformance", kp.WithForce(true)) })

	r.call("SetPolicy", func() error {
		_, err := c.SetPolicy(ctx, root, kp.ReturnRepresentation, 2)
		return err
	})
	r.call("GetPolicy", func() error {
		policy, err := c.GetPolicy(ctx, root)
		if err != nil {
			return err
		}
		return equal(policy.Rotation.Interval, 2)
	})
	r.call("SetPolicies", func() error {
		policies, err := c.SetPolicies(ctx, root, true, 4, true, false)
		if err != nil {
			return err
		}
		return equal(len(policies), 2)
	})
	r.call("GetPolicies", func() error {
		policies, err := c.GetPolicies(ctx, root)
		if err != nil {
			return err
		}
		return equal(len(policies), 2)
	})
	r.call("SetRotationPolicy", func() error {
		_, err := c.SetRotationPolicy(ctx, root, 5, true)
		return err
	})
	r.refused("SetRotationPolicy (no months)", refusal{400, "INVALID_FIELD_ERR", "1 to 12 months"}, func() error {
		_, err := c.SetRotationPolicy(ctx, root, 0)
		return err
	})
	r.call("DisableRotationPolicy", func() error {
		policy, err := c.DisableRotationPolicy(ctx, root)
		if err != nil {
			return err
		}
		return equal([]any{*policy.Rotation.Enabled, policy.Rotation.Interval}, []any{false, 5})
	})
	r.call("EnableRotationPolicy", func() error {
		_, err := c.EnableRotationPolicy(ctx, root)
		return err
	})
	r.call("GetRotationPolicy", func() error {
		policy, err := c.GetRotationPolicy(ctx, root)
		if err != nil {
			return err
		}
		return equal(policy.Rotation.Interval, 5)
	})
	r.call("SetDualAuthDeletePolicy", func() error {
		_, err := c.SetDualAuthDeletePolicy(ctx, doomed, true)
		return err
	})
	r.call("GetDualAuthDeletePolicy", func() error {
		policy, err := c.GetDualAuthDeletePolicy(ctx, doomed)
		if err != nil {
			return err
		}
		return equal(*policy.DualAuth.Enabled, true)
	})
	r.refused("DeleteKey (not authorized)", refusal{409, "AUTHORIZATIONS_NOT_MET", "nobody else has agreed"}, func() error {
		_, err := c.DeleteKey(ctx, doomed, kp.ReturnMinimal)
		return err
	})
	r.call("SyncAssociatedResources", func() error { return c.SyncAssociatedResources(ctx, doomed) })
	r.call("InitiateDualAuthDelete", func() error { return c.InitiateDualAuthDelete(ctx, doomed) })
	r.call("CancelDualAuthDelete", func() error { return c.CancelDualAuthDelete(ctx, doomed) })
	r.call("InitiateDualAuthDelete (again)", func() error { return c.InitiateDualAuthDelete(ctx, doomed) })
	r.call("DeleteKey (by another person)", func() error {
		_, err := second.DeleteKey(ctx, doomed, kp.ReturnMinimal)
		return err
	})

	instancePolicies(r, c)
	secureImport(r, c)
	kmip(r, c, root)
	r.call("ListRegistrations", func() error {
		list, err := c.ListRegistrations(ctx, root, "")
		if err != nil {
			return err
		}
		return equal(len(list.Registrations), 0)
	})

	time.Sleep(time.Until(later))
	r.call("EnableKey", func() error { return c.EnableKey(ctx, paused) })
	r.call("RestoreKey", func() error {
		key, err := c.RestoreKey(ctx, spare)
		if err != nil {
			return err
		}
		return equal(key.State, int(kp.Active))
	})
	r.missing()
}

func instancePolicies(r *report, c *kp.Client) {
	r.call("SetDualAuthInstancePolicy", func() error { return c.SetDualAuthInstancePolicy(ctx, false) })
	r.call("SetAllowedNetworkInstancePolicy", func() error {
		return c.SetAllowedNetworkInstancePolicy(ctx, true, "public-and-private")
	})
	// Loopback stays allowed, or nothing else could be asked.
	loopback := []string{"127.0.0.1/32"}
	r.call("SetAllowedIPInstancePolicy", func() error { return c.SetAllowedIPInstancePolicy(ctx, true, loopback) })
	r.call("SetMetricsInstancePolicy", func() error { return c.SetMetricsInstancePolicy(ctx, true) })
	r.call("SetRotationInstancePolicy", func() error { return c.SetRotationInstancePolicy(ctx, true, ptr(3)) })
	r.call("SetKeyCreateImportAccessInstancePolicy", func() error {
		return c.SetKeyCreateImportAccessInstancePolicy(ctx, true, map[string]bool{kp.CreateRootKey: true})
	})
	enabled := func(get func(context.Context) (*kp.InstancePolicy, error)) func() error {
		return func() error {
			policy, err := get(ctx)
			if err != nil {
				return err
			}
			return equal(*policy.PolicyData.Enabled, true)
		}
	}
	r.call("GetAllowedNetworkInstancePolicy", enabled(c.GetAllowedNetworkInstancePolicy))
	r.call("GetAllowedIPInstancePolicy", enabled(c.GetAllowedIPInstancePolicy))
	r.call("GetMetricsInstancePolicy", enabled(c.GetMetricsInstancePolicy))
	r.call("GetRotationInstancePolicy", enabled(c.GetRotationInstancePolicy))
	r.call("GetKeyCreateImportAccessInstancePolicy", enabled(c.GetKeyCreateImportAccessInstancePolicy))
	r.call("GetDualAuthInstancePolicy", func() error {
		policy, err := c.GetDualAuthInstancePolicy(ctx)
		if err != nil {
			return err
		}
		return equal(*policy.PolicyData.Enabled, false)
	})
	r.call("GetInstancePolicies", func() error {
		policies, err := c.GetInstancePolicies(ctx)
		if err != nil {
			return err
		}
		return equal(len(policies), 6)
	})
	r.call("GetAllowedIPPrivateNetworkPort", func() error {
		_, err := c.GetAllowedIPPrivateNetworkPort(ctx)
		return err
	})
	r.call("SetInstancePolicies", func() error {
		return c.SetInstancePolicies(ctx, kp.MultiplePolicies{
			AllowedNetwork:        &kp.AllowedNetworkPolicyData{Enabled: false, Network: "public-and-private"},
			Metrics:               &kp.BasicPolicyData{Enabled: false},
			KeyCreateImportAccess: &kp.KeyCreateImportAccessInstancePolicy{Enabled: false},
			Rotation:              &kp.RotationPolicyData{Enabled: false},
		})
	})
	r.call("SetAllowedIPInstancePolicy (off)", func() error { return c.SetAllowedIPInstancePolicy(ctx, false, nil) })
}

func secureImport(r *report, c *kp.Client) {
	r.call("CreateImportToken", func() error {
		_, err := c.CreateImportToken(ctx, 600, 5)
		return err
	})
	r.call("GetImportTokenTransportKey", func() error {
		_, err := c.GetImportTokenTransportKey(ctx)
		return err
	})
	r.call("CreateImportedKey (secure)", func() error {
		token, err := c.GetImportTokenTransportKey(ctx)
		if err != nil {
			return err
		}
		material := b64(random(32))
		payload, err := kp.EncryptKey(material, token.Payload)
		if err != nil {
			return err
		}
		nonce, iv, err := kp.EncryptNonce(material, token.Nonce, "")
		if err != nil {
			return err
		}
		_, err = c.CreateImportedKey(ctx, "conformance", nil, payload, nonce, iv, false)
		return err
	})
	// Hyper Protect's way: OAEP with SHA-1, the nonce under CBC.
	sha1 := func(create func(payload, nonce, iv string) (*kp.Key, error)) func() error {
		return func() error {
			token, err := c.GetImportTokenTransportKey(ctx)
			if err != nil {
				return err
			}
			material := b64(random(32))
			payload, err := kp.EncryptKeyWithSHA1(material, token.Payload)
			if err != nil {
				return err
			}
			nonce, iv, err := kp.EncryptNonceWithCBCPAD(material, token.Nonce, "")
			if err != nil {
				return err
			}
			_, err = create(payload, nonce, iv)
			return err
		}
	}
	r.call("CreateImportedKeyWithSHA1", sha1(func(payload, nonce, iv string) (*kp.Key, error) {
		return c.CreateImportedKeyWithSHA1(ctx, "conformance", nil, payload, nonce, iv, false, nil)
	}))
	r.call("CreateImportedKeyWithPolicyOverridesWithSHA1", sha1(func(payload, nonce, iv string) (*kp.Key, error) {
		dual := kp.Policy{DualAuth: &kp.DualAuth{Enabled: ptr(false)}}
		return c.CreateImportedKeyWithPolicyOverridesWithSHA1(ctx, "conformance", nil, payload, nonce, iv, false, nil, dual)
	}))
}

func kmip(r *report, c *kp.Client, root string) {
	const name = "conformance"
	r.call("CreateKMIPAdapter", func() error {
		adapter, err := c.CreateKMIPAdapter(ctx, kp.WithNativeProfile(root), kp.WithKMIPAdapterName(name),
			kp.WithKMIPAdapterDescription("some text"))
		if err != nil {
			return err
		}
		return equal(adapter.Name, name)
	})
	r.call("GetKMIPAdapter", func() error {
		_, err := c.GetKMIPAdapter(ctx, name)
		return err
	})
	r.call("GetKMIPAdapters", func() error {
		adapters, err := c.GetKMIPAdapters(ctx, &kp.ListKmipAdaptersOptions{TotalCount: ptr(true), CrkID: &root})
		if err != nil {
			return err
		}
		return equal(len(adapters.Adapters), 1)
	})
	r.call("CreateKMIPClientCertificate", func() error {
		_, err := c.CreateKMIPClientCertificate(ctx, name, certificate(), kp.WithKMIPClientCertName(name))
		return err
	})
	r.call("GetKMIPClientCertificate", func() error {
		_, err := c.GetKMIPClientCertificate(ctx, name, name)
		return err
	})
	r.call("GetKMIPClientCertificates", func() error {
		certificates, err := c.GetKMIPClientCertificates(ctx, name, &kp.ListOptions{TotalCount: ptr(true)})
		if err != nil {
			return err
		}
		return equal(len(certificates.Certificates), 1)
	})
	r.call("GetKMIPObjects", func() error {
		objects, err := c.GetKMIPObjects(ctx, name, &kp.ListKmipObjectsOptions{TotalCount: ptr(true)})
		if err != nil {
			return err
		}
		return equal(len(objects.Objects), 0)
	})
	none := refusal{404, "", "no KMIP client has made an object"}
	r.refused("GetKMIPObject", none, func() error {
		_, err := c.GetKMIPObject(ctx, name, uuid.NewString())
		return err
	})
	r.refused("DeleteKMIPObject", none, func() error { return c.DeleteKMIPObject(ctx, name, uuid.NewString()) })
	r.call("DeleteKMIPClientCertificate", func() error { return c.DeleteKMIPClientCertificate(ctx, name, name) })
	r.call("DeleteKMIPAdapter", func() error { return c.DeleteKMIPAdapter(ctx, name) })
}

func certificate() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "conformance"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// rook keeps the secrets of encrypted OSDs as standard keys: each created under an alias, got by
// it, deleted by force.
func rook(r *report) {
	c := client(config(env("CONFORMANCE_API_KEY")))
	alias, value := "rook-ceph-osd-encryption-key-set1-data-0", b64(random(128))
	put := func() error {
		_, err := c.CreateImportedKeyWithAliases(ctx, alias, nil, value, "", "", true, []string{alias})
		// Rook takes a secret that is there as success.
		if err != nil && strings.Contains(err.Error(), "KEY_ALIAS_NOT_UNIQUE_ERR") {
			return nil
		}
		return err
	}
	var id string
	r.call("Rook: put", put)
	r.call("Rook: put again", put)
	r.call("Rook: get", func() error {
		key, err := c.GetKey(ctx, alias)
		if err != nil {
			return err
		}
		id = key.ID
		return equal(key.Payload, value)
	})
	r.call("Rook: delete", func() error {
		_, err := c.DeleteKey(ctx, id, kp.ReturnRepresentation, kp.ForceOpt{Force: true})
		return err
	})
}

// cephCSI wraps the passphrase of each volume with the volume's id as authenticated data, and
// makes a new client, so a new token, for each call.
func cephCSI(r *report) {
	root := ""
	r.call("ceph-csi: its root key", func() error {
		key, err := client(config(env("CONFORMANCE_API_KEY"))).CreateRootKey(ctx, "ceph-csi", nil)
		if err != nil {
			return err
		}
		root = key.ID
		return nil
	})
	volume, passphrase := []string{"0001-0009-rook-ceph-0000000000000002"}, b64(random(20))
	var stored string
	r.call("ceph-csi: encrypt", func() error {
		wrapped, err := client(config(env("CONFORMANCE_API_KEY"))).Wrap(ctx, root, []byte(passphrase), &volume)
		stored = b64(wrapped)
		return err
	})
	decrypt := func(volume []string) (string, error) {
		wrapped, err := base64.StdEncoding.DecodeString(stored)
		if err != nil {
			return "", err
		}
		text, err := client(config(env("CONFORMANCE_API_KEY"))).Unwrap(ctx, root, wrapped, &volume)
		return string(text), err
	}
	r.call("ceph-csi: decrypt", func() error {
		text, err := decrypt(volume)
		if err != nil {
			return err
		}
		return equal(text, passphrase)
	})
	r.call("ceph-csi: decrypt another volume's", func() error {
		if _, err := decrypt([]string{"another"}); err == nil {
			return errors.New("it was decrypted")
		}
		return nil
	})
}
