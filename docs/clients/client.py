"""Encrypts and decrypts with the standard library alone."""

import base64
import json
import os
import time
import urllib.error
import urllib.request

SERVER = os.environ.get("KMS_PROXY_SERVER", "http://127.0.0.1:8080")


class Refused(Exception):
    """What the service says instead of an answer."""

    def __init__(self, status: int, problem: dict):
        super().__init__(f"{problem['code']}: {problem['detail']}")
        self.status = status
        self.code = problem["code"]


def call(path: str, body: dict, tries: int = 3) -> dict:
    """Makes a call; 429 and 503 say when it is worth another try."""
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(SERVER + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (429, 503) and tries > 1:
            time.sleep(int(error.headers.get("retry-after", "1")))
            return call(path, body, tries - 1)
        raise Refused(error.code, json.load(error)) from None


def encrypt(plaintext: bytes, aad: bytes, chain: str = "default") -> str:
    body = {"plaintext": text(plaintext), "aad": text(aad), "chain": chain}
    return call("/v1/encrypt", body)["ciphertext"]


def decrypt(ciphertext: str, aad: bytes, chain: str = "default") -> bytes:
    body = {"ciphertext": ciphertext, "aad": text(aad), "chain": chain}
    return base64.b64decode(call("/v1/decrypt", body)["plaintext"])


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    # The AAD binds the ciphertext to its place: moved to another row, it does not open.
    secret = encrypt(b"hello", aad=b"row 7")
    print(decrypt(secret, aad=b"row 7").decode())
    try:
        decrypt(secret, aad=b"row 8")
    except Refused as refused:
        print("refused:", refused.code)
