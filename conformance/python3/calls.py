"""Makes every public call of PyPI `keyprotect` 3.0.1 once against a key service."""

import base64
import inspect
import io
import json
import os
import time
import uuid

from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from keyprotect.ibm_key_protect_api_v2 import IbmKeyProtectApiV2
from report import Report, certificate, equal, sealed_for_import, sleep_until

URL = os.environ["CLAVIGER_URL"]
INSTANCE = os.environ["CONFORMANCE_INSTANCE_ID"]
# The longest wait of Key Protect that a test can sit out: enable and restore come 30 s after the
# action before.
WAIT = 31
KEY = "application/vnd.ibm.kms.key+json"
POLICY = "application/vnd.ibm.kms.policy+json"


def client(api_key):
    made = IbmKeyProtectApiV2(authenticator=IAMAuthenticator(api_key, url=URL))
    made.set_service_url(URL)
    return made


def explain(error):
    if isinstance(error, ApiException):
        return error.status_code, error.http_response.text
    return None, "%s: %s" % (type(error).__name__, error)


def envelope(kind, *resources):
    return {
        "metadata": {"collectionType": kind, "collectionTotal": len(resources)},
        "resources": list(resources),
    }


def stream(body):
    return io.BytesIO(json.dumps(body).encode())


def new_key(name, extractable=False, **more):
    return stream(envelope(KEY, {"type": KEY, "name": name, "extractable": extractable, **more}))


def body(response):
    result = response.get_result()
    return result if result is None or isinstance(result, dict) else result.json()


def first(response):
    return body(response)["resources"][0]


def b64(data):
    return base64.b64encode(data).decode()


kp = client(os.environ["CONFORMANCE_API_KEY"])
# The last of dual authorization's two people.
second = client(os.environ.get("CLAVIGER_API_KEY_2", os.environ["CONFORMANCE_API_KEY"]))
report = Report(explain)
call = report.call
rep = "return=representation"

root = call("create_key", lambda: first(kp.create_key(INSTANCE, new_key("conformance-root"), prefer=rep)))
secret = b64(b"any length, so also forty-odd bytes of text")
standard = call(
    "create_key (standard, with payload)",
    lambda: first(kp.create_key(INSTANCE, new_key("conformance-standard", True, payload=secret), prefer=rep)),
)
imported = call(
    "create_key (import)",
    lambda: first(kp.create_key(INSTANCE, new_key("conformance-imported", payload=b64(os.urandom(32))), prefer=rep)),
)
paused = call(
    "create_key_with_policies_overrides",
    lambda: first(
        kp.create_key_with_policies_overrides(
            INSTANCE,
            new_key(
                "conformance-overrides",
                rotation={"enabled": True, "interval_month": 6},
                dualAuthDelete={"enabled": False},
            ),
            prefer=rep,
        )
    ),
)
id_ = root["id"] if root else str(uuid.uuid4())
spare = call("create_key (minimal)", lambda: body(kp.create_key(INSTANCE, new_key("conformance-spare"), prefer=rep)))
spare_id = spare["resources"][0]["id"] if spare else str(uuid.uuid4())
paused_id = paused["id"] if paused else spare_id

# What has to be waited for begins first.
call("disable_key", lambda: kp.disable_key(paused_id, INSTANCE))
call("delete_key", lambda: kp.delete_key(spare_id, INSTANCE, prefer=rep, force=False))
later = time.monotonic() + WAIT
early = (409, "REQ_TOO_EARLY_ERR", "30 seconds after the action before")
call("enable_key (at once)", lambda: kp.enable_key(paused_id, INSTANCE), refused=early)
call("restore_key (at once)", lambda: kp.restore_key(spare_id, INSTANCE), refused=early)
call(
    "purge_key",
    lambda: kp.purge_key(spare_id, INSTANCE, prefer=rep),
    refused=(409, "REQ_TOO_EARLY_ERR", "four hours after the deletion"),
)

call("get_key", lambda: equal(first(kp.get_key(id_, INSTANCE))["id"], id_))
if standard:
    call(
        "get_key (standard)",
        lambda: equal(first(kp.get_key(standard["id"], INSTANCE))["payload"], secret),
    )
call("get_key_metadata", lambda: equal(first(kp.get_key_metadata(id_, INSTANCE))["id"], id_))
call(
    "get_keys",
    lambda: equal(
        {key["name"] for key in body(kp.get_keys(INSTANCE, limit=10))["resources"]},
        {"conformance-root", "conformance-standard", "conformance-imported", "conformance-overrides"},
    ),
)
call(
    "get_keys (search, sort, filter)",
    lambda: equal(
        [
            key["name"]
            for key in body(
                kp.get_keys(
                    INSTANCE,
                    search="not:name:standard",
                    sort="-creationDate",
                    filter="state=1 extractable=false",
                )
            )["resources"]
        ],
        ["conformance-imported", "conformance-root"],
    ),
)
call(
    "get_key_collection_metadata",
    lambda: equal(
        kp.get_key_collection_metadata(INSTANCE, state=[1, 2], extractable=False).get_headers()["Key-Total"],
        "3",
    ),
)

