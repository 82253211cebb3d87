#!/usr/bin/env python3
"""An independent verifier of audit logs, written from docs/audit.md alone.

verify.py [--key KEY] [--from FILE] FILE...

The files are given in the order in which they were written. It prints the first line that is not as it was
written, as FILE:LINE: REASON, and exits with 1; or how many lines there are, and how many of them no checkpoint
proves, and exits with 0.
"""

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NAME = "kms-proxy/audit"
MOST_UNPROVED = 4096
PREFIX = re.compile(rb'\{"v":1,"seq":(0|[1-9][0-9]{0,19}),')
TIME = re.compile(rb'"time":"[^"]{24}",')


class Wrong(Exception):
    """What is wrong, and at which line of the log if it is not the current one."""

    def __init__(self, reason, line=None):
        super().__init__(reason)
        self.line = line


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


class Tree:
    """The compact range of an RFC 6962 tree: a hash for each bit set in the size, the largest first."""

    def __init__(self, size=0, hashes=()):
        self.size, self.hashes = size, list(hashes)

    def append(self, leaf):
        size = self.size
        while size & 1:
            leaf = sha256(b"\x01", self.hashes.pop(), leaf)
            size >>= 1
        self.hashes.append(leaf)
        self.size += 1

    def root(self):
        if not self.hashes:
            return sha256()
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = sha256(b"\x01", left, root)
        return root


class Key:
    def __init__(self, text):
        name, key_id, key = text.split("+", 2)
        data = base64.b64decode(key, validate=True)
        self.id = sha256(NAME.encode(), b"\n", data)[:4]
        if name != NAME or data[0] != 1 or len(data) != 33 or key_id != self.id.hex():
            raise Wrong("the key has another form")
        self.text, self.public = text, Ed25519PublicKey.from_public_bytes(data[1:])


class Checkpoint:
    """A C2SP tlog-checkpoint in a signed note, with a line for the time."""

    def __init__(self, text):
        try:
            body, signature = text.split("\n\n", 1)
            self.origin, size, root, time = body.split("\n")
            name, data = re.fullmatch("\u2014 ([^ ]+) ([A-Za-z0-9+/=]+)\n", signature).groups()
            self.size, self.root = int(size), base64.b64decode(root, validate=True)
            self.signature = base64.b64decode(data, validate=True)
        except (ValueError, AttributeError, binascii.Error):
            raise Wrong("it has no valid checkpoint") from None
        if name != NAME or str(self.size) != size or not time.startswith("time "):
            raise Wrong("it has no valid checkpoint")
        self.text, self.body, self.time = text, body + "\n", time[len("time "):]

    def check(self, key):
        try:
            key.public.verify(self.signature[4:], self.body.encode())
        except InvalidSignature:
            return False
        return self.signature[:4] == key.id


class Log:
    """The log of one process."""

    def __init__(self, key, tree):
        self.key, self.tree, self.listed, self.sealed, self.closed = key, tree, [], tree.size, False

    def append(self, line):
        leaf = sha256(b"\x00", line)
        self.tree.append(leaf)
        self.listed.append(leaf[:4])
        if self.unproved() > MOST_UNPROVED:
            raise Wrong("a checkpoint is missing before this line")

    def seal(self, checkpoint):
        self.sealed, self.listed = checkpoint.size, []

    def unproved(self):
        return 0 if self.closed else max(0, self.tree.size - self.sealed - 1)


