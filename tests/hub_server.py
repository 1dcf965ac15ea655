"""A small server on loopback that speaks what huggingface_hub's client asks of the Hub to publish and load models."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """
    Use as a context manager; `url` goes into `HF_ENDPOINT`. `repositories[name]["branches"][branch]` has the files,
    `repositories[name]["commits"]` their history (title and files), `requests` what was asked for, `fail` the number of uploads of large files to
    refuse; with `hang` it accepts everything and answers nothing but the creation of a repository.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.objects, self.requests, self.tokens, self.fail = {}, {}, [], set(), 0
        self.hang = False

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = self.path.split("?")[0]
        server.requests.append(f"{self.command} {path}")
        if "Authorization" in self.headers:
            server.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))

        if server.hang and path != "/api/repos/create":
            time.sleep(600)
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            if not server.tokens:
                return self._answer({"error": "no token"}, 401)
            fields = json.loads(body)
            name = f"{fields['organization']}/{fields['name']}" if fields.get("organization") else fields["name"]
            is_private = fields.get("private") or fields.get("visibility") == "private"
            if name in server.repositories:
                return self._answer({"url": f"{server.url}/{name}"}, 409)
            server.repositories[name] = {"private": is_private, "branches": {"main": {}}, "commits": []}
            return self._answer({"url": f"{server.url}/{name}", "id": name})
        if match := re.fullmatch(r"/lfs/(\w+)", path):
            if server.fail:
                server.fail -= 1
                return self._answer({"error": "storage is full"}, 507)
            assert hashlib.sha256(body).hexdigest() == match[1]
            server.objects[match[1]] = body
            return self._answer()
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for entry in objects:
                if entry["oid"] not in server.objects:
                    entry["actions"] = {"upload": {"href": f"{server.url}/lfs/{entry['oid']}", "header": {}}}
            return self._answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path):
            name, action, revision = match.groups()
            if name not in server.repositories:
                return self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            return self._model(server.repositories[name], name, action, revision, body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        return self._answer({"error": f"unknown: {path}"}, 404)

    def _model(self, repository, name, action, revision, body):
        branches = repository["branches"]
        if action == "branch":
            branches[revision] = dict(branches["main"])
            return self._answer()
        if action == "preupload":
            return self._answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        if action == "commit":
            files = branches[revision]
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif entry["key"] == "deletedFile":
                    files.pop(value["path"], None)
                elif entry["key"] == "header":
                    title = value["summary"]
            repository["commits"].append((title, dict(files)))
            url = f"{self.server.url}/{name}/commit/{_sha(files)}"
            return self._answer({"success": True, "commitOid": _sha(files), "commitUrl": url})
        if action == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(branches["main"][path]), "oid": "0"}
                for path in branches["main"]
            ]
            return self._answer(tree)
        files = branches.get(revision or "main", {})
        siblings = [{"rfilename": path} for path in files]
        return self._answer({"id": name, "sha": _sha(files), "private": False, "siblings": siblings, "tags": []})

    def _file(self, name, revision, path):
        branches = self.server.repositories.get(name, {"branches": {}})["branches"]
        files = branches.get(revision) or next((f for f in branches.values() if _sha(f) == revision), {})
        if path not in files:
            return self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=_sha(files))
        content = files[path]
        return self._answer(
            content, X_Repo_Commit=_sha(files), ETag=f'"{hashlib.sha256(content).hexdigest()}"', Accept_Ranges="none"
        )

    do_GET = do_POST = do_PUT = do_HEAD = _route


def _sha(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(path.encode() + hashlib.sha256(files[path]).digest())
    return digest.hexdigest()
