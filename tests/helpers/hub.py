"""A stand-in of the Hub on this machine, for the real client: repositories are dictionaries of files."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub(ThreadingHTTPServer):
    """Takes pushes. `commits`: [(repository, {path: bytes})], a repository's files after each; `log`: every request.

    A branch but main is a repository of its own, "owner/name@branch".

    Attributes: `refuse`, a part of an address that is answered by 403; `lose`, one whose answer is lost; `token`, the only
    one that is known; `private`: {repository: bool}; `tags`: [(repository, tag, commit)]; `pulls`: as `commits`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.log: list[str] = []
        self.refuse: str | None = None
        self.lose: str | None = None
        self.token: str | None = None
        self.private: dict[str, bool] = {}
        self.tags: list[tuple[str, str, str]] = []
        self.pulls: list[tuple[str, dict[str, bytes]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value, code: int = 200) -> None:
        if self.server.lose and self.server.lose in self.path:
            return
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if code > 400:
            self.send_header("X-Error-Message", value.get("error", ""))
        self.end_headers()
        self.wfile.write(text)

    def refused(self) -> bool:
        """Whether the request was answered by 401 or 403."""
        self.server.log.append(f"{self.command} {self.path}")
        known = self.server.token
        if known and self.headers.get("Authorization") not in (f"Bearer {known}", None):
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.server.refuse and self.server.refuse in self.path:
            self.answer({"error": "you may not"}, 403)
        else:
            return False
        return True

    def repository(self) -> str:
        """The repository and branch of an address such as /api/models/owner/name/commit/branch."""
        parts = unquote(self.path.split("?")[0]).split("/")
        name, branch = "/".join(parts[3:5]), "/".join(parts[6:])
        return name if branch in ("", "main", "write") else f"{name}@{branch}"

    def do_PUT(self) -> None:
        body = self.body()
        if not self.refused():
            self.server.large[self.path.rsplit("/", 1)[-1]] = body
            self.answer({})

    def do_GET(self) -> None:
        if self.refused():
            return
        path, name = self.path.split("?")[0], self.repository()
        if "/tree/" in path:
            files = self.server.files.get(name, {})
            self.answer([{"type": "file", "path": key, "size": len(files[key]), "oid": "0"} for key in files])
        elif path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        elif path.endswith("/auth-check/write") and name in self.server.files:
            self.answer({})
        elif path.startswith(("/api/models/", "/api/datasets/")) and name in self.server.files:
            own = name.split("@")[0]
            made = sum(each == name for each, _ in self.server.commits)
            self.answer({"id": own, "private": self.server.private[own], "sha": f"{made:040x}"})
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body, path = self.body(), self.path.split("?")[0]
        if self.refused():
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.files.setdefault(name, {})
            self.server.private.setdefault(name, asked.get("visibility") == "private")
            prefix = "datasets/" if asked.get("type") == "dataset" else ""
            self.answer({"url": f"{self.server.address}/{prefix}{name}", "id": name})
        elif "/branch/" in path:
            name = self.repository()
            known = name in self.server.files
            self.server.files.setdefault(name, {**self.server.files[name.split("@")[0]]})
            self.answer({}, 409 if known else 200)
        elif "/tag/" in path:
            name, commit = self.repository().split("@")
            self.server.tags.append((name, json.loads(body)["tag"], commit))
            self.answer({})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large(file["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            name = self.repository()
            files = {**self.server.files[name]}
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "lfsFile":
                    files[row["value"]["path"]] = self.server.large[row["value"]["oid"]]
                elif row["key"] == "deletedFile":
                    files.pop(row["value"]["path"], None)
            address = f"{self.server.address}/{name.split('@')[0]}"
            made = {"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40}
            if "create_pr=1" in self.path:
                self.server.pulls.append((name, files))
                made["pullRequestUrl"] = f"{address}/discussions/{len(self.server.pulls)}"
            else:
                self.server.files[name] = files
                self.server.commits.append((name, {**files}))
            self.answer(made)
        else:
            self.answer({"error": "not found"}, 404)


def large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".png"))


@contextlib.contextmanager
def local_hub() -> Iterator[Hub]:
    """The stand-in, serving in a thread of this process."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