class Verifier:
    def __init__(self, keys, kept):
        self.keys, self.kept = keys, kept
        self.logs, self.nodes, self.met, self.lines = {}, set(), set(), 0

    def compare(self, origin, log):
        for at, kept in enumerate(self.kept):
            if kept.origin == origin and kept.size == log.tree.size and at not in self.met:
                if kept.root != log.tree.root() or not kept.check(log.key):
                    raise Wrong("the lines so far are not those of the kept checkpoint")
                self.met.add(at)

    def file(self, name):
        number, origin, starts, damaged = 0, None, {}, None
        last, after, size = None, hashlib.sha256(), 0
        with open(name, "rb") as lines:
            for number, text in enumerate(lines, 1):
                self.lines += 1
                if not text.endswith(b"\n"):
                    break
                line = text[:-1]
                try:
                    kind, value = parse(line)
                    if kind == "opening":
                        end = (last, size, after.hexdigest())
                        origin = self.open(value, number, end, origin, damaged)
                        starts[origin] = number - value[1].size
                        damaged, proof = None, value[1]
                        self.compare(origin, self.logs[origin])
                    elif damaged is not None:
                        fail(name, damaged, "it is not a line of an audit log")
                    elif origin is None:
                        raise Wrong("the file does not begin with an opening")
                    elif kind == "damaged":
                        damaged, proof = number, None
                    else:
                        proof = self.line(kind, value, origin, line)
                except Wrong as wrong:
                    at = number if wrong.line is None else starts[origin] + wrong.line
                    fail(name, at, wrong)
                after.update(text)
                size += len(text)
                if proof is not None:
                    last, after, size = proof.text, hashlib.sha256(), 0
        if damaged is not None:
            fail(name, damaged, "it is not a line of an audit log")

    def line(self, kind, value, origin, line):
        log, proof = self.logs[origin], None
        seq = int(PREFIX.match(line)[1])
        if seq != log.tree.size:
            raise Wrong(f"its number is {seq} and not {log.tree.size}")
        if kind == "checkpoint":
            proof, leaves = value
            self.check(log, origin, proof, leaves)
            log.seal(proof)
        log.append(line)
        self.compare(origin, log)
        return proof

    def check(self, log, origin, proof, leaves):
        if proof.origin != origin:
            raise Wrong("the checkpoint is that of another process")
        good = proof.check(log.key) and proof.root == log.tree.root() and proof.size == log.tree.size
        if good and leaves == log.listed:
            return
        skipped = max(0, len(log.listed) - len(leaves))
        first = log.tree.size - len(log.listed) + skipped
        for at, (listed, found) in enumerate(zip(leaves, log.listed[skipped:])):
            if not good and listed != found:
                raise Wrong("its hash is not the one that the checkpoint lists", first + at)
        raise Wrong("the checkpoint does not prove the lines before it")

    def open(self, value, number, end, origin, damaged):
        opening, checkpoint, key, tree = value
        if checkpoint.root != tree.root() or not checkpoint.check(key):
            raise Wrong("the signature of the opening is wrong")
        if self.keys and key.text not in [known.text for known in self.keys]:
            raise Wrong("it is signed by another key")
        before = opening["before"]
        if before is None or before == "unknown":
            if damaged is not None or (before is None and number > 1):
                raise Wrong("its writer found another file")
        elif number == 1 or end != (before["checkpoint"], before["bytes"], before["sha256"]):
            raise Wrong("its writer found another end of the file")
        elif origin is not None:
            self.logs[origin].closed = True
        log = self.logs.get(checkpoint.origin)
        node = checkpoint.origin.rsplit("/", 1)[0]
        if log is None and checkpoint.size > 0 and node in self.nodes:
            raise Wrong("the file before it is missing")
        self.nodes.add(node)
        if log is None:
            log = self.logs[checkpoint.origin] = Log(key, tree)
        elif (key.text, tree.size, tree.hashes) != (log.key.text, log.tree.size, log.tree.hashes):
            raise Wrong("it does not continue the log")
        log.seal(checkpoint)
        log.append(opening["line"])
        return checkpoint.origin

    def end(self):
        for at, kept in enumerate(self.kept):
            if at not in self.met:
                sys.exit(f"no file has line {kept.size} of the log {kept.origin}, which a kept checkpoint proves")
        unproved = sum(log.unproved() for log in self.logs.values())
        print(f"{self.lines} lines are consistent; no checkpoint proves the last {unproved}")


def parse(line):
    """What a line is: an event, a checkpoint, an opening, or damaged."""
    prefix = PREFIX.match(line)
    try:
        value = json.loads(line)
    except ValueError:
        return "damaged", None
    if prefix is None:
        return "damaged", None
    rest = line[prefix.end() + 34:]
    kind = "checkpoint" if rest.startswith(b'"checkpoint":') else "opening"
    if kind == "opening" and not rest.startswith(b'"opening":'):
        return "event", None
    # There is one text for each of these lines.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    try:
        body = value[kind]
        checkpoint = Checkpoint(body if kind == "checkpoint" else body["checkpoint"])
        fits = text == line and TIME.match(line, prefix.end()) and value["seq"] == checkpoint.size
        if not fits or value["time"] != checkpoint.time:
            return "damaged", None
        if kind == "checkpoint":
            leaves = base64.b64decode(value["leaves"], validate=True)
            return kind, (checkpoint, [leaves[at:at + 4] for at in range(0, len(leaves), 4)])
        hashes = [base64.b64decode(item, validate=True) for item in body["range"]]
        if len(hashes) != checkpoint.size.bit_count():
            return "damaged", None
        body["line"] = line
        return kind, (body, checkpoint, Key(body["key"]), Tree(checkpoint.size, hashes))
    except (KeyError, TypeError, ValueError, Wrong):
        return "damaged", None


def fail(name, line, reason):
    print(f"{name}:{line}: {reason}")
    sys.exit(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", action="append", default=[])
    parser.add_argument("--from", dest="kept", action="append", default=[])
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    kept = [Checkpoint(open(name, encoding="utf-8").read()) for name in options.kept]
    verifier = Verifier([Key(key) for key in options.key], kept)
    for name in options.files:
        verifier.file(name)
    verifier.end()


if __name__ == "__main__":
    main()
