"""Makes every public call of PyPI `keyprotect` 2.3.1 (redstone) once against a key service and
its Resource Controller."""

import inspect
import os
import time
import uuid

import keyprotect
import requests
from keyprotect import bxauth
from redstone.client import KeyProtect, ResourceController
from report import Report, certificate, equal, sealed_for_import, sleep_until

URL = os.environ["CLAVIGER_URL"]
INSTANCE = os.environ["CONFORMANCE_INSTANCE_ID"]
# The longest wait of Key Protect that a test can sit out: enable and restore come 30 s after the
# action before. This client's own tests wait 30 s.
WAIT = 31


def explain(error):
    http = getattr(error, "http_error", error)
    if isinstance(http, requests.HTTPError):
        return http.response.status_code, http.response.text
    return None, "%s: %s" % (type(error).__name__, error)


def credentials(api_key):
    return bxauth.TokenManager(api_key=api_key, iam_endpoint=URL)


def client(api_key):
    return keyprotect.Client(
        credentials=credentials(api_key), region="local", service_instance_id=INSTANCE, endpoint_url=URL
    )


kp = client(os.environ["CONFORMANCE_API_KEY"])
# The last of dual authorization's two people.
second = client(os.environ.get("CLAVIGER_API_KEY_2", os.environ["CONFORMANCE_API_KEY"]))
report = Report(explain)
call = report.call


def key(name, **more):
    made = call("create_key (%s)" % name, lambda: kp.create_key("conformance-%s" % name, root=True, **more))
    return made["id"] if made else str(uuid.uuid4())


call("create_key", lambda: equal(kp.create_key("conformance-plain")["extractable"], True))
id_ = key("root", alias_list=["conformance-1", "conformance-2"])
imported = key("imported", payload=os.urandom(32))
paused, spare, doomed = key("paused"), key("spare"), key("doomed")

# What has to be waited for begins first.
call("disable_key", lambda: kp.disable_key(paused))
call("delete_key", lambda: kp.delete_key(spare))
later = time.monotonic() + WAIT
call(
    "purge_key",
    lambda: kp.purge_key(spare),
    refused=(409, "REQ_TOO_EARLY_ERR", "four hours after the deletion"),
)

call("list_keys", lambda: equal(len(kp.list_keys()), 5))
call("get_key", lambda: equal(kp.get_key(id_)["aliases"], ["conformance-1", "conformance-2"]))
call("get_key (alias)", lambda: equal(kp.get_key("conformance-1")["id"], id_))
wrapped = call("wrap", lambda: kp.wrap(id_, b"twenty bytes of text", aad=["volume-1", "namespace"]))
call("wrap (new data key)", lambda: equal("plaintext" in kp.wrap(id_, b""), True))
ciphertext = wrapped["ciphertext"] if wrapped else ""
call("rotate_key", lambda: kp.rotate_key(id_))
call("rotate_key (import)", lambda: kp.rotate_key(imported, payload=os.urandom(32)))


def unwrap(text):
    equal(kp.unwrap(id_, text, aad=["volume-1", "namespace"]), b"twenty bytes of text")


call("unwrap", lambda: unwrap(ciphertext))
call("rewrap", lambda: unwrap(kp.rewrap(id_, ciphertext, aad=["volume-1", "namespace"])["ciphertext"]))
call(
    "unwrap (aad of null)",
    lambda: equal(kp.unwrap(id_, kp.wrap(id_, b"text", aad=[None])["ciphertext"], aad=[None]), b"text"),
)

call(
    "create_key_alias",
    lambda: equal(kp.create_key_alias(id_, "conformance-3")["resources"][0]["keyId"], id_),
)
call("delete_key_alias", lambda: kp.delete_key_alias(id_, "conformance-3"))
call("create_key_ring", lambda: kp.create_key_ring("conformance"))
call(
    "get_key_rings",
    lambda: equal({ring["id"] for ring in kp.get_key_rings()["resources"]}, {"default", "conformance"}),
)
call("set_key_ring", lambda: kp.set_key_ring(id_, "default", "conformance"))
call("set_key_ring (back)", lambda: kp.set_key_ring(id_, "conformance", "default"))
call("delete_key_ring", lambda: kp.delete_key_ring("conformance"))

call("create_import_token", lambda: kp.create_import_token(expiration=600, max_allowed_retrievals=2))
token = call("get_import_token", lambda: kp.get_import_token())
call("sealed for import", lambda: equal(len(sealed_for_import(token)), 3))

