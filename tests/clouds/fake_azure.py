"""A substitute for Azure Key Vault and Managed HSM with real RSA and AES key wrap: its REST API, and sources of tokens.

POST /fake/config   fields of `config`: life of tokens, secret, federated tokens, PEM of a certificate, the URL in names
POST /fake/revoke   no token that was given is valid any more

It has the two names of a real one in a path: `/keys/NAME` of the vault, and the tenant `/tenant/oauth2/v2.0/token`.
"""

import base64
import json
import re
import time
import uuid

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from fake import Fake, Refusal

RESOURCE = "https://vault.azure.net"
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def b64(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def error(status, code, message, inner=None, headers=None):
    body = {"code": code, "message": message}
    if inner:
        body["innererror"] = {"code": inner}
    return Refusal(status, {"error": body}, headers)


class Azure(Fake):
    def __init__(self):
        super().__init__()
        self.config = {"life": 3600, "secret": "s&+", "federated": [], "certificate": None, "managed": True}
        self.config["url"] = None
        self.tokens, self.keys = {}, {}

    def control(self, request):
        if request.path == "/fake/config":
            self.config.update(request.json())
        elif request.path == "/fake/revoke":
            self.tokens = {}
        return {}

    def answer(self, request):
        if request.path == "/tenant/oauth2/v2.0/token":
            return self.login(request.form())
        if request.path == "/metadata/identity/oauth2/token":
            return self.managed(request, request.headers.get("metadata") == "true", "2018-02-01")
        if request.path == "/msi/token":
            return self.managed(request, request.headers.get("x-identity-header") == "h", "2019-08-01")
        self.authenticate(request)
        return 200, self.vault(request), {}

    def grant(self):
        token = f"ey.{uuid.uuid4().hex}"
        self.tokens[token] = time.time() + self.config["life"]
        return token

    def managed(self, request, is_right, version):
        query = request.query
        if not is_right or query.get("api-version") != version or query.get("resource") != RESOURCE:
            raise Refusal(400, {"error": "invalid_request", "error_description": "Required metadata header missing"})
        if not self.config["managed"]:
            raise Refusal(400, {"error": "invalid_request", "error_description": "Identity not found"})
        life = self.config["life"]
        body = {"access_token": self.grant(), "resource": RESOURCE, "token_type": "Bearer"}
        if version == "2018-02-01":
            body["expires_in"] = str(life)
        body["expires_on"] = str(int(time.time()) + life)
        return 200, body, {}

    def login(self, form):
        expected = {"grant_type": "client_credentials", "client_id": "client", "scope": f"{RESOURCE}/.default"}
        if any(form.get(name) != value for name, value in expected.items()):
            raise Refusal(400, {"error": "invalid_scope", "error_description": "AADSTS1002012"})
        jwt = form.get("client_assertion")
        if jwt is None:
            is_known = form.get("client_secret") == self.config["secret"]
        else:
            is_known = jwt in self.config["federated"] or self.is_signed(jwt)
            is_known &= form.get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        if not is_known:
            sent = jwt or form.get("client_secret")
            raise Refusal(401, {"error": "invalid_client", "error_description": f"AADSTS7000215: {sent}"})
        return 200, {"access_token": self.grant(), "expires_in": self.config["life"], "token_type": "Bearer"}, {}

    def is_signed(self, jwt):
        if self.config["certificate"] is None or jwt.count(".") != 2:
            return False
        certificate = x509.load_pem_x509_certificate(self.config["certificate"].encode())
        head, claims, signature = jwt.split(".")
        header, body = json.loads(unb64(head)), json.loads(unb64(claims))
        salt = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        try:
            certificate.public_key().verify(unb64(signature), f"{head}.{claims}".encode(), salt, hashes.SHA256())
        except InvalidSignature:
            return False
        is_right = header["alg"] == "PS256" and header["x5t#S256"] == b64(certificate.fingerprint(hashes.SHA256()))
        is_right &= body["aud"] == f"{self.url}/tenant/oauth2/v2.0/token" and body["iss"] == body["sub"] == "client"
        return is_right and body["nbf"] <= time.time() < body["exp"] and bool(body["jti"])

    def authenticate(self, request):
        if self.tokens.get(request.bearer(), 0) > time.time():
            return
        challenge = f'Bearer authorization="{self.url}/tenant", resource="{RESOURCE}"'
        message = "AKV10000: Request is missing a Bearer or PoP token."
        raise error(401, "Unauthorized", message, headers={"WWW-Authenticate": challenge})

    def vault(self, request):
        if not re.fullmatch(r"7\.\d(-preview\.\d)?|20\d\d-\d\d-\d\d(-preview)?", request.query.get("api-version", "")):
            raise error(400, "BadParameter", "The specified version is not recognized.")
        _, kind, name, *rest = request.path.split("/")
        if kind != "keys":
            raise error(404, "NotFound", "There is no such path.")
        if request.method == "POST" and rest == ["create"]:
            return self.described(name, self.create(name, request.json()))
        if request.method == "POST" and rest == ["rotate"]:
            return self.described(name, self.version(self.found(name)))
        if request.method == "DELETE":
            self.found(name)["deleted"] = True
            return {"key": {"kid": f"{self.url}/keys/{name}"}, "recoveryId": f"{self.url}/deletedkeys/{name}"}
        key = self.found(name)
        version = self.versioned(name, key, rest[0] if rest else "")
        if request.method == "PATCH":
            version["enabled"] = request.json()["attributes"]["enabled"]
            return self.described(name, version)
        if request.method == "GET":
            return self.described(name, version)
        verb = rest[-1].lower()
        if verb not in ("wrapkey", "unwrapkey"):
            raise error(404, "NotFound", "There is no such path.")
        if not version["enabled"]:
            message = f"Operation {verb} is not allowed on a disabled key."
            raise error(403, "Forbidden", message, "KeyDisabled")
        body = request.json()
        if set(body) != {"alg", "value"} and set(body) - {"alg", "value", "iv", "tag", "aad"}:
            raise error(400, "BadParameter", "Unknown field.")
        value = (self.wrap if verb == "wrapkey" else self.unwrap)(version, body["alg"], unb64(body["value"]))
        return {"kid": self.kid(name, version), "value": b64(value)}

    def found(self, name):
        if name not in self.keys or self.keys[name].get("deleted"):
            message = f"A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you"
            raise error(404, "KeyNotFound", f"{message} may be able to recover it using the correct recovery command.")
        return self.keys[name]

    def versioned(self, name, key, version):
        if version == "":
            return key["versions"][-1]
        for one in key["versions"]:
            if one["id"] == version:
                return one
        raise error(404, "KeyNotFound", f"A key with (name/id) {name}/{version} was not found in this key vault.")

    def create(self, name, body):
        if body["kty"] not in ("RSA", "RSA-HSM", "oct-HSM"):
            raise error(400, "BadParameter", "kty")
        key = self.keys[name] = {"kty": body["kty"], "size": body.get("key_size"), "versions": []}
        return self.version(key)

    def version(self, key):
        version = {"id": uuid.uuid4().hex, "enabled": True, "kty": key["kty"], "created": int(time.time())}
        if key["kty"].startswith("RSA"):
            version["rsa"] = rsa.generate_private_key(65537, key["size"] or 2048)
        else:
            version["aes"] = uuid.uuid4().bytes + uuid.uuid4().bytes
        key["versions"].append(version)
        return version

    def kid(self, name, version):
        return f"{self.config['url'] or self.url}/keys/{name}/{version['id']}"

    def described(self, name, version):
        key = {"kid": self.kid(name, version), "kty": version["kty"], "key_ops": ["wrapKey", "unwrapKey"]}
        if "rsa" in version:
            numbers = version["rsa"].public_key().public_numbers()
            key["n"] = b64(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big"))
            key["e"] = b64(numbers.e.to_bytes(3, "big"))
        attributes = {"enabled": version["enabled"], "created": version["created"], "updated": version["created"]}
        return {"key": key, "attributes": attributes}

    @staticmethod
    def wrap(version, algorithm, value):
        if algorithm == "RSA-OAEP-256" and "rsa" in version:
            return version["rsa"].public_key().encrypt(value, OAEP)
        if algorithm == "A256KW" and "aes" in version:
            return keywrap.aes_key_wrap(version["aes"], value)
        raise error(400, "BadParameter", f"Key and algorithm {algorithm} do not match.")

    @staticmethod
    def unwrap(version, algorithm, value):
        try:
            if algorithm == "RSA-OAEP-256" and "rsa" in version:
                return version["rsa"].decrypt(value, OAEP)
            if algorithm == "A256KW" and "aes" in version:
                return keywrap.aes_key_unwrap(version["aes"], value)
        except (ValueError, keywrap.InvalidUnwrap):
            pass
        raise error(400, "BadParameter", "The parameter is incorrect.")


if __name__ == "__main__":
    Azure().serve()
