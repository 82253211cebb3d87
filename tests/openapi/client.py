"""Uses the client that a public generator makes from the OpenAPI document: its directory and the service's URL
are the arguments."""

import base64
import sys
from pathlib import Path

generated = Path(sys.argv[1])
sys.path.insert(0, str(generated.parent))

from generated import Client  # noqa: E402
from generated.api.data import batch_encrypt, decrypt, encrypt, rewrap  # noqa: E402
from generated.api.keys import list_chains, rotate  # noqa: E402
from generated.models import (  # noqa: E402
    DecryptRequest,
    EncryptBatch,
    EncryptRequest,
    Problem,
    RewrapRequest,
    RotateRequest,
)

client = Client(base_url=sys.argv[2])
hello, row = (base64.b64encode(text).decode() for text in (b"hello", b"row 7"))

made = encrypt.sync(client=client, body=EncryptRequest(plaintext=hello, aad=row))
opened = decrypt.sync(client=client, body=DecryptRequest(ciphertext=made.ciphertext, aad=row))
assert (opened.plaintext, opened.kek_id) == (hello, made.kek_id), opened

problem = decrypt.sync(client=client, body=DecryptRequest(ciphertext=made.ciphertext))
assert isinstance(problem, Problem) and problem.code == "invalid_ciphertext", problem

rotated = rotate.sync(client=client, body=RotateRequest())
moved = rewrap.sync(client=client, body=RewrapRequest(ciphertext=made.ciphertext))
assert (moved.previous_kek_id, moved.kek_id) == (made.kek_id, rotated.primary), moved
again = decrypt.sync(client=client, body=DecryptRequest(ciphertext=moved.ciphertext, aad=row))
assert again.plaintext == hello, again

items = [EncryptRequest(plaintext=hello), EncryptRequest(plaintext="!")]
results = batch_encrypt.sync(client=client, body=EncryptBatch(items=items)).results
assert results[0].chain == "default" and results[1].error.code == "invalid_request", results
assert [chain.chain for chain in list_chains.sync(client=client).chains] == ["default"]
print("a generated client encrypts and decrypts")
