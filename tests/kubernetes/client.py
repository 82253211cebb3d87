"""A client of KMS plugins that shares no code with kms-proxy: grpcio, with stubs made from kms.proto.

It reads commands from stdin, a JSON object a line, and answers each with one on stdout:

  {"do": "status"}                                  -> {"version", "healthz", "key_id", "ms"}
  {"do": "encrypt", "plaintext": hex, "uid": text}  -> {"ciphertext": hex, "key_id", "annotations"}
  {"do": "decrypt", "ciphertext": hex, "key_id": text, "uid": text, "annotations": {name: hex}}
                                                    -> {"plaintext": hex}
  {"do": "write", "count": n}       n secrets are encrypted and kept here
                                    -> {"secrets": how many are kept, "key_ids": distinct ones}
  {"do": "read"}                    all that are kept are decrypted and compared
                                    -> {"read": n, "wrong": n, "first": text of the first failure}
  {"do": "burst", "count": n}       the first kept ones, n at once on one connection
                                    -> {"ok": n, "failed": n, "first": text, "p50_ms", "p99_ms", "max_ms"}
  {"do": "churn"}                   from now on secrets are written and read again in the background
  {"do": "calm"}                    no more -> {"writes", "reads", "refused": n, "wrong": n, "first": text}

A call that fails is {"error": name of the code, "detail": text}. The argument is the socket's target,
and the second one the authority; more targets with commas between them are taken in turn by churn.
"""

import importlib
import itertools
import json
import os
import sys
import tempfile
import threading
import time

import grpc
from grpc_tools import protoc

HERE = os.path.dirname(os.path.abspath(__file__))


def stubs():
    out = tempfile.mkdtemp()
    made = protoc.main(
        ["protoc", f"-I{HERE}", f"--python_out={out}", f"--grpc_python_out={out}", "kms.proto"]
    )
    assert made == 0, "the stubs can not be made"
    sys.path.insert(0, out)
    return importlib.import_module("kms_pb2"), importlib.import_module("kms_pb2_grpc")


pb, pb_grpc = stubs()


class Plugin:
    """One plugin; kube-apiserver waits three seconds for it."""

    def __init__(self, target, authority):
        options = [
            ("grpc.default_authority", authority),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 50),
        ]
        self.channel = grpc.insecure_channel(target, options)
        self.stub = pb_grpc.KeyManagementServiceStub(self.channel)

    def status(self):
        return self.stub.Status(pb.StatusRequest(), timeout=3)

    def encrypt(self, plaintext, uid):
        return self.stub.Encrypt(pb.EncryptRequest(plaintext=plaintext, uid=uid), timeout=3)

    def request(self, ciphertext, key_id, uid, annotations):
        return pb.DecryptRequest(
            ciphertext=ciphertext, key_id=key_id, uid=uid, annotations=annotations
        )

    def decrypt(self, *given):
        return self.stub.Decrypt(self.request(*given), timeout=3).plaintext


class Secrets:
    """What was written: seeds as kube-apiserver makes them, each with what came back."""

    def __init__(self):
        self.kept = []
        self.lock = threading.Lock()

    def write(self, plugin, seed):
        made = plugin.encrypt(seed, f"write-{len(self.kept)}")
        assert 0 < len(made.ciphertext) <= 1024 and 0 < len(made.key_id) <= 1024
        with self.lock:
            self.kept.append((seed, made.ciphertext, made.key_id, dict(made.annotations)))

    def all(self):
        with self.lock:
            return list(self.kept)


def read(plugin, secret, uid):
    seed, ciphertext, key_id, annotations = secret
    return plugin.decrypt(ciphertext, key_id, uid, annotations) == seed


class Churn(threading.Thread):
    """Writes and reads again, as long as it is let. A plugin that is away is tried again; what comes
    back must be right."""

    def __init__(self, plugins, secrets):
        super().__init__(daemon=True)
        self.plugins, self.secrets = plugins, secrets
        self.stopping = threading.Event()
        self.writes = self.reads = self.refused = self.wrong = 0
        self.first = ""

    def run(self):
        for number in itertools.count():
            if self.stopping.is_set():
                return
            plugin = self.plugins[number % len(self.plugins)]
            try:
                self.secrets.write(plugin, os.urandom(32))
                self.writes += 1
                kept = self.secrets.all()
                secret = kept[(number * 7919) % len(kept)]
                # By the other one, where there are two.
                other = self.plugins[(number + 1) % len(self.plugins)]
                if read(other, secret, f"churn-{number}"):
                    self.reads += 1
                else:
                    self.wrong += 1
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    self.refused += 1
                    time.sleep(0.01)
                else:
                    self.wrong += 1
                    self.first = self.first or f"{error.code().name}: {error.details()}"


