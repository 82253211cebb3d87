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
  {"do": "burst", "count": n}       the first kept ones, n concurrently on one connection
                                    -> {"ok": n, "failed": n, "first": text, "p50_ms", "p99_ms", "max_ms"}
  {"do": "churn"}                   from now on secrets are written and read again in the background
  {"do": "calm"}                    no more -> {"writes", "reads", "refused": n, "wrong": n, "first": text}

A call that fails is {"error": name of the code, "detail": text}. A call that has no answer in time is
repeated, as kube-apiserver repeats it: on a loaded machine that is not an outage. A command with
"once": true repeats nothing. The argument is the socket's target,
and the second one the authority; more targets with commas between them are taken in turn by churn.
"""

import concurrent.futures
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


# How long a call waits, and for how long it is repeated.
TIMEOUT = 30
patience = 120


def is_late(error):
    """Whether a call had no answer in time. The plugin gives up before kube-apiserver does."""
    late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    return late or "did not answer in time" in (error.details() or "")


def repeated(call):
    """The result of a call that is repeated while it has no answer in time."""
    end = time.monotonic() + patience
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if not is_late(error) or time.monotonic() > end:
                raise


class Plugin:
    """One plugin."""

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
        return repeated(lambda: self.stub.Status(pb.StatusRequest(), timeout=TIMEOUT))

    def encrypt(self, plaintext, uid):
        request = pb.EncryptRequest(plaintext=plaintext, uid=uid)
        return repeated(lambda: self.stub.Encrypt(request, timeout=TIMEOUT))

    def request(self, ciphertext, key_id, uid, annotations):
        return pb.DecryptRequest(
            ciphertext=ciphertext, key_id=key_id, uid=uid, annotations=annotations
        )

    def decrypt(self, *given):
        request = self.request(*given)
        return repeated(lambda: self.stub.Decrypt(request, timeout=TIMEOUT)).plaintext


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


def failure(plugin, secret, uid):
    """Why a secret can not be read; nothing if it can."""
    try:
        return "" if read(plugin, secret, uid) else "it came back as something else"
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


# Calls that are made concurrently.
pool = concurrent.futures.ThreadPoolExecutor(8)


class Churn(threading.Thread):
    """Writes and reads until it is stopped. A plugin that is away is tried again; what comes back must
    be right."""

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
                if "store_unavailable" in (error.details() or ""):
                    # etcd is slow on a loaded machine; no test takes it away under this.
                    time.sleep(0.01)
                elif error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    self.refused += 1
                    time.sleep(0.01)
                else:
                    self.wrong += 1
                    self.first = self.first or f"{error.code().name}: {error.details()}"


def burst(plugin, secrets, count):
    done = threading.Semaphore(0)
    times, failures, late = [], [], []
    chosen = list(itertools.islice(itertools.cycle(secrets), count))
    # Connected before, as a kube-apiserver is; only the calls are measured.
    grpc.channel_ready_future(plugin.channel).result(timeout=120)

    def finish(started, secret):
        def ended(call):
            times.append((time.perf_counter() - started) * 1e3)
            error = call.exception()
            if error is not None and is_late(error):
                late.append(secret)
            elif error is not None:
                failures.append(f"{error.code().name}: {error.details()}")
            elif call.result().plaintext != secret[0]:
                failures.append("it came back as something else")
            done.release()

        return ended

    for number, secret in enumerate(chosen):
        _, ciphertext, key_id, annotations = secret
        request = plugin.request(ciphertext, key_id, f"burst-{number}", annotations)
        call = plugin.stub.Decrypt.future(request, timeout=120)
        call.add_done_callback(finish(time.perf_counter(), secret))
    for _ in chosen:
        done.acquire()
    failures.extend(filter(None, (failure(plugin, secret, "burst-again") for secret in late)))
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
        global patience
        nonlocal churn
        patience = 0 if command.get("once") else 120
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
                writes = [
                    pool.submit(secrets.write, plugin, os.urandom(32))
                    for _ in range(command["count"])
                ]
                for write in writes:
                    write.result()
                kept = secrets.all()
                return {"secrets": len(kept), "key_ids": sorted({secret[2] for secret in kept})}
            case "read":
                kept = secrets.all()
                readers = itertools.cycle(plugins)
                uids = (f"read-{number}" for number in range(len(kept)))
                failures = [why for why in pool.map(failure, readers, kept, uids) if why]
                key_ids = sorted({secret[2] for secret in kept})
                first = (failures or [""])[0]
                return {
                    "read": len(kept),
                    "wrong": len(failures),
                    "first": first,
                    "key_ids": key_ids,
                }
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
