#!/usr/bin/env python3
"""Makes vectors.json from docs/formats.md, by a second implementation of the formats.

Needs the Python package `cryptography`. Salts and keys are fixed, so the output is always the
same: `python3 vectors.py > vectors.json`.
"""

import base64
import hashlib
import hmac
import json
import struct
import uuid

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def fixed(name, length):
    """Bytes that depend on the name alone."""
    return hashlib.shake_128(name.encode()).digest(length)


def expand(prk, info, length):
    """HKDF-Expand, RFC 5869 section 2.3."""
    out, block, number = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([number]), hashlib.sha256).digest()
        out, number = out + block, number + 1
    return out[:length]


def box(key, label, context, plaintext, salt):
    okm = expand(key, label + salt, 48)
    aad = b"".join(struct.pack(">I", len(part)) + part for part in context)
    sealed = AESGCM(okm[:32]).encrypt(bytes(12), plaintext, aad)
    return b"\x01" + salt + okm[32:] + sealed


def ident(name):
    return uuid.UUID(bytes=fixed(name, 16), version=4)


def wrapped(key, ids, aad, plaintext, salt, handle, shown_handle=None, form="claviger/1"):
    context = [i.bytes for i in ids] + [handle.bytes, struct.pack(">I", len(aad))]
    context += [a.encode() for a in aad]
    inner = b"\x01" + ids[2].bytes + box(key, b"claviger wrap 1", context, plaintext, salt)
    envelope = {
        "ciphertext": base64.b64encode(inner).decode(),
        "handle": str(shown_handle or handle),
        "version": form,
    }
    return base64.b64encode(json.dumps(envelope, separators=(",", ":")).encode()).decode()


def flip(data, at):
    data = bytearray(data)
    data[at] ^= 1
    return bytes(data)


out = {"sealed": [], "wrapped": [], "seed": [], "carried": [], "backup": []}

# Sealed boxes. The label is one that the test knows.
key, label, salt = fixed("sealed key", 32), b"vector", fixed("sealed salt", 24)
good = box(key, label, [b"a", b"bc"], b"secret", salt)


def sealed(name, sealed, opens=None, key=key, context=(b"a", b"bc")):
    out["sealed"].append({
        "name": name, "key": key.hex(), "context": [c.hex() for c in context],
        "sealed": sealed.hex(), "opens": None if opens is None else opens.hex(),
    })


sealed("two context parts", good, b"secret")
sealed("empty text, no context", box(key, label, [], b"", salt), b"", context=())
for length in (16, 24):
    short = fixed(f"sealed key {length}", length)
    sealed(f"key of {length} bytes", box(short, label, [], b"x", salt), b"x", short, ())
sealed("fails: other key", good, key=fixed("other", 32))
sealed("fails: context split elsewhere", good, context=(b"ab", b"c"))
sealed("fails: context in another order", good, context=(b"bc", b"a"))
sealed("fails: other label", box(key, b"other", [b"a", b"bc"], b"secret", salt))
sealed("fails: unknown version", b"\x02" + good[1:])
for name, at in (("salt", 1), ("commitment", 25), ("ciphertext", 41), ("tag", len(good) - 1)):
    sealed(f"fails: changed {name}", flip(good, at))
sealed("fails: cut", good[:-1])
sealed("fails: empty", b"")

# Wrapped DEKs.
key, salt = fixed("root material", 32), fixed("wrap salt", 24)
ids = [ident("instance"), ident("key"), ident("version")]
handle, dek = ident("handle"), fixed("dek", 32)


def wrap(name, text, aad=(), opens=None, ids=ids):
    out["wrapped"].append({
        "name": name, "material": key.hex(), "instance": str(ids[0]), "key": str(ids[1]),
        "version": str(ids[2]), "aad": list(aad), "text": text,
        "opens": None if opens is None else opens.hex(),
    })


