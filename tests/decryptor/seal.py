#!/usr/bin/env python3
"""Seals payloads of versions 3 and 4 with the Cobblestone of the Python package `cryptography`.

It reads a JSON list of objects with `dek`, `context` and `plaintext` in hex, and writes a list of payloads in hex.
"""

import json
import sys

from cryptography.cobblestone import Cobblestone128Encryptor, Cobblestone256Encryptor

ENCRYPTORS = {16: Cobblestone128Encryptor, 32: Cobblestone256Encryptor}


def seal(message: dict) -> str:
    dek, context, plaintext = (bytes.fromhex(message[field]) for field in ("dek", "context", "plaintext"))
    encryptor = ENCRYPTORS[len(dek)](dek, context)
    return (encryptor.update(plaintext) + encryptor.finalize()).hex()


json.dump([seal(message) for message in json.load(sys.stdin)], sys.stdout)
