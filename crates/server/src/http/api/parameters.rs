//! Parameters of paths, queries and headers.

use claviger_wire::kp::rings::RING_HEADER;
use claviger_wire::kp::{CORRELATION_HEADER, INSTANCE_HEADER};
use serde_json::{Value, json};

/// A query parameter.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Whether it must be there. Else it counts as absent when it is empty.
    pub(crate) required: bool,
    pub(crate) schema: fn() -> Value,
}

/// A header, of a request or of an answer.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) schema: fn() -> Value,
}

const fn query(name: &'static str, what: &'static str, schema: fn() -> Value) -> Query {
    Query { name, what, required: false, schema }
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn boolean() -> Value {
    json!({ "type": "boolean" })
}

fn uuid() -> Value {
    json!({ "type": "string", "format": "uuid" })
}

/// Cut out of a list: how many, from where, and whether to say how many there are in all.
pub(crate) const PAGE: [Query; 3] = [
    query("limit", "Most elements of the answer; 200 if not given.", || limit(5000)),
    OFFSET,
    TOTAL,
];
/// The same where pages are smaller.
pub(crate) const SMALL_PAGE: [Query; 3] = [
    query("limit", "Most elements of the answer; 100 if not given.", || limit(200)),
    OFFSET,
    TOTAL,
];
/// The same of KMIP objects.
pub(crate) const OBJECT_PAGE: [Query; 3] = [
    query("limit", "Most elements of the answer; 100 if not given.", || limit(5000)),
    OFFSET,
    TOTAL,
];
const OFFSET: Query = query(
    "offset",
    "Elements to leave out before the first.",
    || json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
);
const TOTAL: Query =
    query("totalCount", "Whether the answer says how many there are in all.", boolean);

fn limit(most: u32) -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": most })
}

/// Which audit events.
pub(crate) const EVENTS: [Query; 7] = [
    query("instance", "About this instance only; without it, only for administrators.", uuid),
    query("key", "About this key of the instance only.", uuid),
    query("action", "With this name; a `*` at its end stands for any end.", string),
    query("from", "Not before then (RFC 3339).", string),
    query("to", "Before then (RFC 3339).", string),
    query("limit", "Most events of the answer; 200 if not given.", || limit(1000)),
    query("before", "Older than those of the page that said this is `next`.", string),
];

/// Which keys are listed or counted.
pub(crate) const KEYS: [Query; 3] = [
    query(
        "state",
        "States, with commas: 1, 2 and 3 if not given.",
        || json!({ "type": "string", "pattern": "^ *[01235]( *, *[01235])* *$" }),
    ),
    query("extractable", "Only standard keys, or only root keys.", boolean),
    query(
        "filter",
        "Terms `property=value` or `property=op:value`, with blanks between them; `op` is one of \
         lt, lte, gt, gte. About creationDate, deletionDate, expirationDate, lastRotateDate, \
         lastUpdateDate, extractable and state.",
        string,
    ),
];
/// How a list of keys is searched and sorted.
pub(crate) const SEARCH: [Query; 2] = [
    query(
        "search",
        "What name, alias or id has to contain, after any of the prefixes `not:`, `exact:`, \
         `name:`, `alias:`, `escape:`.",
        || json!({ "type": "string", "maxLength": 257 }),
    ),
    query("sort", "Properties, with commas, `-` before one for descending.", || {
        let one = "-?(id|state|extractable|imported|creationDate|lastUpdateDate|lastRotateDate\
                   |deletionDate|expirationDate)";
        json!({ "type": "string", "pattern": format!("^{one}(,{one}){{0,8}}$") })
    }),
];
pub(crate) const FORCE_KEY: Query =
    query("force", "Delete it though it is registered as in use.", boolean);
pub(crate) const FORCE_RING: Query =
    query("force", "Delete it though it holds deleted keys; these go to `default`.", boolean);
pub(crate) const FORCE_NODE: Query = query(
    "force",
    "Needed: an operator's word that the node's machine is off.",
    || json!({ "enum": ["true", "false"] }),
);
pub(crate) const FORCE_CLUSTER: Query = query(
    "force",
    "Needed for a cluster that is encrypted: an operator's word that it may be forgotten.",
    || json!({ "enum": ["true", "false"] }),
);
pub(crate) const ALL_STATES: Query =
    query("allKeyStates", "Needed for the versions of a deleted key.", boolean);
