"""What schemathesis itself does not ask, and where it would ask in vain."""

import base64
import json
import zlib

import requests
import schemathesis
from schemathesis.core.parameters import ParameterLocation

# What is there, by names of parameters: `usual`, and `spare` for what destroys or locks out.
with open("known.json", encoding="utf-8") as file:
    KNOWN = json.load(file)

DESTROYS = ("/disable", "/enable", "/restore", "/purge", "/setKeyForDeletion")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Random ids lead to 404 and nowhere else: nine in ten become those of something there.

    Which is a matter of the case alone, so that it comes out the same again. Where the case is
    about a wrong path or header, these stay as they are.
    """
    spare = case.method.upper() in ("DELETE", "PUT", "PATCH") or case.path.endswith(DESTROYS)
    known = KNOWN["spare" if spare else "usual"]
    number = zlib.crc32(repr((case.method, case.path, case.path_parameters, case.body)).encode())
    for location, container in (
        (ParameterLocation.PATH, case.path_parameters),
        (ParameterLocation.HEADER, case.headers),
    ):
        if case.meta is not None and case.meta.is_negative_at(location):
            continue
        for name in list(container or ()):
            number = number * 1103515245 + 12345 & 0x7FFFFFFF
            if name in known and (number >> 8) % 10:
                values = known[name]
                container[name] = values[(number >> 12) % len(values)]
    # Of random bodies hardly any names somebody who is there.
    bodies = KNOWN["bodies"].get(case.operation.definition.raw.get("operationId"))
    wrong = case.meta is not None and case.meta.is_negative_at(ParameterLocation.BODY)
    if bodies and not wrong and (number >> 9) % 2:
        case.body = bodies[(number >> 12) % len(bodies)]
    # It would end the token of whoever asks.
    if case.path == "/v3/signing-keys/rotate" and (case.query or {}).get("now") == "true":
        case.query["now"] = "false"
    # Policies of an instance can lock out whoever asks.
    if case.path == "/api/v2/instance/policies" and case.method.upper() == "PUT":
        if (case.headers or {}).get("Bluemix-Instance") in known["Bluemix-Instance"]:
            case.headers["Bluemix-Instance"] = KNOWN["locked"]


@schemathesis.hook
def map_body(context, body):
    """Puts the number of resources where Key Protect wants it, or hardly any list is read."""
    match body:
        case {"metadata": {"collectionTotal": int(total)}, "resources": list(resources)}:
            if total > 1 and resources:
                body["metadata"]["collectionTotal"] = len(resources)
    return body


def forged(token):
    """The same claims, signed by nobody who may."""
    head, claims, _ = token.split(".")
    signature = base64.urlsafe_b64encode(bytes(64)).decode().rstrip("=")
    return ".".join([head, claims, signature])


# Who may ask is a matter of the operation: each is tried once.
TRIED = set()


@schemathesis.check
def needs_credentials(ctx, response, case):
    """What an operation answers to its caller, it answers to nobody else."""
    security = case.operation.definition.raw.get("security")
    if not security or not 200 <= response.status_code < 300 or case.operation.label in TRIED:
        return
    TRIED.add(case.operation.label)
    asked = response.request
    others = [None]
    if "token" in security[0]:
        others.append("Bearer " + forged(asked.headers["Authorization"].removeprefix("Bearer ")))
    for other in others:
        again = asked.copy()
        again.headers.pop("Authorization", None)
        if other is not None:
            again.headers["Authorization"] = other
        # A session of its own: without the certificate of a node.
        with requests.Session() as session:
            with session.send(again, verify=response.verify, timeout=30, stream=True) as answer:
                if answer.status_code != 401:
                    how = "without credentials" if other is None else "to a forged token"
                    raise AssertionError(f"answered {answer.status_code}, not 401, {how}")