aad = {"aad": ["volume-1", "namespace"]}
wrapped = call(
    "wrap_key",
    lambda: body(
        kp.wrap_key(id_, INSTANCE, key_action_wrap_body=stream({"plaintext": b64(b"twenty bytes of text"), **aad}))
    ),
)
call(
    "wrap_key (new data key)",
    lambda: equal(len(base64.b64decode(body(kp.wrap_key(id_, INSTANCE))["plaintext"])), 32),
)
ciphertext = wrapped["ciphertext"] if wrapped else ""
call("rotate_key", lambda: kp.rotate_key(id_, INSTANCE, key_action_rotate_body=stream({})))
call(
    "rotate_key (import)",
    lambda: kp.rotate_key(
        imported["id"], INSTANCE, key_action_rotate_body=stream({"payload": b64(os.urandom(32))})
    ),
)


def unwrap(text, keys):
    answer = body(kp.unwrap_key(id_, INSTANCE, stream({"ciphertext": text, **aad})))
    equal(base64.b64decode(answer["plaintext"]), b"twenty bytes of text")
    equal("rewrappedKeyVersion" in answer, keys == "old")
    return answer


call("unwrap_key", lambda: unwrap(ciphertext, "old"))
call(
    "unwrap_key (wrong aad)",
    lambda: kp.unwrap_key(id_, INSTANCE, stream({"ciphertext": ciphertext, "aad": ["volume-2"]})),
    refused=(422, "UNPROCESSABLE_CIPHERTEXT_ERR", "other authenticated data"),
)
call(
    "rewrap_key",
    lambda: unwrap(
        body(kp.rewrap_key(id_, INSTANCE, stream({"ciphertext": ciphertext, **aad})))["ciphertext"], "new"
    ),
)
call(
    "action_on_key",
    lambda: equal(
        body(kp.action_on_key(id_, INSTANCE, "unwrap", stream({"ciphertext": ciphertext, **aad})))["plaintext"],
        b64(b"twenty bytes of text"),
    ),
)
call(
    "get_key_versions",
    lambda: equal(
        body(kp.get_key_versions(id_, INSTANCE, limit=5, total_count=True))["metadata"]["totalCount"], 2
    ),
)

call("create_key_alias", lambda: kp.create_key_alias(id_, "conformance-alias", INSTANCE))
call("get_key (alias)", lambda: equal(first(kp.get_key("conformance-alias", INSTANCE))["id"], id_))
call("delete_key_alias", lambda: kp.delete_key_alias(id_, "conformance-alias", INSTANCE))

call("create_key_ring", lambda: kp.create_key_ring("conformance-ring", INSTANCE))
call(
    "list_key_rings",
    lambda: equal(
        {ring["id"] for ring in body(kp.list_key_rings(INSTANCE, total_count=True))["resources"]},
        {"default", "conformance-ring"},
    ),
)
call(
    "patch_key",
    lambda: equal(
        body(kp.patch_key(id_, INSTANCE, key_patch_body=stream({"keyRingID": "conformance-ring"})))[
            "resources"
        ][0]["keyRingID"],
        "conformance-ring",
    ),
)
call(
    "get_keys (ring)",
    lambda: equal(
        [key["id"] for key in body(kp.get_keys(INSTANCE, x_kms_key_ring="conformance-ring"))["resources"]],
        [id_],
    ),
)
call(
    "delete_key_ring (not empty)",
    lambda: kp.delete_key_ring("conformance-ring", INSTANCE),
    refused=(409, "", "a key is in it"),
)
call(
    "patch_key (back)",
    lambda: kp.patch_key(
        id_, INSTANCE, x_kms_key_ring="conformance-ring", key_patch_body=stream({"keyRingID": "default"})
    ),
)
call("delete_key_ring", lambda: kp.delete_key_ring("conformance-ring", INSTANCE, force=True))

rotation = {"type": POLICY, "rotation": {"enabled": True, "interval_month": 3}}
call("put_policy", lambda: kp.put_policy(id_, INSTANCE, envelope(POLICY, rotation), policy="rotation"))
call(
    "get_policy",
    lambda: equal(first(kp.get_policy(id_, INSTANCE, policy="rotation"))["rotation"]["interval_month"], 3),
)
metrics = {"policy_type": "metrics", "policy_data": {"enabled": True}}
call(
    "put_instance_policy",
    lambda: kp.put_instance_policy(INSTANCE, envelope(POLICY, metrics), policy="metrics"),
)
call(
    "get_instance_policy",
    lambda: equal(first(kp.get_instance_policy(INSTANCE, policy="metrics"))["policy_data"]["enabled"], True),
)
call("get_allowed_ip_port", lambda: equal(body(kp.get_allowed_ip_port(INSTANCE))["resources"], []))

