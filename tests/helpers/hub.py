"""A stand-in of the Hub on this machine, for the real client: repositories are dictionaries of files."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Takes pushes. `commits`: [(repository, {path: bytes})], a repository's files after each; `log`: every request.

    Attributes: `refuse`, a part of an address that is answered by 403.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.log: list[str] = []
        self.refuse: str | None = None

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
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        self.server.large[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer({})

    def do_GET(self) -> None:
        self.server.log.append(f"GET {self.path}")
        path = self.path.split("?")[0]
        name = "/".join(path.split("/")[3:5])
        if "/tree/" in path:
            files = self.server.files.get(name, {})
            self.answer([{"type": "file", "path": key, "size": len(files[key]), "oid": "0"} for key in files])
        elif path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        self.server.log.append(f"POST {self.path}")
        body, path = self.body(), self.path.split("?")[0]
        if self.server.refuse and self.server.refuse in path:
            self.answer({"error": "you may not"}, 403)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.files.setdefault(name, {})
            self.answer({"url": f"{self.server.address}/{name}", "id": name})
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
            name = "/".join(path.split("/")[3:5])
            files = {**self.server.files[name]}
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "lfsFile":
                    files[row["value"]["path"]] = self.server.large[row["value"]["oid"]]
                elif row["key"] == "deletedFile":
                    files.pop(row["value"]["path"], None)
            self.server.files[name] = files
            self.server.commits.append((name, {**files}))
            self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.answer({"error": "not found"}, 404)


def large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".png"))


@contextlib.contextmanager
def local_hub() -> Iterator[Hub]:
    """The stand-in, serving in a thread of this process."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