aad = ["claviger kek 1", "", "ü"]
good = wrapped(key, ids, aad, dek, salt, handle)
wrap("with aad", good, aad, dek)
wrap("without aad", wrapped(key, ids, [], dek, salt, handle), [], dek)
wrap("empty plaintext", wrapped(key, ids, [], b"", salt, handle), [], b"")
wrap("fails: aad in another order", good, ["", "claviger kek 1", "ü"])
wrap("fails: aad missing", good)
wrap("fails: one aad too many", good, aad + [""])
wrap("fails: other key", good, aad, ids=[ids[0], ident("other"), ids[2]])
wrap("fails: other instance", good, aad, ids=[ident("other"), ids[1], ids[2]])
wrap("fails: other version", good, aad, ids=[ids[0], ids[1], ident("other")])
wrap("fails: rewritten handle", wrapped(key, ids, aad, dek, salt, handle, ident("other")), aad)
wrap("fails: another form", wrapped(key, ids, aad, dek, salt, handle, form="claviger/2"), aad)
wrap("fails: not base64", "%" + good[1:], aad)
wrap("fails: not JSON", base64.b64encode(b"{}").decode(), aad)

# KEKs: sealing a seed of kube-apiserver.
kek, salt, seed = fixed("kek", 32), fixed("seed salt", 24), fixed("seed", 32)
serial, key_id = 7, "v2:abcdefgh:7:01234567"


def seal_seed(serial, key_id, seed):
    number = struct.pack(">Q", serial)
    return number + box(kek, b"claviger seed 1", [number, key_id.encode()], seed, salt)


def seed_case(name, sealed, opens=None, serial=serial, key_id=key_id):
    out["seed"].append({
        "name": name, "kek": kek.hex(), "serial": serial, "key_id": key_id,
        "sealed": sealed.hex(), "opens": None if opens is None else opens.hex(),
    })


good = seal_seed(serial, key_id, seed)
seed_case("a seed", good, seed)
seed_case("fails: other serial", good, serial=8)
seed_case("fails: other key id", good, key_id="v2:abcdefgh:7:76543210")
seed_case("fails: serial rewritten", flip(good, 7), serial=6)
seed_case("fails: cut", good[:8])

# KEKs as records carry them.
carried = b"\x01" + struct.pack(">Q", 3) + b"".join(i.bytes for i in ids) + b"wrapped text"


def carried_case(name, data, reads):
    case = {"name": name, "bytes": data.hex(), "reads": reads}
    if reads:
        case |= {"serial": 3, "instance": str(ids[0]), "key": str(ids[1]),
                 "version": str(ids[2]), "wrapped": "wrapped text"}
    out["carried"].append(case)


carried_case("a carried KEK", carried, True)
carried_case("fails: unknown format", b"\x02" + carried[1:], False)
carried_case("fails: no wrapped text", carried[:57], False)
carried_case("fails: cut", carried[:40], False)
carried_case("fails: not UTF-8", carried + b"\xff", False)

# Backups.
recovery, master, bid = fixed("recovery", 32), fixed("master", 32), fixed("backup id", 16)


def backup(chunks, numbers=None, last=None):
    data = b"claviger-backup-1\n" + bid
    for at, chunk in enumerate(chunks):
        number = at if numbers is None else numbers[at]
        final = at == len(chunks) - 1 if last is None else last[at]
        context = [bid, struct.pack(">Q", number), bytes([final])]
        sealed = box(recovery, b"claviger backup 1", context, chunk, fixed(f"chunk {at}", 24))
        data += struct.pack(">I", len(sealed)) + sealed
    return data


def backup_case(name, data, reads=False):
    case = {"name": name, "recovery": recovery.hex(), "backup": data.hex()}
    case |= {"master": master.hex(), "database": b"onetwo".hex()} if reads else {"master": None}
    out["backup"].append(case)


good = backup([master, b"one", b"two"])
backup_case("two chunks of database", good, True)
backup_case("fails: chunks exchanged", backup([master, b"two", b"one"], [0, 2, 1]))
backup_case("fails: no last chunk", backup([master, b"one", b"two"], last=[0, 0, 0]))
backup_case("fails: something follows", good + b"x")
backup_case("fails: cut", good[:-1])
backup_case("fails: other id", flip(good, 18))

print(json.dumps(out, indent=1, ensure_ascii=False))
