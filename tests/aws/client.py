"""A program that uses AWS KMS: boto3 and the AWS Encryption SDK, with nothing set but the environment.
CLIENT_CERT names a file with a client certificate and its key, for which boto3 has no variable.

It reads commands from stdin, a JSON object a line, and answers each with one on stdout:

  {"call": operation, "args": {...}}    one call of boto3, such as "encrypt" -> its response
  {"load": count, "threads": n, "key": id}
                                        count calls of encrypt and of generate_data_key
                                        -> {"made": n, "wrong": n, "first": text of the first failure}
  {"write": {"hex": bytes}, "provider": P}
                                        a message of the AWS Encryption SDK -> {"message": {"hex": ...}}
  {"read": {"hex": message}, "provider": P}
                                        -> {"plaintext": {"hex": ...}, "keys": key ids in its header}

P is {"strict": [key ARN, ...]}, {"discovery": true}, or {"keyrings": [key ARN, ...]}: a multi-keyring
whose first key generates the data key. Bytes are {"hex": text} in both directions. A
call that fails is {"error": code, "message": text, "log": what the AWS Encryption SDK logged of it}.
"""

import concurrent.futures
import datetime
import json
import logging
import os
import sys

import boto3
import botocore.config
import botocore.exceptions

config = botocore.config.Config(
    max_pool_connections=16, client_cert=os.environ.get("CLIENT_CERT")
)
kms = boto3.client("kms", config=config)


class Log(logging.Handler):
    """Collects what is logged. The SDK logs each key that does not open a message with a traceback,
    also if the next key opens it; where none does, the call fails, and its response has the log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))

    def take(self):
        lines, self.lines = self.lines, []
        return lines


log = Log()
logging.getLogger("aws_encryption_sdk").addHandler(log)


def to_bytes(value):
    if isinstance(value, dict):
        if list(value) == ["hex"]:
            return bytes.fromhex(value["hex"])
        return {key: to_bytes(item) for key, item in value.items()}
    return value


def from_bytes(value):
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    if isinstance(value, dict):
        return {key: from_bytes(item) for key, item in value.items() if key != "ResponseMetadata"}
    if isinstance(value, list):
        return [from_bytes(item) for item in value]
    return value


def one(key, number):
    """Makes a ciphertext and a data key; each must decrypt to its plaintext if they are sampled."""
    plaintext = str(number).encode()
    made = kms.encrypt(KeyId=key, Plaintext=plaintext)
    data_key = kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert len(data_key["Plaintext"]) == 32
    if number % 100 == 0:
        assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == plaintext
        opened = kms.decrypt(CiphertextBlob=data_key["CiphertextBlob"])
        assert opened["Plaintext"] == data_key["Plaintext"]


def load(count, threads, key):
    failures = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(one, key, number) for number in range(count)]
        for call in calls:
            if error := call.exception():
                failures.append(repr(error))
    first = failures[0] if failures else ""
    return {"made": count - len(failures), "wrong": len(failures), "first": first}


def keys(how):
    """The argument of the AWS Encryption SDK that names the keys."""
    import aws_encryption_sdk

    if "keyrings" in how:
        from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
        from aws_cryptographic_material_providers.mpl import config, models

        materials = AwsCryptographicMaterialProviders(config=config.MaterialProvidersConfig())
        first, *others = (
            materials.create_aws_kms_keyring(
                models.CreateAwsKmsKeyringInput(kms_key_id=arn, kms_client=kms)
            )
            for arn in how["keyrings"]
        )
        both = models.CreateMultiKeyringInput(generator=first, child_keyrings=others)
        return {"keyring": materials.create_multi_keyring(both)}
    if "strict" in how:
        provider = aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(key_ids=how["strict"])
    else:
        provider = aws_encryption_sdk.DiscoveryAwsKmsMasterKeyProvider()
    return {"key_provider": provider}


def run(command):
    command = to_bytes(command)
    if "call" in command:
        return getattr(kms, command["call"])(**command.get("args", {}))
    if "load" in command:
        return load(command["load"], command["threads"], command["key"])
    # It takes seconds to import, and most programs only use boto3.
    import aws_encryption_sdk

    sdk = aws_encryption_sdk.EncryptionSDKClient()
    provider = keys(command["provider"])
    if "write" in command:
        message, _ = sdk.encrypt(source=command["write"], **provider)
        return {"message": message}
    plaintext, header = sdk.decrypt(source=command["read"], **provider)
    ids = [key.key_provider.key_info.decode() for key in header.encrypted_data_keys]
    return {"plaintext": plaintext, "keys": sorted(ids)}


def failures():
    """What the libraries that are in use raise."""
    sdk = sys.modules.get("aws_encryption_sdk")
    of_sdk = (sdk.exceptions.AWSEncryptionSDKClientError,) if sdk else ()
    return (botocore.exceptions.BotoCoreError, *of_sdk)


for line in sys.stdin:
    log.take()
    try:
        answer = run(json.loads(line))
    except botocore.exceptions.ClientError as error:
        answer = {"error": error.response["Error"]["Code"], "message": str(error), "log": log.take()}
    except failures() as error:
        answer = {"error": type(error).__name__, "message": str(error), "log": log.take()}
    print(json.dumps(from_bytes(answer)), flush=True)
