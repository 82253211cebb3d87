#!/usr/bin/env python3
"""An independent reader of archives, written from docs/archive.md alone.

read.py DIRECTORY...
    checks every object of the archives in these directories, and prints one line for each KEK: its
    chain, its id, its state, its suite and the roots that wrapped it. The line of the key of the
    audit log follows, if there is one. Of several archives it prints what they have together. It
    fails if an object is damaged.
"""

import base64
import binascii
import hashlib
import json
import pathlib
import re
import sys

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
SUITES = ("aes-128-gcm", "aes-256-gcm")
STATES = ("standby", "primary", "retired", "disabled", "destroyed")
LONGEST = 1 << 20
U64 = (1 << 64) - 1


class Damaged(Exception):
    """An object that must not be restored. The text says why."""


def require(holds: bool, why: str) -> None:
    if not holds:
        raise Damaged(why)


def number(value: object, least: int, most: int, what: str) -> int:
    # A bool is an int in Python.
    require(type(value) is int and least <= value <= most, f"{what} is not a number of this range")
    return value


def unique(pairs: list) -> dict:
    require(len(dict(pairs)) == len(pairs), "a field is there twice")
    return dict(pairs)


def constant(text: str) -> None:
    raise Damaged(f"{text} is not JSON")


def parse(text: str, fields: set) -> dict:
    """A JSON object with exactly these fields, which may contain other objects."""
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except ValueError as error:
        raise Damaged(f"it is not JSON: {error}") from None
    return with_fields(value, fields)


def with_fields(value: object, fields: set) -> dict:
    require(isinstance(value, dict), "it is not an object of JSON")
    # The format comes first: another one may have other fields.
    if "format" in fields:
        require(type(value.get("format")) is int and value["format"] == 1, "it has another format")
    require(set(value) == fields, f"its fields are {', '.join(sorted(value))}")
    return value


