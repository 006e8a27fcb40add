"""A small hub on the loopback: what the real client asks for, and what it was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_canaryTOKEN0123456789abcd"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeHub:
    """Repositories as {("model" or "dataset", id): {commit: {file: bytes}}}, `main` being the last.

    mode: "" works; a number is the status of every answer; "hang" never answers; "hang:WORD" does
    not answer addresses that hold the word; "redirect:URL" sends everybody there. verify: where
    the client is told to confirm a large file.
    """

    def __init__(self) -> None:
        self.mode = ""
        self.verify = ""
        self.repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.on_asked: Callable[[str], None] = lambda asked: None
        self.tokens: set[str] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add(self, kind: str, repo: str, files: dict[str, bytes], commit: str) -> str:
        self.repos.setdefault((kind, repo), {})[commit] = files
        return commit

    def files(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get((kind, repo))
        if not commits:
            return None
        commit = list(commits)[-1] if revision == "main" else revision
        return (commit, commits[commit]) if commit in commits else None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.on_asked(path)
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        mode, _, word = str(self.hub.mode).partition(":")
        if mode == "hang" and word in path:
            time.sleep(30)
            self.close_connection = True
            return
        if mode == "redirect":
            self._send(b"", 307, {"Location": f"{word}{self.path}"})
            return
        if mode.isdecimal():
            self._json({"error": "no"}, int(mode))
            return
        for pattern, verb in _ROUTES:
            if found := re.fullmatch(pattern, path):
                verb(self, *found.groups(), body=body)
                return
        self._json({"error": f"no such address: {path}"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def info(self, kind: str, repo: str, revision: str | None = None, *, body: bytes) -> None:
        found = self.hub.files(kind, repo, revision or "main")
        if found is None:
            self.missing("RepoNotFound")
            return
        commit, files = found
        self._json(
            {
                "_id": "1", "id": repo, "sha": commit, "tags": [], "downloads": 0, "likes": 0,
                "private": self.hub.private.get(repo, False), "disabled": False, "gated": False,
                "siblings": [{"rfilename": name} for name in files],
            }
        )  # fmt: skip

    def missing(self, code: str) -> None:
        self._send(b"{}", 404, {"X-Error-Code": code, "X-Error-Message": "not here"})

    def tree(self, kind: str, repo: str, revision: str, under: str = "", *, body: bytes) -> None:
        found = self.hub.files(kind, repo, revision)
        if found is None:
            self.missing("RevisionNotFound")
            return
        below = f"{under}/" if under else ""
        inside = {n: d for n, d in found[1].items() if n.startswith(below)}
        if under and not inside:
            self.missing("EntryNotFound")
            return
        if "recursive=true" in urlsplit(self.path).query.lower():
            self._json([_entry(name, data) for name, data in inside.items()])
            return
        here = {name: data for name, data in inside.items() if "/" not in name[len(below) :]}
        folders = {below + name[len(below) :].partition("/")[0] for name in inside.keys() - here}
        self._json(
            [_entry(name, data) for name, data in here.items()]
            + [{"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders)]
        )

    def paths_info(self, kind: str, repo: str, revision: str, *, body: bytes) -> None:
        found = self.hub.files(kind, repo, revision)
        wanted = (
            json.loads(body)["paths"]
            if body.startswith(b"{")
            else re.findall(r"paths=([^&]*)", unquote(body.decode()))
        )
        files = found[1] if found else {}
        self._json([_entry(name, files[name]) for name in wanted if name in files])

    def resolve(self, repo: str, revision: str, name: str, *, body: bytes) -> None:
        kind, repo = ("dataset", repo[9:]) if repo.startswith("datasets/") else ("model", repo)
        found = self.hub.files(kind, repo, revision)
        if found is None:
            known = (kind, repo) in self.hub.repos
            self.missing("RevisionNotFound" if known else "RepoNotFound")
            return
        commit, files = found
        if name not in files:
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"ETag": f'"{digest(files[name])}"', "X-Repo-Commit": commit}
        self._send(files[name], 200, headers)

    def create(self, *, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        if ("model", repo) in self.hub.repos:
            self._json({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
            return
        self.hub.add("model", repo, {}, "0" * 40)
        self.hub.private[repo] = asked.get("visibility") == "private" or asked.get("private", False)
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})

    def validate(self, *, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str, *, body: bytes) -> None:
        files = json.loads(body)["files"]
        self._json({"files": [
            {"path": f["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".gguf")) else "regular"}
            for f in files
        ]})  # fmt: skip

    def batch(self, repo: str, *, body: bytes) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"],
             "actions": {"upload": {"href": f"{self.hub.url}/store/{o['oid']}", "header": {}},
                         **({"verify": {"href": self.hub.verify}} if self.hub.verify else {})}}
            for o in json.loads(body)["objects"]
        ]  # fmt: skip
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str, *, body: bytes) -> None:
        self.hub.stored[oid] = body
        self._send(b"")

    def commit(self, repo: str, *, body: bytes) -> None:
        found = self.hub.files("model", repo, "main")
        files = dict(found[1]) if found else {}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.hub.stored[item["value"]["oid"]]
            elif item["key"] == "deletedFile":
                del files[item["value"]["path"]]
        sha = digest(body)[:40]
        self.hub.add("model", repo, files, sha)
        url = f"{self.hub.url}/{repo}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": digest(data)[:40]}


def _kinds(pattern: str, verb: Any) -> list[tuple[str, Any]]:
    def of(kind: str) -> Any:
        return lambda self, *groups, body: verb(self, kind, *groups, body=body)

    return [(pattern.replace("KIND", f"{kind}s"), of(kind)) for kind in ("model", "dataset")]


_REPO = r"([\w.-]+(?:/[\w.-]+)?)"
_ROUTES = [
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate),
    (rf"/api/models/{_REPO}/preupload/main", _Handler.preupload),
    (rf"/api/models/{_REPO}/commit/main", _Handler.commit),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/store/(\w+)", _Handler.store),
    *_kinds(rf"/api/KIND/{_REPO}/revision/([^/]+)", _Handler.info),
    *_kinds(rf"/api/KIND/{_REPO}/tree/([^/]+)/?(.*)", _Handler.tree),
    *_kinds(rf"/api/KIND/{_REPO}/paths-info/([^/]+)", _Handler.paths_info),
    *_kinds(rf"/api/KIND/{_REPO}", _Handler.info),
    (r"/((?:datasets/)?[\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
]
