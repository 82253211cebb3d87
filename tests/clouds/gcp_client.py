"""Google's own client of Cloud KMS, by REST: it proves the substitute, and opens what kms-proxy wraps.

It is called with the URL of the substitute and a file with credentials, reads commands from stdin, a JSON object a line,
and answers each with one on stdout. Bytes are hexadecimal.

  {"prove": true}                                 what the client can do -> {"done": [...]}
  {"encrypt": bytes, "aad": bytes, "key": name}   -> {"ciphertext": bytes, "version": n}
  {"decrypt": bytes, "aad": bytes, "key": name}   -> {"plaintext": bytes}
"""

import json
import sys

import google.auth
from google.api_core import exceptions
from google.cloud import kms
from google.cloud.kms_v1.services.key_management_service.transports.rest import KeyManagementServiceRestTransport
from fake_gcp import SCOPE, crc32c

State = kms.CryptoKeyVersion.CryptoKeyVersionState


def client(url, file):
    credentials, _ = google.auth.load_credentials_from_file(file, scopes=[SCOPE])
    host = url.removeprefix("http://")
    transport = KeyManagementServiceRestTransport(host=host, credentials=credentials, url_scheme="http")
    return kms.KeyManagementServiceClient(transport=transport)


def encrypt(google, key, plaintext, aad):
    """As Google's documentation shows it, with the checks of all checksums."""
    response = google.encrypt(
        request={
            "name": key,
            "plaintext": plaintext,
            "plaintext_crc32c": crc32c(plaintext),
            "additional_authenticated_data": aad,
            "additional_authenticated_data_crc32c": crc32c(aad),
        }
    )
    assert response.verified_plaintext_crc32c and response.verified_additional_authenticated_data_crc32c
    assert response.ciphertext_crc32c == crc32c(response.ciphertext)
    return response


def decrypt(google, key, ciphertext, aad):
    response = google.decrypt(
        request={
            "name": key,
            "ciphertext": ciphertext,
            "ciphertext_crc32c": crc32c(ciphertext),
            "additional_authenticated_data": aad,
            "additional_authenticated_data_crc32c": crc32c(aad),
        }
    )
    assert response.plaintext_crc32c == crc32c(response.plaintext)
    return response


def fails(kind, part, call):
    try:
        call()
    except kind as error:
        assert part in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}")


def prove(google):
    location = "projects/p/locations/europe-west3"
    ring = google.create_key_ring(request={"parent": location, "key_ring_id": "proof", "key_ring": {}})
    made = google.create_crypto_key(
        request={
            "parent": ring.name,
            "crypto_key_id": "one",
            "crypto_key": {"purpose": kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT},
        }
    )
    assert made.primary.state == State.ENABLED and made.primary.name == f"{made.name}/cryptoKeyVersions/1"
    key = google.get_crypto_key(request={"name": made.name}).name
    old = encrypt(google, key, b"hello", b"context")
    assert old.name == made.primary.name
    opened = decrypt(google, key, old.ciphertext, b"context")
    assert (opened.plaintext, opened.used_primary) == (b"hello", True)
    fails(exceptions.BadRequest, "ciphertext is invalid", lambda: decrypt(google, key, old.ciphertext, b"other"))
    fails(exceptions.BadRequest, "Decryption failed", lambda: decrypt(google, key, b"x" * 100, b"context"))
    request = {"name": key, "plaintext": b"hello", "plaintext_crc32c": 1}
    fails(exceptions.BadRequest, "plaintext_crc32c did not match", lambda: google.encrypt(request=request))

    # The key is rotated: the old version still opens, until it is disabled or destroyed.
    version = google.create_crypto_key_version(request={"parent": key, "crypto_key_version": {}})
    google.update_crypto_key_primary_version(request={"name": key, "crypto_key_version_id": "2"})
    assert encrypt(google, key, b"hello", b"").name == version.name
    opened = decrypt(google, key, old.ciphertext, b"context")
    assert (opened.plaintext, opened.used_primary) == (b"hello", False)
    change = {"crypto_key_version": {"name": old.name, "state": State.DISABLED}, "update_mask": "state"}
    assert google.update_crypto_key_version(request=change).state == State.DISABLED
    old_opens = lambda: decrypt(google, key, old.ciphertext, b"context")
    fails(exceptions.BadRequest, "current state is: DISABLED", old_opens)
    change["crypto_key_version"]["state"] = State.ENABLED
    google.update_crypto_key_version(request=change)
    assert old_opens().plaintext == b"hello"
    assert google.destroy_crypto_key_version(request={"name": old.name}).state == State.DESTROY_SCHEDULED
    fails(exceptions.BadRequest, "current state is: DESTROY_SCHEDULED", old_opens)
    assert google.restore_crypto_key_version(request={"name": old.name}).state == State.DISABLED
    fails(exceptions.NotFound, "not found", lambda: encrypt(google, f"{key}x", b"hello", b""))
    return ["rings", "keys", "encrypt", "decrypt", "checksums", "rotation", "states"]


def answer(google, command):
    if "prove" in command:
        return {"done": prove(google)}
    aad = bytes.fromhex(command["aad"])
    if "encrypt" in command:
        response = encrypt(google, command["key"], bytes.fromhex(command["encrypt"]), aad)
        return {"ciphertext": response.ciphertext.hex(), "version": int(response.name.rsplit("/", 1)[1])}
    response = decrypt(google, command["key"], bytes.fromhex(command["decrypt"]), aad)
    return {"plaintext": response.plaintext.hex()}


if __name__ == "__main__":
    GOOGLE = client(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(answer(GOOGLE, json.loads(line))), flush=True)