def record_of(data: bytes, chain: str, kek_id: str) -> str:
    """The record in an object; `kek_id` is empty for the object of a chain."""
    require(len(data) <= LONGEST, "it is longer than 1 MiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("it is not UTF-8") from None
    fields = {"format", "chain", "sha256", "record"} | ({"kek_id"} if kek_id else set())
    found = parse(text, fields)
    require(found["chain"] == chain, "it is the object of another chain")
    require(found.get("kek_id", "") == kek_id, "it is the object of another KEK")
    record, digest = found["record"], found["sha256"]
    require(isinstance(record, str) and isinstance(digest, str), "a field is not a string")
    try:
        covered = f"{chain}\n{kek_id}\n{record}".encode()
    except UnicodeEncodeError:
        raise Damaged("the record is not text") from None
    require(hashlib.sha256(covered).hexdigest() == digest, "the digest does not match")
    return record


def check_wrap(wrap: object) -> tuple:
    wrap = with_fields(wrap, {"root", "bytes"})
    root, text = wrap["root"], wrap["bytes"]
    require(isinstance(root, str) and isinstance(text, str), "a wrap is not text")
    try:
        return root, base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Damaged("a wrap is not base64") from None


def kek_of(record: str) -> dict:
    found = parse(record, {"format", "record"})["record"]
    times = ("created_at", "promoted_at", "disabled_at")
    kek = with_fields(found, {"suite", "state", "exposed", "wraps", *times})
    require(kek["suite"] in SUITES, "the suite is unknown")
    require(kek["state"] in STATES, "the state is unknown")
    require(type(kek["exposed"]) is bool, "exposed is not true or false")
    number(kek["created_at"], 0, U64, "created_at")
    for time in times[1:]:
        if kek[time] is not None:
            number(kek[time], 0, U64, time)
    require(isinstance(kek["wraps"], list), "the wraps are not a list")
    wraps = [check_wrap(wrap) for wrap in kek["wraps"]]
    kek["wraps"] = dict(wraps)
    require(len(kek["wraps"]) == len(wraps), "two wraps name one root")
    is_tombstone = kek["state"] == "destroyed"
    require(is_tombstone != bool(wraps), "only a destroyed KEK has no wraps")
    return kek


def chain_of(record: str) -> dict:
    found = parse(record, {"suite", "limits", "inline"})
    require(found["suite"] in SUITES, "the suite is unknown")
    require(type(found["inline"]) is bool, "inline is not true or false")
    fields = {"rotate_after_uses", "max_uses", "rotate_after_age"}
    limits = with_fields(found["limits"], fields)
    most = number(limits["max_uses"], 1, 1 << 32, "max_uses")
    number(limits["rotate_after_uses"], 1, most, "rotate_after_uses")
    number(limits["rotate_after_age"], 60, U64, "rotate_after_age")
    return found


def audit_key_of(data: bytes) -> dict:
    """The key of the audit log in its object."""
    try:
        kek_id = json.loads(data)["kek_id"]
    except (ValueError, KeyError, TypeError):
        raise Damaged("it has no kek_id") from None
    require(isinstance(kek_id, str) and bool(ID.fullmatch(kek_id)), "its kek_id is not an id")
    found = parse(record_of(data, "audit-log", kek_id), {"id", "wraps"})
    require(found["id"] == kek_id, "the record has another id")
    require(isinstance(found["wraps"], list), "the wraps are not a list")
    wraps = [check_wrap(wrap) for wrap in found["wraps"]]
    require(bool(wraps), "it has no wraps")
    require(len(dict(wraps)) == len(wraps), "two wraps name one root")
    return {"id": kek_id, "wraps": dict(wraps)}


def read_audit_key(directory: pathlib.Path, keys: list) -> list:
    """Reads the key of the audit log of an archive into `keys`; what is wrong with it."""
    path = directory / "audit" / "key.json"
    if not path.exists():
        return []
    try:
        key = audit_key_of(path.read_bytes())
        require(not keys or keys[0]["id"] == key["id"], "another archive has another key")
    except Damaged as error:
        return [f"{path}: {error}"]
    if keys:
        key["wraps"] = {**key["wraps"], **keys[0]["wraps"]}
    keys[:] = [key]
    return []


def later(one: dict, other: dict) -> dict:
    """Two records of one KEK as one: a tombstone wins, then the last change by an operator."""

    def progress(kek: dict) -> tuple:
        withdrawn = kek["disabled_at"]
        age = -1 if withdrawn is None else withdrawn
        return kek["state"] == "destroyed", age, kek["state"] != "disabled"

    last, first = (other, one) if progress(other) > progress(one) else (one, other)
    if last["state"] == "destroyed":
        return last
    return {**last, "wraps": {**first["wraps"], **last["wraps"]}}


def read(directory: pathlib.Path, chains: dict, keks: dict) -> list:
    """Reads an archive into `chains` and `keks`; what is wrong with it."""
    problems = []
    if not (directory / "kms-proxy-archive").is_file():
        return [f"{directory}: the file kms-proxy-archive is missing: this is not an archive"]
    for path in sorted((directory / "v1").rglob("*")):
        parts = path.relative_to(directory).parts
        try:
            if path.is_dir() and not path.is_symlink():
                continue
            require(len(parts) == 3 and path.is_file(), "this is not the key of an object")
            chain, name = parts[1], parts[2].removesuffix(".json")
            is_key = NAME.fullmatch(chain) and (name == "chain" or ID.fullmatch(name))
            require(bool(is_key) and parts[2] == f"{name}.json", "this is not the key of an object")
            data = path.read_bytes()
            if name == "chain":
                chains.setdefault(chain, chain_of(record_of(data, chain, "")))
                continue
            kek = kek_of(record_of(data, chain, name))
            known = keks.get((chain, name))
            keks[chain, name] = later(known, kek) if known else kek
        except Damaged as error:
            problems.append(f"{path}: {error}")
    return problems


def main() -> int:
    directories = [pathlib.Path(name) for name in sys.argv[1:]]
    if not directories:
        print(__doc__, file=sys.stderr)
        return 2
    chains, keks, audit_keys, problems = {}, {}, [], []
    for directory in directories:
        problems += read(directory, chains, keks)
        problems += read_audit_key(directory, audit_keys)
    for chain in sorted({chain for chain, _ in keks} - set(chains)):
        problems.append(f"v1/{chain}/chain.json: no archive has it")
    for (chain, kek_id), kek in sorted(keks.items()):
        roots = ",".join(kek["wraps"]) or "-"
        print(chain, kek_id, kek["state"], kek["suite"], roots)
    for key in audit_keys:
        print("audit/key", key["id"], ",".join(key["wraps"]))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(chains)} chains, {len(keks)} KEKs, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
