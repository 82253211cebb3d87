"""What the substitutes for cloud services share: an HTTP server that notes every call and fails on request.

A test controls it by calls below `/fake/`. The vendors' own clients prove each substitute: see `gcp_client.py` and
`azure_client.py`.

POST /fake/faults   a list of faults, which replaces the previous one
GET  /fake/calls    the calls so far
POST /fake/forget   forgets them
"""

import base64
import json
import socket
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Refusal(Exception):
    """A response that is not a success."""

    def __init__(self, status, body, headers=None):
        super().__init__(body)
        self.status, self.body, self.headers = status, body, headers or {}


class Request:
    """One HTTP request."""

    def __init__(self, method, target, headers, body):
        self.method, self.headers, self.body = method, headers, body
        path, _, query = target.partition("?")
        self.path = urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(query))

    def json(self):
        return json.loads(self.body or b"{}")

    def form(self):
        return dict(urllib.parse.parse_qsl(self.body.decode()))

    def bearer(self):
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind == "Bearer" else ""


def flip(text):
    """The same base64 with one bit of its first byte changed, in either alphabet."""
    is_url = "-" in text or "_" in text or len(text) % 4
    raw = bytearray(base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_") + "=" * (-len(text) % 4)))
    raw[0] ^= 1
    return base64.urlsafe_b64encode(raw).decode().rstrip("=") if is_url else base64.b64encode(raw).decode()


class Fake:
    """A service. `answer` of a subclass returns a status, a JSON value and headers."""

    def __init__(self):
        self.lock = threading.Lock()
        self.calls, self.faults = [], []
        self.url = ""

    def answer(self, request):
        raise NotImplementedError

    def control(self, request):
        raise NotImplementedError

    def controlled(self, request):
        if request.path == "/fake/faults":
            self.faults = request.json()
            return {}
        if request.path == "/fake/calls":
            return self.calls
        if request.path == "/fake/forget":
            self.calls = []
            return {}
        return self.control(request)

    def fault(self, request):
        """The fault for this call, if there is one. One with a `count` ends after so many calls."""
        for fault in self.faults:
            if fault.get("path", "") in request.path and fault.get("count", 1) > 0:
                if "count" in fault:
                    fault["count"] -= 1
                return fault
        return {}

    def serve(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def log_message(self, *_):
                pass

            def handle_any(self):
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                if request.path.startswith("/fake/"):
                    with fake.lock:
                        answer = fake.controlled(request)
                    return self.send(200, answer, {})
                with fake.lock:
                    fake.calls.append({"method": request.method, "path": request.path, "body": request.body.decode()})
                    fault = fake.fault(request)
                kind = fault.get("kind")
                if kind == "slow":
                    time.sleep(fault["seconds"])
                elif kind == "hang":
                    time.sleep(3600)
                elif kind == "stall":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
                    self.wfile.flush()
                    time.sleep(3600)
                elif kind == "reset":
                    # With this the end of the connection is a RST.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return self.connection.close()
                elif kind == "status":
                    return self.send(fault["status"], fault.get("body", ""), fault.get("headers", {}))
                elif kind == "flip-request":
                    changed = request.json()
                    changed[fault["field"]] = flip(changed[fault["field"]])
                    request.body = json.dumps(changed).encode()
                try:
                    with fake.lock:
                        status, body, headers = fake.answer(request)
                except Refusal as refusal:
                    status, body, headers = refusal.status, refusal.body, refusal.headers
                if kind == "flip":
                    body[fault["field"]] = flip(body[fault["field"]])
                elif kind == "set":
                    body.update(fault["fields"])
                return self.send(status, body, headers)

            def send(self, status, body, headers):
                text = body if isinstance(body, str) else json.dumps(body)
                self.send_response(status)
                for name, value in {"content-type": "application/json; charset=utf-8", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *_):
                # A client that breaks a connection off is no error of the substitute.
                pass

        server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        print(f"listening on {self.url}", flush=True)
        server.serve_forever()