pub(crate) const KEY_POLICY: Query =
    query("policy", "Only this policy.", || json!({ "enum": ["rotation", "dualAuthDelete"] }));
pub(crate) const INSTANCE_POLICY: Query = query("policy", "Only this policy.", || {
    let all = claviger_store::policies::InstancePolicyKind::ALL.map(|kind| kind.as_str());
    json!({ "enum": all })
});
pub(crate) const REGISTRATIONS: [Query; 2] = [
    query(
        "urlEncodedResourceCRNQuery",
        "The CRN of a resource, or by a `*` at its end all that begin so.",
        string,
    ),
    query("preventKeyDeletion", "Only those that do, or do not.", boolean),
];
pub(crate) const CRK: Query = query("crk_id", "Only those that use this root key.", string);
pub(crate) const OBJECT_STATE: Query = query(
    "state",
    "States, with commas.",
    || json!({ "type": "string", "pattern": "^ *[1-4]( *, *[1-4])* *$" }),
);
pub(crate) const EXPIRING: Query =
    query("allowExpiringKey", "Take a root key that has an expiration date.", boolean);
/// What was once asked for so; see the paths under `actions`.
pub(crate) const ACTION: Query = Query {
    required: true,
    ..query("action", "What to do.", || {
        json!({ "enum": [
            "wrap", "unwrap", "rewrap", "rotate", "disable", "enable", "setKeyForDeletion",
            "unsetKeyForDeletion", "restore",
        ] })
    })
};
pub(crate) const CLUSTER: Query = Query {
    required: true,
    ..query("cluster", "Id or name.", || json!({ "type": "string", "minLength": 1 }))
};
pub(crate) const KMS_INSTANCE: Query =
    Query { required: true, ..query("kms_instance", "GUID or CRN.", string) };
pub(crate) const INSTANCES: [Query; 11] = [
    query("limit", "Most elements of the answer; 100 if not given.", || limit(100)),
    query("start", "Out of `next_url`: after which instance to go on.", uuid),
    query("name", "Only with this name.", string),
    query("guid", "Only with this GUID.", string),
    query("resource_group", "Only in the group of this id.", string),
    query("resource_group_id", "The same.", string),
    query("resource_id", "Only of this service of the catalogue.", string),
    query("resource_plan_id", "Only of this plan.", string),
    query("type", "Only of this type.", string),
    query("sub_type", "Only of this type below the type.", string),
    query("state", "Only in this state.", string),
];
pub(crate) const GROUPS: [Query; 3] = [
    query("name", "Only with this name.", string),
    query("default", "Only the default one, or all others.", string),
    query("account_id", "Only of this account.", string),
];

const ACCOUNT: Query = query("account_id", "Only of this account.", string);
/// Which access policies.
pub(crate) const POLICIES: [Query; 6] = [
    ACCOUNT,
    query("iam_id", "Only about this person or service ID.", string),
    query("subjectId", "The same.", string),
    query("access_group_id", "Only about this access group.", string),
    query("accessGroupId", "The same.", string),
    query("type", "Only of this type: access or authorization.", string),
];
/// Which access groups.
pub(crate) const ACCESS_GROUPS: [Query; 3] = [
    ACCOUNT,
    query("account", "The same.", string),
    query("iam_id", "Only those that this person or service ID is in.", string),
];
/// A page of access groups or of members.
pub(crate) const OFFSETS: [Query; 2] = [
    query(
        "limit",
        "Most elements of the answer; 100 if not given, and at most.",
        || json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
    ),
    OFFSET,
];
pub(crate) const FORCE_GROUP: Query = query(
    "force",
    "Delete it though it has members, who lose its roles.",
    || json!({ "enum": ["true", "false"] }),
);
/// Which API keys.
pub(crate) const API_KEYS: [Query; 2] = [
    query("boundTo", "CRN or IAM id of whose they are; the caller's own if not given.", string),
    PAGE_TOKEN,
];
pub(crate) const CASCADE: Query = query(
    "cascade",
    "Remove the API keys, too, that were made by its tokens, and by those of these.",
    || json!({ "enum": ["true", "false"] }),
);
/// Which service IDs.
pub(crate) const SERVICE_IDS: [Query; 2] =
    [query("boundTo", "Only of this account, by id or CRN.", string), PAGE_TOKEN];