call("post_import_token", lambda: kp.post_import_token(INSTANCE, expiration=600, max_allowed_retrievals=2))
token = call("get_import_token", lambda: body(kp.get_import_token(INSTANCE)))


def secure_import():
    payload, nonce, iv = sealed_for_import(token)
    more = {"encryptedNonce": nonce, "iv": iv, "encryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    key = first(kp.create_key(INSTANCE, new_key("conformance-secure-import", payload=payload, **more), prefer=rep))
    equal(key["imported"], True)


call("create_key (secure import)", secure_import)

call("get_registrations", lambda: equal(body(kp.get_registrations(id_, INSTANCE))["resources"], []))
call(
    "get_registrations_all_keys",
    lambda: equal(body(kp.get_registrations_all_keys(INSTANCE, total_count=True))["metadata"]["totalCount"], 0),
)
doomed = call("create_key (for sync)", lambda: first(kp.create_key(INSTANCE, new_key("conformance-doomed"), prefer=rep)))
doomed_id = doomed["id"] if doomed else id_
call("sync_associated_resources", lambda: kp.sync_associated_resources(doomed_id, INSTANCE))
dual = {"type": POLICY, "dualAuthDelete": {"enabled": True}}
call(
    "put_policy (dual authorization)",
    lambda: kp.put_policy(doomed_id, INSTANCE, envelope(POLICY, dual), policy="dualAuthDelete"),
)
call(
    "delete_key (not authorized)",
    lambda: kp.delete_key(doomed_id, INSTANCE),
    refused=(409, "AUTHORIZATIONS_NOT_MET", "nobody else has agreed"),
)
call("set_key_for_deletion", lambda: kp.set_key_for_deletion(doomed_id, INSTANCE))
call("unset_key_for_deletion", lambda: kp.unset_key_for_deletion(doomed_id, INSTANCE))
call("set_key_for_deletion (again)", lambda: kp.set_key_for_deletion(doomed_id, INSTANCE))
call("delete_key (by another person)", lambda: second.delete_key(doomed_id, INSTANCE))

call(
    "create_kmip_adapter",
    lambda: equal(
        body(
            kp.create_kmip_adapter(
                INSTANCE,
                {"collectionType": "application/vnd.ibm.kms.kmip_adapter+json", "collectionTotal": 1},
                [{"name": "conformance", "profile": "native_1.0", "profile_data": {"crk_id": id_}}],
            )
        )["resources"][0]["name"],
        "conformance",
    ),
)
call("get_kmip_adapter", lambda: kp.get_kmip_adapter("conformance", INSTANCE))
call(
    "get_kmip_adapters",
    lambda: equal(body(kp.get_kmip_adapters(INSTANCE, total_count=True))["metadata"]["totalCount"], 1),
)
call(
    "add_kmip_client_certificate",
    lambda: kp.add_kmip_client_certificate(
        "conformance",
        INSTANCE,
        {"collectionType": "application/vnd.ibm.kms.kmip_client_certificate+json", "collectionTotal": 1},
        [{"certificate": certificate(), "name": "conformance-certificate"}],
    ),
)
call(
    "get_kmip_client_certificate",
    lambda: kp.get_kmip_client_certificate("conformance", "conformance-certificate", INSTANCE),
)
call(
    "get_kmip_client_certificates",
    lambda: equal(len(body(kp.get_kmip_client_certificates("conformance", INSTANCE))["resources"]), 1),
)
call("get_kmip_objects", lambda: equal(body(kp.get_kmip_objects("conformance", INSTANCE))["resources"], []))
none = (404, "", "no KMIP client has made an object")
nobody = str(uuid.uuid4())
call("get_kmip_object", lambda: kp.get_kmip_object("conformance", INSTANCE, nobody), refused=none)
call("delete_kmip_object", lambda: kp.delete_kmip_object("conformance", INSTANCE, nobody), refused=none)
call(
    "delete_kmip_client_certificate",
    lambda: kp.delete_kmip_client_certificate("conformance", "conformance-certificate", INSTANCE),
)
call("delete_kmip_adapter", lambda: kp.delete_kmip_adapter("conformance", INSTANCE))

sleep_until(later)
call("enable_key", lambda: kp.enable_key(paused_id, INSTANCE))
call("restore_key", lambda: equal(first(kp.restore_key(spare_id, INSTANCE))["state"], 1))

report.missing(
    name
    for name, _ in inspect.getmembers(IbmKeyProtectApiV2, inspect.isfunction)
    if not name.startswith("_") and name in vars(IbmKeyProtectApiV2)
    # A constructor and a text function: neither calls anything.
    and name not in ("new_instance", "construct_service_url")
)
