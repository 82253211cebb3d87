#!/usr/bin/env python3
"""Writes the known-answer vectors beside it, from docs/format.md alone.

It shares no code with kms-proxy nor with the reader in tests/decryptor. Keys and nonces are SHA-256 of labels, so
every run writes the same bytes. Usage: make.py [DIRECTORY], by default its own.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import re
import string
import sys
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NAMES = {1: "aes-128-gcm", 2: "aes-256-gcm"}
KEY_LEN = {1: 16, 2: 32}


def derive(label: str, size: int) -> bytes:
    """Bytes for a label: a key or a nonce."""
    return hashlib.sha256(b"kms-proxy vectors 1: " + label.encode()).digest()[:size]


def kek_id(kek: bytes) -> bytes:
    return HKDF(SHA256(), 16, None, b"kms-proxy kek id v1").derive(kek)


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


CHUNK = 16_384
GCM_NAMES = {1: b"AEAD_AES_128_GCM", 2: b"AEAD_AES_256_GCM"}


def expand(key: bytes, info: bytes, size: int, digest: str = "sha512") -> bytes:
    """HKDF-Expand of RFC 5869, section 2.3."""
    out, block, counter = b"", b"", 1
    while len(out) < size:
        block = hmac.digest(key, block + info + bytes([counter]), digest)
        out, counter = out + block, counter + 1
    return out[:size]


def nonce_of(base: bytes, index: int) -> bytes:
    return (int.from_bytes(base, "big") ^ index).to_bytes(12, "big")


def record(*wraps: tuple[bytes, bytes]) -> bytes:
    return b"\x01" + b"".join(bytes([len(root)]) + root + u16(len(wrap)) + wrap for root, wrap in wraps)


@dataclass(frozen=True)
class Message:
    """What an envelope is made of. What is None follows from the rest; what is set may well be wrong."""

    suite: int = 1
    version: int = 1
    chain: bytes = b"orders"
    aad: bytes = b"row 7"
    plaintext: bytes = b"hello"
    record: bytes | None = None
    kek: bytes | None = None
    dek: bytes | None = None
    wrap_nonce: bytes | None = None
    payload_nonce: bytes = bytes(12)
    kek_id: bytes | None = None
    version_byte: int | None = None
    suite_byte: int | None = None
    wrap_aad: bytes | None = None
    data_aad: bytes | None = None
    # Versions 3 and 4.
    salt: bytes | None = None
    commitment: bytes | None = None
    pieces: tuple[bytes, ...] | None = None
    first_index: int = 0
    gcm_name: bytes | None = None
    digest: str = "sha512"

    def __post_init__(self) -> None:
        of = f"{NAMES[self.suite]} version {self.version} chain {self.chain.decode()}"
        starts = range(0, len(self.plaintext) + 1, CHUNK)
        defaults = {
            "record": record((b"main", derive("a root's wrap", 44))) if self.version in (2, 4) else b"",
            "kek": derive(f"kek {of}", KEY_LEN[self.suite]),
            "dek": derive(f"dek {of} {self.plaintext.hex()}", KEY_LEN[self.suite]),
            "wrap_nonce": derive(f"nonce {of} {self.plaintext.hex()}", 12),
            "salt": derive(f"salt {of} {self.plaintext.hex()}", 24),
            "pieces": tuple(self.plaintext[start : start + CHUNK] for start in starts),
            "gcm_name": GCM_NAMES[self.suite],
            "version_byte": self.version,
            "suite_byte": self.suite,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def is_stream(self) -> bool:
        return self.version in (3, 4)

    def header_fields(self) -> list[bytes]:
        kid = kek_id(self.kek) if self.kek_id is None else self.kek_id
        codes = bytes([self.version_byte, self.suite_byte])
        chain = u16(len(self.chain)) + self.chain
        carried = [u16(len(self.record)), self.record] if self.version in (2, 4) else []
        wrap_aad = b"kms-proxy dek v1" + codes + kid + chain + b"".join(carried)
        wrap = AESGCM(self.kek).encrypt(self.wrap_nonce, self.dek, wrap_aad if self.wrap_aad is None else self.wrap_aad)
        dek_len = len(self.dek)
        return [codes[:1], codes[1:], kid, *carried, self.wrap_nonce, wrap[:dek_len], wrap[dek_len:]]

    def payload_fields(self) -> list[bytes]:
        tag = b"kms-proxy stream v1" if self.is_stream() else b"kms-proxy data v1"
        chain = u16(len(self.chain)) + self.chain
        aad = tag + bytes([self.suite_byte]) + chain + len(self.aad).to_bytes(4, "big") + self.aad
        aad = aad if self.data_aad is None else self.data_aad
        if not self.is_stream():
            payload = AESGCM(self.dek).encrypt(self.payload_nonce, self.plaintext, aad)
            return [payload[: len(self.plaintext)], payload[len(self.plaintext) :]]
        size = KEY_LEN[self.suite]
        info = b"c2sp.org/chunked-encryption@v1+" + self.gcm_name + b"\x00" + self.salt + aad
        derived = expand(self.dek, info, size + 12 + 32, self.digest)
        gcm, base = AESGCM(derived[:size]), derived[size : size + 12]
        commitment = derived[size + 12 :] if self.commitment is None else self.commitment
        chunks = [gcm.encrypt(nonce_of(base, self.first_index + i), piece, b"") for i, piece in enumerate(self.pieces)]
        return [self.salt, commitment, *chunks]

    def fields(self) -> list[bytes]:
        """The envelope, field by field."""
        return [*self.header_fields(), *self.payload_fields()]

    def names(self) -> list[str]:
        carried = ["kek_len", "record"] if self.version in (2, 4) else []
        header = ["version", "suite", "kek_id", *carried, "wrap_nonce", "wrapped_dek", "wrap tag"]
        if self.is_stream():
            return [*header, "salt", "commitment", *(f"chunk {i}" for i in range(len(self.pieces)))]
        return [*header, "payload", "payload tag"]

    def envelope(self) -> bytes:
        return b"".join(self.fields())

    def header(self) -> bytes:
        return b"".join(self.header_fields())

    def with_field(self, name: str, change) -> bytes:
        fields = self.fields()
        i = self.names().index(name)
        fields[i] = change(fields[i])
        return b"".join(fields)


def rules() -> dict[str, str]:
    """The rules of docs/format.md by name, each with the reason for a refusal."""
    document = pathlib.Path(__file__).parents[2] / "docs" / "format.md"
    _, section = document.read_text(encoding="utf-8").split("\n### The rules\n")
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \| [^|]+ \| ([^|]+) \|$", section.split("\n#")[0])
    return {name: reason.replace("`", "") for name, reason in rows}


RULES = rules()


def verdict(rule: str | None) -> dict:
    return {"valid": False, "rule": rule, "reason": RULES[rule]} if rule else {"valid": True}


class Vectors:
    def __init__(self) -> None:
        self.list: list[dict] = []

    def write(self, path: pathlib.Path) -> None:
        path.parent.mkdir(exist_ok=True)
        lines = ",\n".join(json.dumps(vector) for vector in self.list)
        path.write_text(f"[\n{lines}\n]\n", encoding="ascii")

    def add(self, rule: str | None, comment: str, m: Message, envelope: bytes | None = None, **given) -> None:
        """One vector: `given` is what the reader has in place of the writer's own chain, kek and aad, and the id under
        which it has the KEK. `rule` is the first one that it breaks."""
        kek, suite = given.get("kek", m.kek), given.get("suite", m.suite)
        self.list.append({
            "comment": comment,
            "suite": NAMES[suite],
            "chain": given.get("chain", m.chain).decode(),
            "kek": kek.hex(),
            "aad": given.get("aad", m.aad).hex(),
            "plaintext": "" if rule else m.plaintext.hex(),
            "envelope": (m.envelope() if envelope is None else envelope).hex(),
            **({"kek_id": given["kek_id"].hex()} if "kek_id" in given else {}),
            **verdict(rule),
        })  # fmt: skip

    def opens(self, comment: str, m: Message, envelope: bytes | None = None, **given) -> None:
        self.add(None, comment, m, envelope, **given)

    def fails(self, rule: str, comment: str, m: Message, envelope: bytes | None = None, **given) -> None:
        self.add(rule, comment, m, envelope, **given)


def flip(bit: int):
    """Flips one bit, counted from the first byte's lowest."""

    def change(field: bytes) -> bytes:
        return field[: bit // 8] + bytes([field[bit // 8] ^ 1 << bit % 8]) + field[bit // 8 + 1 :]

    return change


def kinds(versions: tuple[int, ...] = (1, 2)) -> list[tuple[str, Message]]:
    return [(f"{NAMES[s]}, version {v}", Message(suite=s, version=v)) for s in (1, 2) for v in versions]


EXAMPLE = Message(kek=bytes(range(16)), dek=bytes(range(16, 32)), wrap_nonce=bytes(range(32, 44)))
EXAMPLE_2 = replace(
    EXAMPLE, version=2, version_byte=2, record=record((b"main", b"\xaa\xbb\xcc")), wrap_nonce=EXAMPLE.wrap_nonce[::-1]
)


EXAMPLE_3 = replace(
    EXAMPLE, version=3, version_byte=3, salt=bytes(range(64, 88)), pieces=(b"hello",), wrap_nonce=bytes(range(48, 60))
)


def opening() -> Vectors:
    v = Vectors()
    v.opens("the example of docs/format.md", EXAMPLE)
    v.opens("the version 2 example of docs/format.md", EXAMPLE_2)
    for kind, m in kinds():
        for size in (0, 1, 15, 16, 17, 256):
            v.opens(f"{kind}: {size} bytes", Message(suite=m.suite, version=m.version, plaintext=bytes(range(size))))
        v.opens(f"{kind}: empty AAD", replace(m, aad=b""))
        empty = Message(suite=m.suite, version=m.version, aad=b"", plaintext=b"")
        v.opens(f"{kind}: empty plaintext, empty AAD", empty)
        v.opens(f"{kind}: UTF-8 AAD", replace(m, aad="Zürich, 東京, \N{KEY}".encode()))
        v.opens(f"{kind}: AAD of every byte value", replace(m, aad=bytes(range(256))))
        v.opens(f"{kind}: chain of 63 bytes", Message(suite=m.suite, version=m.version, chain=b"a.b_c-9" * 9))
        v.opens(f"{kind}: chain of 1 byte", Message(suite=m.suite, version=m.version, chain=b"0"))
    two = Message(version=2, record=record((b"main", derive("one", 28)), (b"dr", derive("two", 32) * 8)))
    v.opens("a record of two wraps", two)
    v.opens("a record of the smallest size", Message(version=2, record=record((b"r", b"w"))))
    longest = record((b"r" * 255, b"w" * 1024))
    v.opens("a root's name of 255 bytes and a wrap of 1,024", Message(version=2, record=longest))
    v.opens("a root's name in UTF-8", Message(version=2, record=record(("Wurzel 根".encode(), b"w"))))
    moved = replace(EXAMPLE, kek=derive("a newer kek", 16), wrap_nonce=derive("a newer nonce", 12))
    rewrapped = moved.header() + EXAMPLE.envelope()[62:]
    v.opens("the example's payload under a rewrapped header", EXAMPLE, rewrapped, kek=moved.kek)
    return v


# The rule that a changed bit of a field breaks, the first of its first byte and the last of its last byte; and the rule
# that an envelope breaks which ends before the field.
FLIPPED = {
    "version": ("version", None),
    "suite": ("suite", "suite"),
    "kek_id": ("kek-unknown", "kek-unknown"),
    "kek_len": ("record-length", "record-end"),
    "record": ("record-format", "wrap"),
    "wrap_nonce": ("wrap", "wrap"),
    "wrapped_dek": ("wrap", "wrap"),
    "wrap tag": ("wrap", "wrap"),
    "payload": ("payload", "payload"),
    "payload tag": ("payload", "payload"),
    "salt": ("commitment", "commitment"),
    "commitment": ("commitment", "commitment"),
    "chunk 0": ("chunk", "chunk"),
}
# With another version in its first byte: what follows kek_id is read as a record's length, and is too large, or a
# record is read as the start of a wrap.
RELABELLED = {
    (1, 2): "record-length",
    (2, 1): "wrap",
    **{(3, 1): "wrap", (3, 2): "record-length", (3, 4): "record-length"},
    **{(4, 1): "wrap", (4, 2): "wrap", (4, 3): "wrap"},
}
# Version 2 becomes 3, with 63 bytes of payload; version 3 becomes 2.
LAST_BIT_OF_VERSION = {1: "version", 2: "payload-length", 3: "record-length", 4: "version"}
# Read as of the other suite, 16 bytes of the payload are part of the wrap, and less remain than a payload has; or 16 of
# the wrap are part of the payload.
OTHER_SUITE = {1: "payload-length", 2: "kek-size"}
# A DEK of the other suite's size.
OTHER_DEK = {1: "wrap", 2: "payload-length"}
OF_PAYLOAD = ("payload", "payload tag", "salt", "commitment", "chunk 0")


def ends_before(name: str) -> str:
    return "payload-length" if name in OF_PAYLOAD else "record-length" if name == "record" else "header-length"


def changed_fields(v: Vectors, kind: str, m: Message):
    """Each field with a bit flipped, and cut off before it."""
    good, fields, names = m.envelope(), m.fields(), m.names()
    for name, field in zip(names, fields, strict=True):
        first, last = FLIPPED[name]
        last = last or LAST_BIT_OF_VERSION[m.version]
        v.fails(first, f"{kind}: first bit of {name} flipped", m, m.with_field(name, flip(7)))
        v.fails(last, f"{kind}: last bit of {name} flipped", m, m.with_field(name, flip(8 * len(field) - 8)))
    cut = 0
    for name, field in zip(names, fields, strict=True):
        where = "empty input" if cut == 0 else f"ends before {name}"
        v.fails(ends_before(name), f"{kind}: {where}", m, good[:cut])
        cut += len(field)
    v.fails("chunk" if m.is_stream() else "payload", f"{kind}: ends a byte early", m, good[:-1])


def tampered() -> Vectors:
    """Good envelopes that were changed, or that are read with what they were not made with."""
    v = Vectors()
    for kind, m in kinds():
        good = m.envelope()
        changed_fields(v, kind, m)
        v.fails("payload", f"{kind}: trailing byte", m, good + b"\0")
        v.fails("payload-length", f"{kind}: payload of 15 bytes", m, m.header() + good[-15:])
        v.fails("payload", f"{kind}: AAD one byte longer", m, aad=b"row 7\0")
        v.fails("payload", f"{kind}: AAD one byte shorter", m, aad=b"row ")
        v.fails("payload", f"{kind}: no AAD", m, aad=b"")
        v.fails("wrap", f"{kind}: another chain", m, chain=b"invoices")
        v.fails("wrap", f"{kind}: chain's end moved into the AAD", m, chain=b"order", aad=b"srow 7")
        v.fails("kek-unknown", f"{kind}: another KEK", m, kek=derive("another kek", KEY_LEN[m.suite]))
        other = Message(suite=m.suite, version=m.version, plaintext=b"world")
        v.fails("payload", f"{kind}: header of one on payload of another", m, other.header() + good[len(m.header()) :])
        relabelled = bytes([3 - m.version]) + good[1:]
        v.fails(RELABELLED[m.version, 3 - m.version], f"{kind}: relabelled as version {3 - m.version}", m, relabelled)
        other_suite = good[:1] + bytes([3 - m.suite]) + good[2:]
        v.fails(OTHER_SUITE[m.suite], f"{kind}: relabelled as the other suite", m, other_suite)
        v.fails("version", f"{kind}: text form in place of bytes", m, b"kp:" + base64.b64encode(good))
    one, two = Message(), Message(version=2)
    fields, carried = one.fields(), two.fields()[3:5]
    v.fails("wrap", "record put into a version 1 header", one, b"".join([b"\x02", *fields[1:3], *carried, *fields[3:]]))
    fields = two.fields()
    v.fails("wrap", "record taken out of a version 2 header", two, b"".join([b"\x01", *fields[1:3], *fields[5:]]))
    swapped = replace(two, record=record((b"main", derive("another wrap", 44))))
    bad = two.with_field("record", lambda _: swapped.record)
    v.fails("wrap", "record of another envelope of the same KEK", two, bad)
    return v


def wrong() -> Vectors:
    """Sealed with all keys at hand, but not as the format says: only a check of the reader refuses them."""
    v = Vectors()
    for kind, m in kinds():
        n = KEY_LEN[m.suite]
        chain = u16(len(m.chain)) + m.chain
        start = b"kms-proxy data v1" + bytes([m.suite])
        v.fails("version", f"{kind}: sealed with version byte 0", replace(m, version_byte=0))
        v.fails("payload-length", f"{kind}: sealed with version byte 3", replace(m, version_byte=3))
        v.fails("suite", f"{kind}: sealed with suite byte 0", replace(m, suite_byte=0))
        v.fails("suite", f"{kind}: sealed with suite byte 3", replace(m, suite_byte=3))
        unknown = replace(m, kek_id=kek_id(derive("another kek", n)))
        v.fails("kek-unknown", f"{kind}: sealed with another KEK's id", unknown)
        v.fails("kek-size", f"{kind}: KEK of the other suite's size", replace(m, kek=derive("other size", 48 - n)))
        other_dek = replace(m, dek=derive("other dek", 48 - n))
        v.fails(OTHER_DEK[m.suite], f"{kind}: DEK of the other suite's size", other_dek)
        v.fails("payload", f"{kind}: payload's nonce is not zero", replace(m, payload_nonce=bytes(11) + b"\x01"))
        v.fails("payload", f"{kind}: payload sealed with the raw AAD alone", replace(m, data_aad=m.aad))
        v.fails("payload", f"{kind}: payload sealed without lengths", replace(m, data_aad=start + m.chain + m.aad))
        shifted = start + u16(5) + b"order" + (6).to_bytes(4, "big") + b"srow 7"
        moved = replace(m, data_aad=shifted)
        v.fails("payload", f"{kind}: payload sealed with the boundary of chain and AAD moved", moved)
        short = replace(m, data_aad=start + chain + u16(5) + m.aad)
        v.fails("payload", f"{kind}: payload sealed with a u16 length", short)
        other = start[:-1] + bytes([3 - m.suite]) + chain + (5).to_bytes(4, "big") + m.aad
        v.fails("payload", f"{kind}: payload sealed for the other suite", replace(m, data_aad=other))
        v.fails("wrap", f"{kind}: wrap sealed without AAD", replace(m, wrap_aad=b""))
        named = b"kms-proxy dek v1" + bytes([m.version, m.suite]) + kek_id(m.kek)
        v.fails("wrap", f"{kind}: wrap sealed without the chain", replace(m, wrap_aad=named))
    two = Message(version=2)
    bare = b"kms-proxy dek v1\x02\x01" + kek_id(two.kek) + b"\x00\x06orders"
    v.fails("wrap", "wrap sealed without the carried record", replace(two, wrap_aad=bare))
    for comment, (rule, bad) in {
        "empty record": ("record-format", b""),
        "record without a wrap": ("record-empty", b"\x01"),
        "record of format 0": ("record-format", b"\x00" + record((b"main", b"wrap"))[1:]),
        "record of format 2": ("record-format", b"\x02" + record((b"main", b"wrap"))[1:]),
        "record with an empty name": ("record-part", record((b"", b"wrap"))),
        "record with an empty wrap": ("record-part", record((b"main", b""))),
        "record with an empty second wrap": ("record-part", record((b"main", b"wrap"), (b"dr", b""))),
        "record with a name that is not UTF-8": ("record-name", record((b"ma\xffn", b"wrap"))),
        "record with an overlong UTF-8 name": ("record-name", record((b"\xc0\xaf", b"wrap"))),
        "record that ends in a name": ("record-end", record((b"main", b"wrap")) + b"\x03dr"),
        "record that ends in a length": ("record-end", record((b"main", b"wrap")) + b"\x02dr\x00"),
        "record that ends in a wrap": ("record-end", record((b"main", b"wrap"))[:-1]),
        "record with a trailing byte": ("record-end", record((b"main", b"wrap")) + b"\x00"),
    }.items():
        v.fails(rule, comment, Message(version=2, record=bad))
    for chain in (b"", b"a" * 64, b"Orders", b"-orders", b"or/ders", b"orders\n", "örders".encode()):
        v.fails("chain-name", f"no chain's name: {chain[:8].decode()!r} of {len(chain)} bytes", Message(chain=chain))
    kek, dek = derive("kek of 24", 24), derive("dek of 24", 24)
    v.fails("kek-size", "KEK of 24 bytes", Message(kek=kek))
    v.fails("kek-size", "KEK of 24 bytes, and DEK too", Message(kek=kek, dek=dek))
    for kind, m in kinds((1, 2, 3, 4)):
        named = kek_id(derive("another kek", KEY_LEN[m.suite]))
        v.fails("kek-id", f"{kind}: a KEK that is not the one of its id", replace(m, kek_id=named), kek_id=named)
    return v


def long_aad() -> Vectors:
    v = Vectors()
    v.opens("AAD of 65,536 bytes, the longest", Message(aad=b"a" * 65_536))
    v.fails("aad-length", "AAD of 65,537 bytes", Message(aad=b"a" * 65_537))
    return v


def context_aad(context: dict[str, str]) -> bytes:
    pairs = sorted((key.encode(), value.encode()) for key, value in context.items())
    return b"kms-proxy aws context v1" + b"".join(u16(len(text)) + text for pair in pairs for text in pair)


MAGIC = bytes.fromhex("926b29af")


def head(chain: bytes) -> bytes:
    return MAGIC + b"\x01" + bytes([len(chain)]) + chain


def pattern(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


def opening_streams() -> Vectors:
    v = Vectors()
    v.opens("the version 3 example of docs/format.md", EXAMPLE_3)
    for kind, m in kinds((3, 4)):
        for size in (0, 1, 15, 16, 17, 256):
            v.opens(f"{kind}: {size} bytes", Message(suite=m.suite, version=m.version, plaintext=bytes(range(size))))
        v.opens(f"{kind}: empty AAD", replace(m, aad=b""))
        empty = Message(suite=m.suite, version=m.version, aad=b"", plaintext=b"")
        v.opens(f"{kind}: empty plaintext, empty AAD", empty)
        v.opens(f"{kind}: AAD of every byte value", replace(m, aad=bytes(range(256))))
        v.opens(f"{kind}: chain of 63 bytes", Message(suite=m.suite, version=m.version, chain=b"a.b_c-9" * 9))
    for size in (CHUNK - 1, CHUNK, CHUNK + 1):
        v.opens(f"a stream of {size} bytes", Message(version=3, plaintext=pattern(size)))
    v.opens("a stream of 32,768 bytes", Message(suite=2, version=4, plaintext=pattern(2 * CHUNK)))
    three, four = Message(version=3), Message(version=4)
    payload = b"".join(three.payload_fields())
    newer = {"kek": derive("a newer kek", 16), "wrap_nonce": derive("a newer nonce", 12)}
    moved = replace(three, **newer)
    v.opens("a stream under a rewrapped header", three, moved.header() + payload, kek=moved.kek)
    moved = replace(four, dek=three.dek, **newer)
    v.opens("a stream under a rewrapped header of version 4", three, moved.header() + payload, kek=moved.kek)
    return v


def tampered_streams() -> Vectors:
    v = Vectors()
    for kind, m in kinds((3, 4)):
        good, fields = m.envelope(), m.fields()
        changed_fields(v, kind, m)
        v.fails("payload-length", f"{kind}: ends after the chunk's first byte", m, good[: -len(fields[-1]) + 1])
        v.fails("chunk", f"{kind}: trailing byte", m, good + b"\0")
        v.fails("commitment", f"{kind}: AAD one byte longer", m, aad=b"row 7\0")
        v.fails("commitment", f"{kind}: no AAD", m, aad=b"")
        v.fails("wrap", f"{kind}: another chain", m, chain=b"invoices")
        v.fails("wrap", f"{kind}: chain's end moved into the AAD", m, chain=b"order", aad=b"srow 7")
        v.fails("kek-unknown", f"{kind}: another KEK", m, kek=derive("another kek", KEY_LEN[m.suite]))
        other = Message(suite=m.suite, version=m.version, plaintext=b"world")
        joined = other.header() + good[len(m.header()) :]
        v.fails("commitment", f"{kind}: header of one on payload of another", m, joined)
        mixed = [*fields[:-1], other.fields()[-1]]
        v.fails("chunk", f"{kind}: the chunk of another message", m, b"".join(mixed))
        for version in {1, 2, 3, 4} - {m.version}:
            relabelled = bytes([version]) + good[1:]
            v.fails(RELABELLED[m.version, version], f"{kind}: relabelled as version {version}", m, relabelled)
        other_suite = good[:1] + bytes([3 - m.suite]) + good[2:]
        v.fails(OTHER_SUITE[m.suite], f"{kind}: relabelled as the other suite", m, other_suite)
        v.fails("version", f"{kind}: text form in place of bytes", m, b"kp:" + base64.b64encode(good))
    two = Message(version=3, plaintext=pattern(CHUNK + 5))
    other = Message(version=3, plaintext=pattern(CHUNK + 6), dek=two.dek, salt=derive("another salt", 24))
    *start, first, last = two.fields()
    for comment, (rule, chunks) in {
        "without its last chunk": ("last-chunk", [first]),
        "without its first chunk": ("chunk", [last]),
        "with its last chunk twice": ("chunk", [first, last, last]),
        "with its chunks in the other order": ("chunk", [last, first]),
        "with the last chunk of another message under the same DEK": ("chunk", [first, other.fields()[-1]]),
    }.items():
        v.fails(rule, f"a stream {comment}", two, b"".join([*start, *chunks]))
    three = Message(suite=2, version=4, plaintext=pattern(2 * CHUNK + 5))
    *start, first, second, last = three.fields()
    for comment, chunks in {
        "with two full chunks swapped": [second, first, last],
        "without a chunk in the middle": [first, last],
        "with a full chunk twice": [first, first, last],
    }.items():
        v.fails("chunk", f"a stream {comment}", three, b"".join([*start, *chunks]))
    return v


def wrong_streams() -> Vectors:
    v = Vectors()
    for kind, m in kinds((3, 4)):
        n = KEY_LEN[m.suite]
        chain = u16(len(m.chain)) + m.chain
        start = b"kms-proxy stream v1" + bytes([m.suite])
        end = (5).to_bytes(4, "big") + m.aad
        v.fails("version", f"{kind}: sealed with version byte 5", replace(m, version_byte=5))
        v.fails("suite", f"{kind}: sealed with suite byte 3", replace(m, suite_byte=3))
        unknown = replace(m, kek_id=kek_id(derive("another kek", n)))
        v.fails("kek-unknown", f"{kind}: sealed with another KEK's id", unknown)
        other_dek = replace(m, dek=derive("other dek", 48 - n))
        v.fails(OTHER_DEK[m.suite], f"{kind}: DEK of the other suite's size", other_dek)
        tagged = b"kms-proxy data v1" + start[19:] + chain + end
        v.fails("commitment", f"{kind}: the context has the tag of a message", replace(m, data_aad=tagged))
        v.fails("commitment", f"{kind}: the context is the raw AAD alone", replace(m, data_aad=m.aad))
        v.fails("commitment", f"{kind}: the context has no lengths", replace(m, data_aad=start + m.chain + m.aad))
        other = start[:-1] + bytes([3 - m.suite]) + chain + end
        v.fails("commitment", f"{kind}: the context is of the other suite", replace(m, data_aad=other))
        v.fails("wrap", f"{kind}: wrap sealed for version {m.version - 2}", replace(
            m, wrap_aad=b"kms-proxy dek v1" + bytes([m.version - 2, m.suite]) + kek_id(m.kek) + chain
            + (u16(len(m.record)) + m.record if m.version == 4 else b"")
        ))  # fmt: skip
        v.fails("commitment", f"{kind}: a commitment of zeros", replace(m, commitment=bytes(32)))
        other_name = replace(m, gcm_name=GCM_NAMES[3 - m.suite])
        v.fails("commitment", f"{kind}: keys derived with the other AEAD's name", other_name)
        v.fails("commitment", f"{kind}: keys derived with SHA-256", replace(m, digest="sha256"))
        v.fails("chunk", f"{kind}: chunks counted from 1", replace(m, first_index=1))
        v.fails("chunk", f"{kind}: a short chunk before the last", replace(m, pieces=(b"hel", b"lo")))
        v.fails("chunk", f"{kind}: an empty chunk after a short one", replace(m, pieces=(b"hello", b"")))
        whole = replace(m, version=m.version - 2, plaintext=bytes(100), dek=m.dek)
        message = m.header() + b"".join(whole.payload_fields())
        v.fails("commitment", f"{kind}: a message of version {m.version - 2} as payload", m, message)
        relabelled = replace(m, version_byte=m.version - 2)
        v.fails("payload", f"{kind}: chunks behind a header of version {m.version - 2}", relabelled)
    full = Message(version=3, plaintext=pattern(CHUNK), pieces=(pattern(CHUNK),))
    v.fails("last-chunk", "a stream whose last chunk is full", full)
    long = Message(version=3, plaintext=b"", pieces=(pattern(CHUNK + 1),))
    v.fails("last-chunk", "a stream whose chunk is too long", long)
    return v


def kek_ids() -> Vectors:
    """KEKs and their ids, by HMAC alone: HKDF-Extract and HKDF-Expand of RFC 5869, sections 2.2 and 2.3."""
    v = Vectors()
    keys = {"the KEK of the example of docs/format.md": EXAMPLE.kek}
    for size in (16, 32):
        keys[f"{size} zero bytes"] = bytes(size)
        keys[f"{size} bytes of ff"] = b"\xff" * size
        keys[f"{size} counting bytes, downwards"] = bytes(range(size))[::-1]
        keys[f"{size} zero bytes, the first bit set"] = b"\x80" + bytes(size - 1)
        keys[f"{size} zero bytes, the last bit set"] = bytes(size - 1) + b"\x01"
        keys.update({f"{size} bytes, {i}": derive(f"kek {size} {i}", size) for i in range(5)})
    keys["32 bytes that start with the example's KEK, and zeros"] = EXAMPLE.kek + bytes(16)
    for comment, kek in keys.items():
        prk = hmac.digest(bytes(32), kek, "sha256")
        identity = expand(prk, b"kms-proxy kek id v1", 16, "sha256")
        v.list.append({"comment": comment, "kek": kek.hex(), "kek_id": identity.hex()})
    return v


class Blobs(Vectors):
    """Ciphertexts of the AWS KMS API, and the AADs of their encryption contexts."""

    def blob(self, rule: str | None, comment: str, context: dict, m: Message, blob: bytes | None = None) -> None:
        self.list.append({
            "comment": comment,
            "context": context,
            "kek": m.kek.hex(),
            "aad": m.aad.hex(),
            "plaintext": "" if rule else m.plaintext.hex(),
            "blob": (head(m.chain) + m.envelope() if blob is None else blob).hex(),
            **verdict(rule),
        })  # fmt: skip


def blobs() -> Blobs:
    v = Blobs()
    contexts = {
        "no pair": {},
        "one pair": {"tenant": "7"},
        "an empty key and an empty value": {"": ""},
        "pairs that are not given in order": {"b": "2", "a": "1", "ab": "3", "B": "4"},
        "keys in the order of their bytes, not of UTF-16": {"\uffff": "1", "\U00010000": "2", "ä": "ö", "z": "3"},
        "characters that JSON escapes": {'a"\\': "\n\u0000\u2028"},
        "a value of 300 bytes": {"a": "x" * 300},
    }
    for kind, m in kinds():
        for name, context in contexts.items():
            v.blob(None, f"{kind}: {name}", context, replace(m, aad=context_aad(context)))
        for chain in (b"0", b"a.b_c-9" * 9):
            of_chain = Message(suite=m.suite, version=m.version, chain=chain, aad=context_aad({}))
            v.blob(None, f"{kind}: chain of {len(chain)} bytes", {}, of_chain)
    pairs = {"a": "1", "b": "2"}
    m = Message(aad=context_aad(pairs))
    for name, context in {
        "a pair is missing": {"a": "1"},
        "a pair more": {**pairs, "c": "3"},
        "values are exchanged": {"a": "2", "b": "1"},
        "the boundary of key and value is moved": {"a1": "", "b": "2"},
        "no pair": {},
    }.items():
        v.blob("payload", f"another context: {name}", context, m)
    envelope, name = m.envelope(), m.chain
    for comment, (rule, blob) in {
        "empty": ("blob-length", b""),
        "the envelope without a head": ("blob-magic", envelope),
        "another magic": ("blob-magic", bytes([MAGIC[0] ^ 1]) + head(name)[1:] + envelope),
        "a head of format 0": ("blob-format", MAGIC + b"\x00" + head(name)[5:] + envelope),
        "a head of format 2": ("blob-format", MAGIC + b"\x02" + head(name)[5:] + envelope),
        "another chain": ("wrap", head(b"orderz") + envelope),
        "a shorter name": ("version", MAGIC + b"\x01\x05" + name + envelope),
        "a longer name": ("chain-name", MAGIC + b"\x01\x07" + name + envelope),
        "no name": ("chain-name", MAGIC + b"\x01\x00" + envelope),
        "a name in upper case": ("chain-name", head(b"ORDERS") + envelope),
        "the head alone": ("header-length", head(name)),
        "a byte less": ("payload", head(name) + envelope[:-1]),
        "a byte more": ("payload", head(name) + envelope + b"\x00"),
        "the text form of the envelope": ("version", head(name) + b"kp:" + base64.b64encode(envelope)),
        "a head that ends in the name": ("blob-length", head(name)[:-1]),
    }.items():
        v.blob(rule, f"damaged: {comment}", pairs, m, blob)
    prefix, ones = context_aad({}), {"a": "1"}
    one, other = context_aad(ones)[len(prefix) :], context_aad({"b": "2"})[len(prefix) :]
    for comment, aad in {
        "pairs in another order": prefix + other + one,
        "no prefix": one + other,
        "no lengths": prefix + b"a1b2",
    }.items():
        v.blob("payload", f"sealed with {comment}", pairs, replace(m, aad=aad))
    return v


def texts() -> Vectors:
    """Text forms: with padding of one, no and two characters."""
    v = Vectors()

    def add(rule: str | None, comment: str, text: str, envelope: bytes = b"") -> None:
        v.list.append({"comment": comment, "text": text, "envelope": envelope.hex(), **verdict(rule)})

    one, none, two = (replace(EXAMPLE, plaintext=b"hello!!"[:size]).envelope() for size in (5, 6, 7))
    text_of = {name: "kp:" + base64.b64encode(data).decode() for name, data in {"1": one, "0": none, "2": two}.items()}
    for name, envelope in {"1": one, "0": none, "2": two}.items():
        add(None, f"padding of {name}", text_of[name], envelope)
    good = text_of["1"]
    digits = good[3:]
    for comment, (rule, bad) in {
        "empty": ("text-prefix", ""),
        "part of the prefix": ("text-prefix", "kp"),
        "no prefix": ("text-prefix", digits),
        "the prefix in upper case": ("text-prefix", "KP:" + digits),
        "white space before the prefix": ("text-prefix", " " + good),
        "another prefix": ("text-prefix", "kq:" + digits),
        "white space after the prefix": ("text-alphabet", "kp: " + digits),
        "a line's end at the end": ("text-alphabet", good + "\n"),
        "a line's end in the middle": ("text-alphabet", f"kp:{digits[:76]}\n{digits[76:]}"),
        "a digit of the URL-safe alphabet, -": ("text-alphabet", f"kp:{digits[:8]}-{digits[9:]}"),
        "a digit of the URL-safe alphabet, _": ("text-alphabet", f"kp:{digits[:8]}_{digits[9:]}"),
        "a character that is not ASCII": ("text-alphabet", f"kp:{digits[:8]}é{digits[9:]}"),
        "no padding, of one": ("text-padding", good[:-1]),
        "no padding, of two": ("text-padding", text_of["2"][:-2]),
        "half of the padding": ("text-padding", text_of["2"][:-1]),
        "padding where none is due": ("text-padding", text_of["0"] + "===="),
        "a digit after whole groups": ("text-padding", text_of["0"] + "A"),
        "padding in the middle": ("text-padding", f"kp:{digits[:6]}=={digits[8:]}"),
        "a bit set that is not used, of two": ("text-bits", next_digit(good, 1)),
        "a bit set that is not used, of four": ("text-bits", next_digit(text_of["2"], 2)),
    }.items():
        add(rule, comment, bad)
    return v


def next_digit(text: str, padding: int) -> str:
    """The text with the next digit of the alphabet before its padding: its lowest bit is zero, and not used."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    last = len(text) - padding - 1
    return text[:last] + alphabet[alphabet.index(text[last]) + 1] + text[last + 1 :]


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    for name, vectors in {
        "opens": opening(),
        "tampered": tampered(),
        "wrong": wrong(),
        "long-aad": long_aad(),
        "stream-opens": opening_streams(),
        "stream-tampered": tampered_streams(),
        "stream-wrong": wrong_streams(),
    }.items():
        vectors.write(directory / f"{name}.json")
    texts().write(directory / "text" / "texts.json")
    blobs().write(directory / "aws" / "blobs.json")
    kek_ids().write(directory / "kek-ids" / "kek-ids.json")
