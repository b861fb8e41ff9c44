"""A loopback stand-in of the hub: one data set, with a token, faults on demand, and a count of what it sent."""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "a" * 40


class HubStub:
    """Serves files of the data set `owner/name`.

    Args:
        files: bytes by path in the repository.
        token: that requests have to bring; None asks for none.
    """

    def __init__(self, files, *, token=None):
        self.files, self.token = files, token
        self.faults = defaultdict(list)  # by path: '503', 'cut', 'slow', each for one GET
        self.sent, self.gets = Counter(), Counter()
        self.held = {}  # by path: a threading.Event that has to be set before a GET is answered
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                stub.answer(self, body=False)

            def do_GET(self):
                stub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, *, body):
        path = unquote(urlsplit(request.path).path)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        api = "/api/datasets/owner/name"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{SHA}"):
            content = {"id": "owner/name", "sha": SHA, "private": False, "tags": [], "downloads": 0, "likes": 0}
            return self.fault(request, "info", body) or self.send(request, 200, json.dumps(content).encode())
        if path == f"{api}/tree/{SHA}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return self.fault(request, "tree", body) or self.send(request, 200, json.dumps(tree).encode())
        prefix = f"/datasets/owner/name/resolve/{SHA}/"
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in self.files:
            code = "RevisionNotFound" if path.startswith(f"{api}/revision") else "EntryNotFound"
            return self.send(request, 404, b"", {"X-Error-Code": code})
        return self.file(request, name, body)

    def fault(self, request, name, body):
        if body and self.faults[name] and self.faults[name][0] == "503":
            self.faults[name].pop(0)
            self.send(request, 503, b"")
            return True
        return False

    def file(self, request, name, body):
        data = self.files[name]
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if not body:
            return self.send(request, 200, data, headers, body=False)
        self.gets[name] += 1
        if name in self.held:
            self.held[name].wait(120)
        if self.fault(request, name, body):
            return None
        start = 0
        if span := request.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        fault = self.faults[name].pop(0) if self.faults[name] else ""
        rest = data[start:]
        request.send_response(206 if span else 200)
        for key, value in {**headers, "Content-Length": str(len(rest))}.items():
            request.send_header(key, value)
        request.end_headers()
        if fault == "cut":
            rest = rest[: len(rest) // 2]
            request.close_connection = True
        with contextlib.suppress(OSError):
            for at in range(0, len(rest), 1 << 16):
                request.wfile.write(rest[at : at + (1 << 16)])
                self.sent[name] += len(rest[at : at + (1 << 16)])
                if fault == "slow":
                    time.sleep(0.05)
        return None

    def send(self, request, status, data, headers=None, *, body=True):
        request.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if body:
            request.wfile.write(data)
