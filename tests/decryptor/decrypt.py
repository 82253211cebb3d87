#!/usr/bin/env python3
"""An independent reader of kms-proxy's envelopes, written from docs/format.md alone.

decrypt.py open --chain orders --kek-file KEK.hex [--aad HEX] ENVELOPE
    prints the plaintext of an envelope, which is given as kp:... or in hex
decrypt.py check FILE.json...
    checks vectors, and fails when one goes wrong, or is refused for another rule than the one it names
"""

import argparse
import base64
import json
import pathlib
import re
import sys

from cryptography.cobblestone import Cobblestone128Decryptor, Cobblestone256Decryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SUITES = {1: ("aes-128-gcm", 16), 2: ("aes-256-gcm", 32)}
MAX_AAD = 65_536
TAG = 16
SALT, COMMITMENT, CHUNK = 24, 32, 16_384 + TAG
COBBLESTONE = {1: Cobblestone128Decryptor, 2: Cobblestone256Decryptor}


class Refused(Exception):
    """Not an envelope of this chain, KEK and AAD. The text is the name of a rule of docs/format.md; a service would not
    tell."""


def require(holds: bool, rule: str) -> None:
    if not holds:
        raise Refused(rule)


class Reader:
    """`rule` is the one that input breaks which ends too early."""

    def __init__(self, data: bytes, rule: str) -> None:
        self.data, self.at, self.rule = data, 0, rule

    def take(self, size: int) -> bytes:
        require(self.at + size <= len(self.data), self.rule)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def left(self) -> int:
        return len(self.data) - self.at


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def kek_id(kek: bytes) -> bytes:
    return HKDF(SHA256(), 16, None, b"kms-proxy kek id v1").derive(kek)


def check_record(record: bytes) -> None:
    require(record[:1] == b"\x01", "record-format")
    require(len(record) > 1, "record-empty")
    reader = Reader(record[1:], "record-end")
    while reader.left() > 0:
        name = reader.take(reader.number(1))
        wrap = reader.take(reader.number(2))
        require(len(name) > 0 and len(wrap) > 0, "record-part")
        try:
            name.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("record-name") from None