const PAGE_TOKEN: Query = query(
    "pagetoken",
    "Out of `nextPageToken`: where to go on.",
    || json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
);
/// Which people.
pub(crate) const USERS: Query = query("_start", "Out of `next_url`: after whom to go on.", string);
pub(crate) const ROLES: Query =
    query("service_name", "Roles of this service, too; kms has some.", string);
pub(crate) const OLD_ROLES: [Query; 2] = [
    query("serviceName", "Roles of this service, too; kms has some.", string),
    query("policyType", "`authorization` for roles that one can give.", string),
];

pub(crate) const NOW: Query = query(
    "now",
    "End all keys before it at once, with all access and refresh tokens that there are.",
    || json!({ "enum": ["true", "false"] }),
);

/// `If-Match`: nobody changes what he has not seen.
pub(crate) const IF_MATCH: Header = Header {
    name: "If-Match",
    what: "The version that was read last: `ETag` of an answer, or its `version`; `*` for any.",
    schema: string,
};
/// `ETag`, for `If-Match`.
pub(crate) const ETAG: Header =
    Header { name: "ETag", what: "The version, for `If-Match`.", schema: string };
/// `X-Region`: which region is meant.
pub(crate) const REGION: Header =
    Header { name: "X-Region", what: "The region, which must be the server's.", schema: string };
/// `Prefer`, for operations whose answer may be long or secret.
pub(crate) const PREFER: Header = Header {
    name: "Prefer",
    what: "`return=minimal` or `return=representation` (RFC 7240): whether the answer shows the \
           key, or its payload.",
    schema: string,
};
/// How many keys there are.
pub(crate) const KEY_TOTAL: Header = Header {
    name: "Key-Total",
    what: "Number of keys.",
    schema: || json!({ "type": "integer", "minimum": 0 }),
};

/// Headers that all operations of the key service heed, by their names in the document.
pub(crate) const INSTANCE: (&str, Header) = (
    "Instance",
    Header { name: INSTANCE_HEADER, what: "Id of an instance of the key service.", schema: uuid },
);
pub(crate) const RING: (&str, Header) = (
    "Ring",
    Header {
        name: RING_HEADER,
        what: "A key ring: where a new key goes, or the only one in which a key is found.",
        schema: string,
    },
);
/// One that all operations heed, and that all answers have.
pub(crate) const CORRELATION: (&str, Header) = (
    "Correlation",
    Header {
        name: CORRELATION_HEADER,
        what: "Ties request, answer, audit record and log lines together: 1 to 64 visible \
               characters of ASCII; made here if not given. A change of the key service that is \
               asked for again with the same one within ten minutes is done once and answered again.",
        schema: string,
    },
);

/// A parameter of a path: what it is, and its schema.
///
/// # Panics
/// When the name is not known: describe it here.
pub(crate) fn of_path(name: &str) -> (&'static str, Value) {
    match name {
        "id" => ("Id or alias of a key.", text()),
        "alias" => (
            "Not a UUID and not a word of this API.",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{2,90}$" }),
        ),
        "ring" => {
            ("Id of a key ring.", json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{2,100}$" }))
        }
        "crn" => ("CRN of the resource that uses the key, percent-encoded.", text()),
        "adapter" => ("Id or name of a KMIP adapter.", text()),
        "certificate" => ("Id or name of a client certificate.", text()),
        "object" => ("Id of a KMIP object.", text()),
        "instance" => ("Id of an instance of the key service.", uuid()),
        "resource_instance" => ("GUID or percent-encoded CRN of an instance.", text()),
        "group" => ("Id of a resource group.", text()),
        "policy" => ("Id of an access policy.", text()),
        "access_group" => ("Id of an access group.", text()),
        "iam_id" => ("IAM id of a person or a service ID.", text()),
        "api_key" => ("Id of an API key.", text()),
        "service_id" => ("Id, IAM id or CRN of a service ID.", text()),
        "account" => ("Id of the account.", text()),
        "scope" => ("Id of the account, with or without `a/` before it.", text()),
        "issuer" => ("An issuer, percent-encoded or not.", text()),
        "key" => ("Id of a key.", uuid()),
        "cluster" => ("Id or name of a cluster.", text()),
        "node" => (
            "Name of a node's agent.",
            json!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" }),
        ),
        "job" => ("Id of a job.", uuid()),
        _ => panic!("the parameter {name} of a path has no description"),
    }
}

fn text() -> Value {
    json!({ "type": "string", "minLength": 1 })
}
