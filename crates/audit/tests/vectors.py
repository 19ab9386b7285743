#!/usr/bin/env python3
"""Makes vectors.json from docs/formats.md, by a second implementation of the audit log.

Needs the Python package `cryptography`. Keys and times are fixed, so the output is always the
same: `python3 vectors.py > vectors.json`.
"""

import base64
import hashlib
import json
import struct
import uuid

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

WRITER = uuid.UUID("6f1d6f0c-7f0e-4f6a-8d0b-0c6a5a7b9e01")
SEED = hashlib.sha256(b"claviger audit vectors").digest()
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def u64(*numbers):
    return struct.pack(f">{len(numbers)}Q", *numbers)


class Segment:
    """A segment that is being written."""

    def __init__(self, sequence, start, before=None, ended=0, cut=0, writer=WRITER):
        self.sequence, self.start, self.writer = sequence, start, writer
        self.records = before.records if before else 0
        self.newest = before.newest if before else 0
        self.first_record = self.records + 1
        fields = b"claviger-audit-1\n" + bytes([ended]) + writer.bytes
        fields += u64(start, sequence, self.first_record, 1000 * sequence, self.newest)
        fields += u64(len(before.bytes) if before else 0, cut)
        fields += before.link if before else bytes(32)
        self.link = sha(fields)
        self.bytes = fields + self.link

    def frame(self, kind, payload):
        head = struct.pack(">IB", len(payload), kind)
        self.link = sha(self.link, head, payload)
        self.bytes += head + payload + self.link

    def group(self, *records, count=None):
        payload = struct.pack(">I", len(records) if count is None else count)
        for time, kind, body in records:
            payload += struct.pack(">HQH", len(body), time, kind) + body
            self.newest = max(self.newest, time)
        self.records += len(records)
        self.frame(1, payload)
        return self

    def statement(self, why, time, anchor=b"", offset=0, records=0):
        text = b"\x01" + bytes([why]) + self.writer.bytes
        text += u64(self.start, self.sequence, len(self.bytes) + offset, self.records + records, time)
        text += self.link + sha(PUBLIC)[:8] + struct.pack(">H", len(anchor)) + anchor
        return text

    def checkpoint(self, why, time, key=KEY, label=b"claviger audit checkpoint 1", **more):
        statement = self.statement(why, time, **more)
        signed = statement + key.sign(label + statement)
        self.frame(2, signed)
        return signed


def text(signed):
    return "claviger-audit-checkpoint-1:" + base64.b64encode(signed).decode()


def first():
    segment = Segment(1, 1)
    segment.group((5, 1, b"one"), (7, 2, b""))
    segment.group((6, 1, bytes(300)))
    return segment


def whole():
    """Two segments of one start, then one of another, which found a torn tail."""
    one = first()
    outside = [one.checkpoint(1, 20, anchor=b"row 17")]
    two = Segment(2, 1, one, ended=1).group((30, 1, b"four"))
    three = Segment(3, 2, two, ended=3, cut=9).group((40, 65535, b"five"), (41, 1, b"six"))
    outside.append(three.checkpoint(2, 50))
    return [one, two, three], outside


CASES = []


def case(name, segments, outside=(), finding=None, heads=None, changes=None):
    files = {f"{s.sequence:012}.segment": s.bytes for s in segments}
    for path, change in (changes or {}).items():
        files[path] = change(files[path])
    if heads is not None:
        files["heads"] = "".join(text(head) + "\n" for head in heads).encode()
    case = {"name": name, "files": {path: data.hex() for path, data in files.items()}}
    case["outside"] = [text(signed) for signed in outside]
    case["finding"] = finding
    if finding is None:
        case["from"] = segments[0].first_record
        case["to"] = segments[-1].records
    CASES.append(case)


segments, outside = whole()
case("three segments", segments, outside)
case("torn bytes that the next header knows of", segments, outside,
     changes={"000000000002.segment": lambda b: b + b"torn byte"})
case("fail: more bytes than it knows of", segments, [], "Extra",
     changes={"000000000002.segment": lambda b: b + b"torn bytes"})
case("fail: a byte of a body", segments, [], "Edited",
     changes={"000000000001.segment": lambda b: b.replace(b"one", b"One")})
case("fail: a byte of a header", segments, [], "Header",
     changes={"000000000002.segment": lambda b: b[:60] + b"\x01" + b[61:]})
case("fail: the second is missing", [segments[0], segments[2]], [], "Gap")
case("fail: the last is missing", segments[:2], outside, "Truncated")
case("fail: the last ends early", segments, [], "Torn",
     changes={"000000000003.segment": lambda b: b[:-1]})
case("fail: two ends early", segments, [], "Truncated",
     changes={"000000000002.segment": lambda b: b[:154]})
case("fail: two in the place of one", [segments[0]], [], "Misplaced",
     changes={"000000000001.segment": lambda _: segments[1].bytes})

rewritten = Segment(1, 1).group((5, 1, b"two"), (7, 2, b"")).group((6, 1, bytes(300)))
rewritten.checkpoint(1, 20, key=OTHER, anchor=b"row 17")
case("fail: another history", [rewritten], outside[:1], "Rewritten")
case("fail: signed by another key", [rewritten], [], "Forged")
for name, more in [("offset", {"offset": 1}), ("records", {"records": 1}),
                   ("label", {"label": b"claviger audit checkpoint 2"})]:
    forged = first()
    forged.checkpoint(0, 20, **more)
    case(f"fail: a checkpoint with another {name}", [forged], [], "Forged")

unsigned = first()
case("fail: a header says that a checkpoint ended it",
     [unsigned, Segment(2, 1, unsigned, ended=1)], [], "NoCheckpoint")
case("fail: it goes on from another end", [segments[0], Segment(2, 1, rewritten, ended=1)], [],
     "Chain")
case("fail: its writer found damage", [segments[0], Segment(2, 2, segments[0], ended=5)], [],
     "FoundDamaged")
foreign = Segment(2, 1, segments[0], ended=1, writer=uuid.UUID(int=1))
case("fail: another writer's", [segments[0], foreign], [], "Foreign")
for name, build in [
    ("no record", lambda s: s.group()),
    ("a count that is too high", lambda s: s.group((1, 1, b"x"), count=2)),
    ("a count that is too low", lambda s: s.group((1, 1, b"x"), (1, 1, b"y"), count=1)),
    ("an unknown kind", lambda s: s.frame(3, b"x")),
    ("a body that is too long", lambda s: s.group((1, 1, bytes(16385)))),
]:
    odd = Segment(1, 1)
    build(odd)
    case(f"fail: {name}", [odd], [], "Torn")

statement = segments[0].statement(3, 60)
head = statement + KEY.sign(b"claviger audit checkpoint 1" + statement)
case("the first was removed by retention", segments[1:], outside, heads=[head])
case("fail: the first was removed by nobody", segments[1:], outside, "Gap")
case("fail: a head of another key", segments[1:], [], "Heads",
     heads=[statement + OTHER.sign(b"claviger audit checkpoint 1" + statement)])

print(json.dumps({"public": PUBLIC.hex(), "writer": str(WRITER), "seed": SEED.hex(),
                  "cases": CASES}, indent=1))
