"""Writes what each call of a client came to: one JSON line each, into the file that
CONFORMANCE_REPORT names.

Also a plugin for pytest (`-p report`), which writes the same for the tests of a suite that came
with the client; the suite itself stays as it is.
"""

import base64
import datetime
import json
import os
import time


class Report:
    """Makes calls and writes down whether each works."""

    def __init__(self, explain):
        # From the client's exception to (status, text with the reason codes).
        self.explain = explain
        self.made = set()

    def call(self, name, function, refused=None):
        """Calls it and returns what it returns, None if it fails.

        `refused` is (status, words, why) where the right answer is a refusal.
        """
        self.made.add(name.split(" ")[0])
        try:
            answer = function()
        except Exception as error:  # Whatever goes wrong is the result.
            status, said = self.explain(error)
            # "There is no such path" is never the refusal that was meant.
            meant = refused and status == refused[0] and "PATH_NOT_FOUND_ERR" not in said
            if meant and refused[1] in said:
                write(name, "works", "refused, as it should be: %s" % refused[2])
            else:
                write(name, "fails", "%s %s" % (status or "", gist(said)))
            return None
        if refused:
            write(name, "fails", "answered; a refusal was right: %s" % refused[2])
        else:
            write(name, "works", "")
        return answer

    def missing(self, names):
        """Writes down the calls that were never made."""
        for name in sorted(set(names) - self.made):
            write(name, "fails", "not called: what it needs did not work")


def gist(said):
    """The reason's code and message in an error of the key service; else the text itself."""
    try:
        error = json.loads(said)["resources"][0]
        reasons = [(reason["code"], reason["message"]) for reason in error.get("reasons", [])]
        return "; ".join(": ".join(reason) for reason in reasons) or error["errorMsg"]
    except (ValueError, KeyError, IndexError, TypeError):
        return said


def write(name, outcome, note):
    note = " ".join(note.split())[:300]
    line = json.dumps({"name": name, "outcome": outcome, "note": note})
    with open(os.environ["CONFORMANCE_REPORT"], "a") as file:
        file.write(line + "\n")


def equal(is_, should):
    """Fails a call that answered the wrong thing."""
    if is_ != should:
        raise AssertionError("%r instead of %r" % (is_, should))


def sleep_until(moment):
    time.sleep(max(0.0, moment - time.monotonic()))


def sealed_for_import(token):
    """New root key material as an import token wants it: (payload, encryptedNonce, iv)."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    material, iv = os.urandom(32), os.urandom(12)
    public = serialization.load_pem_public_key(base64.b64decode(token["payload"]))
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    nonce = AESGCM(material).encrypt(iv, base64.b64decode(token["nonce"]), None)
    return tuple(
        base64.b64encode(part).decode() for part in (public.encrypt(material, oaep), nonce, iv)
    )


def certificate():
    """A self-signed client certificate in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "conformance")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def pytest_runtest_logreport(report):
    """pytest's hook: called after set-up, call and tear-down of each test."""
    name = report.nodeid.split("::")[-1]
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash else str(report.longrepr)
        write(name, "fails", " ".join(said.split())[:300])
    elif report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        write(name, "left out", why.removeprefix("Skipped: "))
    elif report.when == "call":
        write(name, "works", "")
