"""A stand-in of the Hugging Face Hub: repositories in memory, served by its own protocol."""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repositories, and the state of a server.

    Attributes:
        files: (repository, file name) -> content.
        gated: repositories whose license has not been accepted.
        refuses: whether nobody may write.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.repositories: set[str] = set()
        self.gated: set[str] = set()
        self.refuses = False
        self.address = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self):
        owner, name, resolve, _, *rest = self.path.strip("/").split("/")
        repository, file = f"{owner}/{name}", "/".join(rest)
        if repository in self.hub.gated:
            self._answer(401, X_Error_Code="GatedRepo")
        elif resolve != "resolve" or repository not in self.hub.repositories:
            self._answer(404, X_Error_Code="RepoNotFound")
        elif (content := self.hub.files.get((repository, file))) is None:
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.refuses:
            self._answer(403)
            return
        if self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = "/".join(x for x in (asked.get("organization"), asked["name"]) if x)
            self.hub.repositories.add(repository)
            self._json({"url": f"{self.hub.address}/{repository}"})
            return
        _, _, owner, name, what, *_ = self.path.strip("/").split("/")
        repository = f"{owner}/{name}"
        if what == "preupload":
            files = [
                {"path": x["path"], "uploadMode": "regular"} for x in json.loads(body)["files"]
            ]
            self._json({"files": [{**x, "shouldIgnore": False} for x in files]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.files[repository, line["value"]["path"]] = content
            url = f"{self.hub.address}/{repository}/commit/{COMMIT}"
            self._json({"commitUrl": url, "commitOid": COMMIT})


@contextlib.contextmanager
def served(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """Serve an empty Hub; calls of `huggingface_hub` in this process go there."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"endpoint": hub.address}
    for name, more in (("hf_hub_download", {"cache_dir": cache}), ("HfApi", {})):
        bound = functools.partial(getattr(huggingface_hub, name), **place, **more)
        monkeypatch.setattr(huggingface_hub, name, bound)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