call(
    "set_key_rotation_policy",
    lambda: equal(kp.set_key_rotation_policy(id_, 2)["resources"][0]["rotation"]["interval_month"], 2),
)
call(
    "set_key_dual_auth_policy",
    lambda: equal(kp.set_key_dual_auth_policy(doomed, True)["resources"][0]["dualAuthDelete"]["enabled"], True),
)
call("get_key_policies", lambda: equal(len(kp.get_key_policies(id_)["resources"]), 1))
call("initiate_dual_auth_delete", lambda: kp.initiate_dual_auth_delete(doomed))
call("cancel_dual_auth_delete", lambda: kp.cancel_dual_auth_delete(doomed))
call("initiate_dual_auth_delete (again)", lambda: kp.initiate_dual_auth_delete(doomed))
call("delete_key (by another person)", lambda: second.delete_key(doomed))

call("set_instance_dual_auth_policy", lambda: kp.set_instance_dual_auth_policy(False))
call(
    "set_instance_allowed_network_policy",
    lambda: kp.set_instance_allowed_network_policy(True, "public-and-private"),
)
# Loopback stays allowed, or nothing else could be asked.
call("set_instance_allowed_ip_policy", lambda: kp.set_instance_allowed_ip_policy(True, ["127.0.0.1/32"]))
call(
    "set_instance_allowed_ip_policy (off)",
    lambda: kp.set_instance_allowed_ip_policy(False, ["127.0.0.1/32"]),
)
call(
    "set_instance_key_create_import_access_policy",
    lambda: kp.set_instance_key_create_import_access_policy(True, True, True, True, True, False),
)
call("set_instance_metrics_policy", lambda: kp.set_instance_metrics_policy(True))
call("get_instance_policies", lambda: equal(len(kp.get_instance_policies()["resources"]), 5))

call("get_registrations", lambda: equal(kp.get_registrations()["metadata"]["collectionTotal"], 0))
call("get_registrations (key)", lambda: equal(kp.get_registrations(id_)["metadata"]["collectionTotal"], 0))
call("sync_associated_resources", lambda: kp.sync_associated_resources(key("sync")))

call(
    "kmip_adapter_create",
    lambda: equal(kp.kmip_adapter_create("native_1.0", {"crk_id": id_}, "conformance")["name"], "conformance"),
)
call("kmip_adapter_get", lambda: kp.kmip_adapter_get("conformance"))
call(
    "kmip_adapter_list",
    lambda: equal(
        kp.kmip_adapter_list(show_total=True, filters={"crk_id": id_})["metadata"]["totalCount"], 1
    ),
)
call("kmip_cert_create", lambda: kp.kmip_cert_create("conformance", certificate(), "conformance"))
call("kmip_cert_get", lambda: kp.kmip_cert_get("conformance", "conformance"))
call("kmip_cert_list", lambda: equal(len(kp.kmip_cert_list("conformance")["resources"]), 1))
call("kmip_object_list", lambda: equal(kp.kmip_object_list("conformance", show_total=True)["resources"], []))
none = (404, "", "no KMIP client has made an object")
nobody = str(uuid.uuid4())
call("kmip_object_get", lambda: kp.kmip_object_get("conformance", nobody), refused=none)
call("kmip_object_delete", lambda: kp.kmip_object_delete("conformance", nobody), refused=none)
call("kmip_cert_delete", lambda: kp.kmip_cert_delete("conformance", "conformance"))
call("kmip_adapter_delete", lambda: kp.kmip_adapter_delete("conformance"))

rc = ResourceController(
    credentials=credentials(os.environ["CONFORMANCE_API_KEY"]), region="local", endpoint_url=URL
)
call("resource_groups", lambda: equal(len(rc.resource_groups()["resources"]), 1))
call("get_default_resource_group", rc.get_default_resource_group)
made = call("create_instance", lambda: rc.create_instance("conformance-calls", rc.KEYPROTECT_PLAN_ID))
guid, crn = made or (str(uuid.uuid4()), "crn:v1:bluemix:public:kms:local:a/none:none::")
call("list_instances", lambda: equal(guid in [one["guid"] for one in rc.list_instances()], True))
call("get_instance", lambda: equal(rc.get_instance(guid)["guid"], guid))
call("get_instance (CRN)", lambda: equal((rc.get_instance(crn) or {}).get("guid"), guid))
call("delete_instance", lambda: rc.delete_instance(crn))
call("get_instance (deleted)", lambda: equal(rc.get_instance(guid), None))

sleep_until(later)
call("enable_key", lambda: kp.enable_key(paused))
call("restore_key", lambda: kp.restore_key(spare))
call("restore_key (its state)", lambda: equal(kp.get_key(spare)["state"], 1))

# Names of one call that this client offers under two.
twice = {"create", "delete", "get", "keys", "rotate"}
report.missing(
    name
    for of in (KeyProtect, ResourceController)
    for name, _ in inspect.getmembers(of, inspect.isfunction)
    if not name.startswith("_") and name in vars(of) and name not in twice | {"endpoint_for_region"}
)