def burst(plugin, secrets, count):
    done = threading.Semaphore(0)
    times, failures = [], []
    chosen = list(itertools.islice(itertools.cycle(secrets), count))
    # Connected before, as a kube-apiserver is; only the calls are measured.
    grpc.channel_ready_future(plugin.channel).result(timeout=30)

    def finish(started, seed):
        def ended(call):
            times.append((time.perf_counter() - started) * 1e3)
            error = call.exception()
            if error is not None:
                failures.append(f"{error.code().name}: {error.details()}")
            elif call.result().plaintext != seed:
                failures.append("it came back as something else")
            done.release()

        return ended

    for number, (seed, ciphertext, key_id, annotations) in enumerate(chosen):
        request = plugin.request(ciphertext, key_id, f"burst-{number}", annotations)
        call = plugin.stub.Decrypt.future(request, timeout=60)
        call.add_done_callback(finish(time.perf_counter(), seed))
    for _ in chosen:
        done.acquire()
    times.sort()
    at = lambda part: round(times[min(len(times) - 1, int(len(times) * part))], 2)
    return {
        "ok": len(times) - len(failures),
        "failed": len(failures),
        "first": (failures or [""])[0],
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": round(times[-1], 2),
    }


def main():
    plugins = [Plugin(target, sys.argv[2]) for target in sys.argv[1].split(",")]
    plugin, secrets, churn = plugins[0], Secrets(), None

    def do(command):
        nonlocal churn
        match command["do"]:
            case "status":
                started = time.perf_counter()
                status = plugins[command.get("plugin", 0)].status()
                ms = (time.perf_counter() - started) * 1e3
                return {
                    "version": status.version,
                    "healthz": status.healthz,
                    "key_id": status.key_id,
                    "ms": ms,
                }
            case "encrypt":
                made = plugin.encrypt(bytes.fromhex(command["plaintext"]), command["uid"])
                annotations = {name: value.hex() for name, value in made.annotations.items()}
                return {
                    "ciphertext": made.ciphertext.hex(),
                    "key_id": made.key_id,
                    "annotations": annotations,
                }
            case "decrypt":
                given = command.get("annotations", {})
                annotations = {name: bytes.fromhex(value) for name, value in given.items()}
                ciphertext = bytes.fromhex(command["ciphertext"])
                other = plugins[command.get("plugin", 0)]
                opened = other.decrypt(ciphertext, command["key_id"], command["uid"], annotations)
                return {"plaintext": opened.hex()}
            case "write":
                for _ in range(command["count"]):
                    secrets.write(plugin, os.urandom(32))
                kept = secrets.all()
                return {"secrets": len(kept), "key_ids": sorted({secret[2] for secret in kept})}
            case "read":
                wrong, first = 0, ""
                kept = secrets.all()
                for number, secret in enumerate(kept):
                    reader = plugins[number % len(plugins)]
                    try:
                        if not read(reader, secret, f"read-{number}"):
                            wrong, first = wrong + 1, first or "it came back as something else"
                    except grpc.RpcError as error:
                        wrong += 1
                        first = first or f"{error.code().name}: {error.details()}"
                key_ids = sorted({secret[2] for secret in kept})
                return {"read": len(kept), "wrong": wrong, "first": first, "key_ids": key_ids}
            case "burst":
                return burst(plugin, secrets.all(), command["count"])
            case "churn":
                churn = Churn(plugins, secrets)
                churn.start()
                return {}
            case "calm":
                churn.stopping.set()
                churn.join()
                return {
                    "writes": churn.writes,
                    "reads": churn.reads,
                    "refused": churn.refused,
                    "wrong": churn.wrong,
                    "first": churn.first,
                }

    for line in sys.stdin:
        try:
            answer = do(json.loads(line))
        except grpc.RpcError as error:
            answer = {"error": error.code().name, "detail": error.details()}
        print(json.dumps(answer), flush=True)


main()
