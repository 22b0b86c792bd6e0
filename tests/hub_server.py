"""A model hub on the loopback address: what pushing and loading use of the Hugging Face Hub's HTTP API."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Repositories by name: whether they are private, and the files of their last commit."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.private, self.files, self.messages, self.unknown = {}, {}, [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo):
        return hashlib.sha1(json.dumps(sorted(self.files[repo])).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        size = self.headers.get("Content-Length")
        body = self.chunked() if size is None else self.rfile.read(int(size))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.private[repo] = asked.get("private", asked.get("visibility"))
            self.server.files.setdefault(repo, {})
            return self.answer(200, {"url": f"{self.server.url}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        if re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            repo = found[1]
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    self.server.messages.append(entry["value"]["summary"])
                else:
                    assert entry["key"] == "file"
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[repo][entry["value"]["path"]] = content
            commit = self.server.commit(repo)
            url = f"{self.server.url}/{repo}/commit/{commit}"
            return self.answer(200, {"commitUrl": url, "commitOid": commit})
        self.server.unknown.append(f"POST {self.path}")
        return self.answer(404, {"error": "not found"})

    def do_GET(self, *, head=False):
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.+)?", path):
            repo = found[1]
            if repo not in self.server.files:
                return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            files = self.server.files[repo]
            if (found[2] or "").startswith("/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in sorted(files.items())
                ]
                return self.answer(200, tree)
            about = {"id": repo, "sha": self.server.commit(repo), "private": False, "tags": []}
            return self.answer(200, about | {"siblings": [{"rfilename": name} for name in sorted(files)]})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.files.get(found[1], {}).get(found[2])
            if content is None:
                return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            headers = {
                "X-Repo-Commit": self.server.commit(found[1]),
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            }
            return self.answer(200, content, headers, head=head)
        self.server.unknown.append(f"GET {self.path}")
        return self.answer(404, {"error": "not found"})

    def do_HEAD(self):
        return self.do_GET(head=True)

    def chunked(self):
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, code, content, headers=None, *, head=False):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
