"""Azure's own client of Key Vault: it proves the substitute, and unwraps what kms-proxy wraps.

It is called with the URL of the substitute, reads commands from stdin, a JSON object a line, and answers each with one
on stdout. Bytes are hexadecimal.

  {"prove": true}                         what the client can do -> {"done": [...]}
  {"wrap": bytes, "key": name}            -> {"sealed": bytes, "version": id}
  {"unwrap": bytes, "key": name, "version": id}
                                          -> {"plain": bytes}
"""

import json
import sys
import time
import urllib.parse
import urllib.request

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.transport import RequestsTransport
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm
from azure.keyvault.keys.crypto._providers import NoLocalCryptography

ALGORITHM = KeyWrapAlgorithm.rsa_oaep_256


class Secret:
    """Gets tokens with a client secret, for what the challenge of the vault names."""

    def __init__(self, url):
        self.url = url

    def get_token(self, *scopes, **_):
        form = {"grant_type": "client_credentials", "client_id": "client", "client_secret": "s&+", "scope": scopes[0]}
        request = urllib.request.Request(f"{self.url}/tenant/oauth2/v2.0/token", urllib.parse.urlencode(form).encode())
        granted = json.load(urllib.request.urlopen(request))
        return AccessToken(granted["access_token"], int(time.time()) + granted["expires_in"])


class Plain(RequestsTransport):
    """The client speaks https alone, and the substitute http."""

    def send(self, request, **kwargs):
        secure = request.url
        request.url = secure.replace("https://", "http://", 1)
        try:
            return super().send(request, **kwargs)
        finally:
            request.url = secure


class Azure:
    def __init__(self, url):
        self.url = url
        self.more = {"credential": Secret(url), "transport": Plain(), "verify_challenge_resource": False}
        self.keys = KeyClient(vault_url=url.replace("http://", "https://"), **self.more)

    def crypto(self, name, version=None, latest=False):
        key = self.keys.get_key(name, version)
        key_id = key.id.rsplit("/", 1)[0] if latest else key.id
        client = CryptographyClient(key_id.replace("http://", "https://"), **self.more)
        # Wrapping with the public key needs no call: the substitute is what is proved.
        client._local_provider = NoLocalCryptography()
        client._initialized = True
        return client, key


def fails(kind, part, call):
    try:
        call()
    except kind as error:
        assert part in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}")


def prove(azure):
    azure.keys.create_rsa_key("proof", size=2048)
    client, key = azure.crypto("proof")
    sealed = client.wrap_key(ALGORITHM, b"k" * 48)
    # The client writes the scheme of its own URL.
    assert sealed.key_id.split("/keys/")[1] == key.id.split("/keys/")[1] and len(sealed.encrypted_key) == 256
    assert client.unwrap_key(ALGORITHM, sealed.encrypted_key).key == b"k" * 48
    bad = bytes([sealed.encrypted_key[0] ^ 1]) + sealed.encrypted_key[1:]
    fails(HttpResponseError, "parameter is incorrect", lambda: client.unwrap_key(ALGORITHM, bad))
    old = key.properties.version
    rotated = azure.keys.rotate_key("proof")
    assert rotated.properties.version != old and azure.keys.get_key("proof").properties.version != old
    assert client.unwrap_key(ALGORITHM, sealed.encrypted_key).key == b"k" * 48
    # The client leaves the version empty in the path, as kms-proxy does: the latest one wraps.
    latest, _ = azure.crypto("proof", latest=True)
    newer = latest.wrap_key(ALGORITHM, b"k" * 48).encrypted_key
    client_of_rotated, _ = azure.crypto("proof", rotated.properties.version)
    assert client_of_rotated.unwrap_key(ALGORITHM, newer).key == b"k" * 48
    fails(HttpResponseError, "parameter is incorrect", lambda: client.unwrap_key(ALGORITHM, newer))
    azure.keys.update_key_properties("proof", old, enabled=False)
    fails(HttpResponseError, "disabled key", lambda: client.unwrap_key(ALGORITHM, sealed.encrypted_key))
    fails(ResourceNotFoundError, "not found", lambda: azure.keys.get_key("missing"))
    return ["challenge", "keys", "wrap", "unwrap", "rotation", "latest", "states"]


def answer(azure, command):
    if "prove" in command:
        return {"done": prove(azure)}
    if "wrap" in command:
        client, key = azure.crypto(command["key"])
        sealed = client.wrap_key(ALGORITHM, bytes.fromhex(command["wrap"])).encrypted_key
        return {"sealed": sealed.hex(), "version": key.properties.version}
    client, _ = azure.crypto(command["key"], command["version"])
    return {"plain": client.unwrap_key(ALGORITHM, bytes.fromhex(command["unwrap"])).key.hex()}


if __name__ == "__main__":
    AZURE = Azure(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(answer(AZURE, json.loads(line))), flush=True)
