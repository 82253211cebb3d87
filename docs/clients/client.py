"""Encrypts and decrypts with the standard library alone."""

import base64
import http.client
import json
import os
import ssl
import time
import urllib.parse

TRIES = 5


class Refused(Exception):
    """What the service, or a proxy before it, says instead of an answer."""

    def __init__(self, status: int, body: bytes):
        try:
            problem = dict(json.loads(body))
        except (ValueError, TypeError):
            problem = {"detail": "the answer is not from kms-proxy"}
        self.status = status
        self.code = problem.get("code", f"http_{status}")
        super().__init__(f"{self.code}: {problem.get('detail')} (HTTP {status})")


class Client:
    """A service, on one connection for one thread, which is opened again when it broke."""

    def __init__(self, server: str, token_file=None, ca=None, cert=None, key=None):
        url = urllib.parse.urlsplit(server)
        self.path, self.token_file = url.path.rstrip("/"), token_file
        if url.scheme == "https":
            tls = ssl.create_default_context(cafile=ca)
            if cert:
                tls.load_cert_chain(cert, key)
            self.http = http.client.HTTPSConnection(url.netloc, timeout=15, context=tls)
        else:
            self.http = http.client.HTTPConnection(url.netloc, timeout=15)

    def call(self, path: str, body: dict) -> dict:
        """Makes a call, and repeats it after a broken connection, 429 or 503: that is safe."""
        for left in reversed(range(TRIES)):
            try:
                status, wait, answer = self.send(path, json.dumps(body).encode())
            except ssl.SSLCertVerificationError:
                raise
            except (OSError, http.client.HTTPException):
                self.http.close()
                if not left:
                    raise
                time.sleep(0.2)
                continue
            if status not in (429, 503) or not left:
                break
            time.sleep(int(wait) if wait.isdecimal() else 1)
        try:
            if status == 200:
                return json.loads(answer)
        except ValueError:
            pass
        raise Refused(status, answer)

    def send(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        headers = {"content-type": "application/json"}
        if self.token_file:
            # It is read for each call: tokens are replaced while programs run.
            with open(self.token_file, encoding="ascii") as file:
                headers["authorization"] = f"Bearer {file.read().strip()}"
        self.http.request("POST", self.path + path, body, headers)
        answer = self.http.getresponse()
        return answer.status, answer.headers.get("retry-after", ""), answer.read()

    def encrypt(self, plaintext: bytes, aad: bytes, chain: str = "default") -> str:
        body = {"plaintext": text(plaintext), "aad": text(aad), "chain": chain}
        return self.call("/v1/encrypt", body)["ciphertext"]

    def decrypt(self, ciphertext: str, aad: bytes, chain: str = "default") -> bytes:
        body = {"ciphertext": ciphertext, "aad": text(aad), "chain": chain}
        return base64.b64decode(self.call("/v1/decrypt", body)["plaintext"])


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    client = Client(
        os.environ.get("KMS_PROXY_SERVER", "http://127.0.0.1:8080"),
        token_file=os.environ.get("KMS_PROXY_TOKEN_FILE"),
        ca=os.environ.get("KMS_PROXY_CA"),
        cert=os.environ.get("KMS_PROXY_CERT"),
        key=os.environ.get("KMS_PROXY_KEY"),
    )
    # The AAD binds the ciphertext to its place: moved to another row, it does not open.
    secret = client.encrypt(b"hello", aad=b"row 7")
    print(client.decrypt(secret, aad=b"row 7").decode())
    try:
        client.decrypt(secret, aad=b"row 8")
    except Refused as refused:
        print("refused:", refused.code)
