"""A substitute for Google Cloud KMS with real AES-256-GCM: its REST API v1, and the sources of its tokens.

POST /fake/config           fields of `config`: life of tokens, tokens of other issuers, whether there is metadata
POST /fake/revoke           no token that was given is valid any more
POST /fake/service-account  a new service account: the file of its key

A ciphertext contains the name of the version of the key that made it, as the real one does.
"""

import base64
import binascii
import json
import os
import re
import time
import uuid

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fake import Fake, Refusal

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
KEY = re.compile(r"projects/([^/]+)/locations/([^/]+)/keyRings/([^/]+)/cryptoKeys/([^/:]+)")
STATES = ["", "ENABLED", "DISABLED", "DESTROYED", "DESTROY_SCHEDULED"]


def table():
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return rows


TABLE = table()


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ TABLE[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def error(status, name, message, headers=None):
    return Refusal(status, {"error": {"code": status, "message": message, "status": name}}, headers)


def invalid(message):
    return error(400, "INVALID_ARGUMENT", message)


def unb64url(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Gcp(Fake):
    def __init__(self):
        super().__init__()
        self.config = {"life": 3600, "subject_tokens": [], "metadata": True}
        self.tokens, self.accounts, self.rings, self.keys = {}, {}, {}, {}

    def control(self, request):
        if request.path == "/fake/config":
            self.config.update(request.json())
        elif request.path == "/fake/revoke":
            self.tokens = {}
        elif request.path == "/fake/service-account":
            key = rsa.generate_private_key(65537, 2048)
            email, kid = f"kms-proxy-{uuid.uuid4().hex[:8]}@test.iam.gserviceaccount.com", uuid.uuid4().hex
            self.accounts[kid] = (email, key.public_key())
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            return {
                "type": "service_account",
                "project_id": "test",
                "private_key_id": kid,
                "private_key": pem.decode(),
                "client_email": email,
                "client_id": "1",
                "token_uri": f"{self.url}/token",
            }
        return {}

    def answer(self, request):
        if request.path.startswith("/computeMetadata/v1/"):
            return self.metadata(request)
        if request.path == "/token":
            return self.oauth(request.form())
        if request.path == "/v1/token":
            return self.exchange(request.form())
        if request.path.startswith("/v1/projects/-/serviceAccounts/"):
            return self.impersonate(request)
        self.authenticate(request.bearer())
        return 200, self.kms(request, request.path.removeprefix("/v1/")), {}

    # The sources of tokens.

    def grant(self, kind):
        token = f"ya29.{kind}.{uuid.uuid4().hex}"
        self.tokens[token] = time.time() + self.config["life"]
        return token

    def granted(self, kind):
        return 200, {"access_token": self.grant(kind), "expires_in": self.config["life"], "token_type": "Bearer"}, {}

    def metadata(self, request):
        flavor = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
        if request.headers.get("metadata-flavor") != "Google":
            raise Refusal(403, "Missing Metadata-Flavor:Google header.", flavor)
        path = request.path.removeprefix("/computeMetadata/v1/instance/service-accounts/default/")
        if not self.config["metadata"] or path not in ("token", "email", ""):
            raise Refusal(404, "Not Found", flavor)
        if path != "token":
            return 200, {"email": "vm@test.iam.gserviceaccount.com", "scopes": [SCOPE], "aliases": ["default"]}, flavor
        status, body, _ = self.granted("metadata")
        return status, body, flavor

    def oauth(self, form):
        if form.get("grant_type") == "refresh_token":
            if (form.get("client_id"), form.get("client_secret"), form.get("refresh_token")) != ("c", "s&+", "r/="):
                raise Refusal(400, {"error": "invalid_grant", "error_description": f"Bad {form['refresh_token']}"})
            return self.granted("user")
        if form.get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer":
            audiences = (f"{self.url}/token", "https://oauth2.googleapis.com/token")
            if self.verified(form["assertion"]).get("aud") not in audiences:
                raise Refusal(400, {"error": "invalid_grant", "error_description": "Invalid JWT: aud"})
            return self.granted("service")
        raise Refusal(400, {"error": "unsupported_grant_type"})

    def exchange(self, form):
        expected = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "scope": SCOPE,
        }
        if any(form.get(name) != value for name, value in expected.items()) or "subject_token_type" not in form:
            raise Refusal(400, {"error": "invalid_request", "error_description": "Invalid request."})
        if not form.get("audience", "").startswith("//iam.googleapis.com/projects/"):
            raise Refusal(400, {"error": "invalid_target", "error_description": "Invalid audience."})
        if form.get("subject_token") not in self.config["subject_tokens"]:
            raise Refusal(400, {"error": "invalid_grant", "error_description": f"{form['subject_token']} is bad"})
        answer = self.granted("federated")
        answer[1]["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        return answer

    def impersonate(self, request):
        self.authenticate(request.bearer())
        body = request.json()
        if not request.bearer().startswith("ya29.federated.") or body["scope"] != [SCOPE]:
            raise error(403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied")
        if not re.fullmatch(r"[0-9]+s", body["lifetime"]):
            raise invalid("lifetime")
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + int(body["lifetime"][:-1])))
        return 200, {"accessToken": self.grant("impersonated"), "expireTime": expires}, {}

    def verified(self, jwt):
        """The claims of a JWT that a service account has signed."""
        bad = error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        try:
            head, claims, signature = jwt.split(".")
            header, body = json.loads(unb64url(head)), json.loads(unb64url(claims))
            email, key = self.accounts[header["kid"]]
            key.verify(unb64url(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
        except (ValueError, KeyError, InvalidSignature):
            raise bad from None
        now, issued, expires = time.time(), body["iat"], body["exp"]
        in_time = issued <= now < expires and expires - issued <= 3600
        if header["alg"] != "RS256" or not in_time or body["iss"] != email or body.get("sub", email) != email:
            raise bad
        return body

    def authenticate(self, token):
        if token in self.tokens:
            if self.tokens[token] > time.time():
                return
        elif token.startswith("ey"):
            claims = self.verified(token)
            if claims.get("scope") == SCOPE or claims.get("aud") == "https://cloudkms.googleapis.com/":
                return
        raise error(
            401,
            "UNAUTHENTICATED",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other "
            "valid authentication credential.",
            {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/", error="invalid_token"'},
        )

    # Cloud KMS.

    def kms(self, request, path):
        name, _, verb = path.partition(":")
        if request.method == "POST" and name.endswith("/keyRings"):
            ring = f"{name}/{request.query['keyRingId']}"
            self.rings[ring] = {"name": ring}
            return self.rings[ring]
        if request.method == "POST" and name.endswith("/cryptoKeys"):
            return self.create(name, request)
        if not KEY.match(name):
            raise invalid(f"Resource name [{name}] has no known form.")
        key = self.keys.get(KEY.match(name)[0])
        if key is None:
            raise error(404, "NOT_FOUND", f"CryptoKey {KEY.match(name)[0]} not found.")
        if request.method == "POST" and name.endswith("/cryptoKeyVersions"):
            return self.shown(self.version(key))
        if verb == "encrypt":
            return self.encrypt(key, name, self.fields(request, "plaintext"))
        if verb == "decrypt":
            return self.decrypt(key, self.fields(request, "ciphertext"))
        if verb == "updatePrimaryVersion":
            key["primary"] = int(request.json()["cryptoKeyVersionId"])
            return self.described(key)
        if "/cryptoKeyVersions/" not in name:
            return self.described(key)
        version = key["versions"][int(name.rsplit("/", 1)[1])]
        if verb == "destroy":
            version["state"] = "DESTROY_SCHEDULED"
        elif verb == "restore":
            version["state"] = "DISABLED"
        elif request.method == "PATCH":
            state = request.json()["state"]
            version["state"] = STATES[state] if isinstance(state, int) else state
            if version["state"] == "DESTROYED":
                version["aes"] = None
        return self.shown(version)

    def create(self, ring, request):
        if ring.removesuffix("/cryptoKeys") not in self.rings:
            raise error(404, "NOT_FOUND", f"KeyRing {ring} not found.")
        body = request.json()
        if body.get("purpose") not in (1, "ENCRYPT_DECRYPT", 5, "ASYMMETRIC_SIGN"):
            raise invalid("purpose")
        name = f"{ring}/{request.query['cryptoKeyId']}"
        purpose = "ENCRYPT_DECRYPT" if body["purpose"] in (1, "ENCRYPT_DECRYPT") else "ASYMMETRIC_SIGN"
        key = self.keys[name] = {"name": name, "purpose": purpose, "primary": 1, "versions": {}}
        self.version(key)
        return self.described(key)

    def version(self, key):
        number = len(key["versions"]) + 1
        name = f"{key['name']}/cryptoKeyVersions/{number}"
        # What a ciphertext names the version by.
        mark = b"\x00" + os.urandom(35)
        key["versions"][number] = {
            "name": name,
            "number": number,
            "state": "ENABLED",
            "aes": AESGCM(AESGCM.generate_key(256)),
            "mark": mark,
        }
        return key["versions"][number]

    @staticmethod
    def shown(version):
        algorithm = "GOOGLE_SYMMETRIC_ENCRYPTION"
        return {"name": version["name"], "state": version["state"], "protectionLevel": "SOFTWARE", "algorithm": algorithm}

    def described(self, key):
        shown = {"name": key["name"], "purpose": key["purpose"]}
        if key["purpose"] == "ENCRYPT_DECRYPT":
            shown["primary"] = self.shown(key["versions"][key["primary"]])
        return shown

    @staticmethod
    def fields(request, data):
        """The bytes of a request whose checksums match, and which checksums there were."""
        body = request.json()
        known = {name + suffix for name in (data, "additionalAuthenticatedData") for suffix in ("", "Crc32c")}
        for unknown in set(body) - known - {"name"}:
            raise invalid(f'Invalid JSON payload received. Unknown name "{unknown}": Cannot find field.')
        fields = {}
        for name in (data, "additionalAuthenticatedData"):
            try:
                fields[name] = base64.b64decode(body.get(name, ""), validate=True)
            except binascii.Error:
                raise invalid(f"Invalid value at '{name}' (TYPE_BYTES), Base64 decoding failed for \"{body[name]}\"")
            sum_ = body.get(f"{name}Crc32c")
            fields[f"{name}Crc32c"] = sum_ is not None
            if sum_ is not None and int(sum_) != crc32c(fields[name]):
                snake = re.sub("([A-Z])", lambda match: "_" + match[1].lower(), name)
                raise invalid(f"The checksum in field {snake}_crc32c did not match the data in field {snake}.")
        if not fields[data]:
            raise invalid(f"{data} is missing")
        return fields

    @staticmethod
    def check(key, version):
        if key["purpose"] != "ENCRYPT_DECRYPT":
            raise error(400, "FAILED_PRECONDITION", f"{key['name']} has purpose {key['purpose']}.")
        if version["state"] != "ENABLED":
            raise error(
                400, "FAILED_PRECONDITION", f"{version['name']} is not enabled, current state is: {version['state']}."
            )

    def encrypt(self, key, name, fields):
        number = int(name.rsplit("/", 1)[1]) if "/cryptoKeyVersions/" in name else key["primary"]
        version = key["versions"][number]
        self.check(key, version)
        nonce = os.urandom(12)
        sealed = version["aes"].encrypt(nonce, fields["plaintext"], fields["additionalAuthenticatedData"])
        content = b"\x00" + nonce + sealed
        ciphertext = b"\x0a\x24" + version["mark"] + b"\x12" + bytes([len(content)]) + content
        return {
            "name": version["name"],
            "ciphertext": base64.b64encode(ciphertext).decode(),
            "ciphertextCrc32c": str(crc32c(ciphertext)),
            "verifiedPlaintextCrc32c": fields["plaintextCrc32c"],
            "verifiedAdditionalAuthenticatedDataCrc32c": fields["additionalAuthenticatedDataCrc32c"],
            "protectionLevel": "SOFTWARE",
        }

    def decrypt(self, key, fields):
        ciphertext = fields["ciphertext"]
        if len(ciphertext) < 40 + 1 + 12 + 16 or ciphertext[:3] != b"\x0a\x24\x00":
            raise invalid("Decryption failed: the ciphertext is invalid.")
        mark, content = ciphertext[2:38], ciphertext[40:]
        version = next((one for one in key["versions"].values() if one["mark"] == mark), None)
        if version is None:
            raise invalid("Decryption failed: verify that 'name' refers to the correct CryptoKey.")
        self.check(key, version)
        try:
            if ciphertext[38:40] != bytes([0x12, len(content)]) or content[0] != 0:
                raise InvalidTag
            aad = fields["additionalAuthenticatedData"]
            plaintext = version["aes"].decrypt(content[1:13], content[13:], aad)
        except InvalidTag:
            raise invalid("Decryption failed: the ciphertext is invalid.") from None
        return {
            "plaintext": base64.b64encode(plaintext).decode(),
            "plaintextCrc32c": str(crc32c(plaintext)),
            "usedPrimary": version["number"] == key["primary"],
            "protectionLevel": "SOFTWARE",
        }


if __name__ == "__main__":
    Gcp().serve()