def gcm_open(rule: str, key: bytes, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Refused(rule) from None


def check_chunks(payload: bytes) -> None:
    require(len(payload) >= SALT + COMMITMENT + TAG, "payload-length")
    require((len(payload) - SALT - COMMITMENT) % CHUNK >= TAG, "last-chunk")


def stream_open(suite: int, key: bytes, payload: bytes, context: bytes) -> bytes:
    salt, commitment = payload[:SALT], payload[SALT : SALT + COMMITMENT]
    name = b"c2sp.org/chunked-encryption@v1+AEAD_AES_%d_GCM\0" % (8 * len(key))
    derived = HKDFExpand(SHA512(), len(key) + 12 + COMMITMENT, name + salt + context).derive(key)
    require(bytes_eq(derived[-COMMITMENT:], commitment), "commitment")
    decryptor = COBBLESTONE[suite](key, context)
    try:
        return decryptor.update(payload) + decryptor.finalize()
    except InvalidTag:
        raise Refused("chunk") from None


def decrypt(envelope: bytes, chain: str, keks: dict[bytes, bytes], aad: bytes) -> bytes:
    """The plaintext of an envelope; `keks` are the chain's KEKs by id."""
    require(re.fullmatch("[a-z0-9][a-z0-9._-]{0,62}", chain) is not None, "chain-name")
    require(len(aad) <= MAX_AAD, "aad-length")
    chain_field = u16(len(chain)) + chain.encode("ascii")

    reader = Reader(envelope, "header-length")
    version = reader.number(1)
    require(version in (1, 2, 3, 4), "version")
    suite = reader.number(1)
    require(suite in SUITES, "suite")
    key_len = SUITES[suite][1]
    named = reader.take(16)
    carried = b""
    if version in (2, 4):
        size = reader.number(2)
        require(reader.left() >= size, "record-length")
        record = reader.take(size)
        check_record(record)
        carried = u16(len(record)) + record
    wrap_nonce = reader.take(12)
    wrapped_dek = reader.take(key_len + TAG)
    require(reader.left() >= TAG, "payload-length")
    payload = reader.take(reader.left())
    if version in (3, 4):
        check_chunks(payload)

    kek = keks.get(named)
    require(kek is not None, "kek-unknown")
    require(len(kek) == key_len, "kek-size")
    require(kek_id(kek) == named, "kek-id")
    codes = bytes([version, suite])
    wrap_aad = b"kms-proxy dek v1" + codes + named + chain_field + carried
    dek = gcm_open("wrap", kek, wrap_nonce, wrapped_dek, wrap_aad)
    bound = codes[1:] + chain_field + len(aad).to_bytes(4, "big") + aad
    if version in (3, 4):
        return stream_open(suite, dek, payload, b"kms-proxy stream v1" + bound)
    return gcm_open("payload", dek, bytes(12), payload, b"kms-proxy data v1" + bound)


def from_hex(text: str) -> bytes:
    data = bytes.fromhex(text)
    if data.hex() != text:
        raise ValueError("not lower-case hex without spaces")
    return data


def from_text(text: str) -> bytes:
    require(text.startswith("kp:"), "text-prefix")
    digits = text[3:]
    require(re.fullmatch("[A-Za-z0-9+/=]*", digits) is not None, "text-alphabet")
    require(len(digits) % 4 == 0 and re.fullmatch("[^=]*={0,2}", digits) is not None, "text-padding")
    data = base64.b64decode(digits, validate=True)
    # The library lets unused bits pass.
    require(base64.b64encode(data).decode() == digits, "text-bits")
    return data


def context_aad(context: dict[str, str]) -> bytes:
    """The AAD of an encryption context of the AWS KMS API."""
    aad = b"kms-proxy aws context v1"
    for key, value in sorted((key.encode(), value.encode()) for key, value in context.items()):
        if len(key) > 65_535 or len(value) > 65_535:
            raise ValueError("a text of the encryption context is too long")
        aad += u16(len(key)) + key + u16(len(value)) + value
    return aad


def split_blob(blob: bytes) -> tuple[str, bytes]:
    """The chain and the envelope of a ciphertext of the AWS KMS API."""
    reader = Reader(blob, "blob-length")
    require(reader.take(4) == b"\x92\x6b\x29\xaf", "blob-magic")
    require(reader.number(1) == 1, "blob-format")
    name = reader.take(reader.number(1))
    require(name.isascii(), "chain-name")
    return name.decode("ascii"), reader.take(reader.left())


def open_vector(vector: dict, keks: dict[bytes, bytes]) -> bytes:
    if "blob" not in vector:
        return decrypt(from_hex(vector["envelope"]), vector["chain"], keks, from_hex(vector["aad"]))
    chain, envelope = split_blob(from_hex(vector["blob"]))
    return decrypt(envelope, chain, keks, context_aad(vector["context"]))


def check(vector: dict) -> str | None:
    """What is wrong with a vector, or with this reader."""
    is_text, valid = "text" in vector, vector["valid"]
    try:
        if is_text:
            opened = from_text(vector["text"])
        else:
            kek = from_hex(vector["kek"])
            named = from_hex(vector["kek_id"]) if "kek_id" in vector else kek_id(kek)
            opened = open_vector(vector, {named: kek})
    except Refused as refused:
        expected = not valid and vector.get("rule", str(refused)) == str(refused)
        return None if expected else f"refused: {refused}"
    if not valid:
        return "opened"
    if opened != from_hex(vector["envelope" if is_text else "plaintext"]):
        return "opened to something else"
    if is_text:
        return None
    if "blob" in vector:
        return None if context_aad(vector["context"]) == from_hex(vector["aad"]) else "its context has another AAD"
    return None if (vector["suite"], len(kek)) in SUITES.values() else "its suite is not its KEK's"


def check_files(paths: list[pathlib.Path]) -> bool:
    vectors = [(path, vector) for path in paths for vector in json.loads(path.read_text("ascii"))]
    wrong = [(path, vector, what) for path, vector in vectors if (what := check(vector)) is not None]
    for path, vector, what in wrong:
        print(f"{path}: {vector['comment']}: {what}", file=sys.stderr)
    opened = sum(vector["valid"] for _, vector in vectors)
    if not wrong:
        print(f"{opened} vectors opened, {len(vectors) - opened} refused")
    return bool(vectors) and not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="An independent reader of kms-proxy's envelopes")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("open")
    one.add_argument("--chain", default="default")
    one.add_argument("--kek-file", type=pathlib.Path, required=True, help="a file with the KEK in hex")
    one.add_argument("--aad", type=from_hex, default=b"", help="in hex")
    one.add_argument("envelope")
    commands.add_parser("check").add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.command == "check":
        return 0 if check_files(arguments.files) else 1
    kek = from_hex(arguments.kek_file.read_text("ascii").strip())
    try:
        text = arguments.envelope
        envelope = from_text(text) if text.startswith("kp:") else from_hex(text)
        sys.stdout.buffer.write(decrypt(envelope, arguments.chain, {kek_id(kek): kek}, arguments.aad))
    except (Refused, ValueError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
