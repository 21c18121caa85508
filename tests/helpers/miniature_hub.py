"""A Hugging Face hub in miniature: one server on the loopback interface, a few folders as its repositories.

It answers what huggingface_hub asks of the real one: a repository's description, the list of its files, and the
files. Each repository has one branch, main, with one commit. As on the real one, a repository's former name leads on
to its name, and large files are kept by another server.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")  # files that are kept elsewhere


@dataclass(frozen=True)
class Repository:
    """A folder as a repository of the hub.

    Args:
        kind: 'models' or 'datasets'.
        name: OWNER/NAME.
        folder: Its files.
        former: A name without an owner, from before names had one.
        pinned: Its commit; by default it is made from the files.
    """

    kind: str
    name: str
    folder: Path
    former: str = ""
    pinned: str = ""

    def paths(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def digest(self, path: str) -> str:
        return hashlib.sha1((self.folder / path).read_bytes()).hexdigest()

    @property
    def commit(self) -> str:
        content = "".join(path + self.digest(path) for path in self.paths())
        return self.pinned or hashlib.sha1(content.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in self.paths()],
        }

    def facts(self, path: str) -> dict[str, Any]:
        if (self.folder / path).is_dir():
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
        return {"type": "file", "path": path, "oid": self.digest(path), "size": self.size(path)}

    def size(self, path: str) -> int:
        return (self.folder / path).stat().st_size

    def tree(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        top = self.folder / below
        found = sorted(top.rglob("*") if recursive else top.iterdir())
        return [self.facts(path.relative_to(self.folder).as_posix()) for path in found]


class MiniatureHub:
    """The server; use it as `with MiniatureHub.serving(repositories) as hub`.

    Attributes:
        repositories: What it serves.
        requests: The requests so far, such as "GET /api/models/tiny/distilbert".
        url: Its address, to be set as HF_ENDPOINT.
        elsewhere: The address of the server of large files.
    """

    def __init__(self, repositories: list[Repository]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.url, self.elsewhere = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    @classmethod
    @contextmanager
    def serving(cls, repositories: list[Repository]) -> Iterator["MiniatureHub"]:
        hub = cls(repositories)
        threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in hub.servers]
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            for server, thread in zip(hub.servers, threads, strict=True):
                server.shutdown()
                server.server_close()
                thread.join()

    def answer(self, target: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to one request."""
        url = urlsplit(target)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        api = parts[0] == "api"
        if not api and parts[0] != "datasets":
            parts.insert(0, "models")  # a model's files have no prefix
        if former := [r for r in self.repositories if r.former and parts[api : api + 2] == [r.kind, r.former]]:
            place = url.path.replace(f"/{former[0].former}", f"/{former[0].name}", 1)
            return 307, {"Location": f"{place}?{url.query}"}, b""
        kind, owner, name, action, revision, *rest = [*parts[api:], "", "", "", ""]
        path = "/".join(part for part in rest if part)
        found = [r for r in self.repositories if (r.kind, r.name) == (kind, f"{owner}/{name}")]
        if not found:
            return refusal("RepoNotFound")
        repository = found[0]
        if revision not in ("", "main", repository.commit):
            return refusal("RevisionNotFound")
        if api and action in ("", "revision"):
            return answer_json(repository.describe())
        if api and action == "tree" and (repository.folder / path).is_dir():
            return answer_json(repository.tree(path, recursive="recursive=true" in url.query.lower()))
        if not api and action in ("resolve", "large") and (repository.folder / path).is_file():
            headers = {"ETag": f'"{repository.digest(path)}"', "X-Repo-Commit": repository.commit}
            if action == "resolve" and path.endswith(LARGE):
                place = self.elsewhere + url.path.replace("/resolve/", "/large/", 1)
                size = str(repository.size(path))
                return 302, headers | {"Location": place, "X-Linked-ETag": headers["ETag"], "X-Linked-Size": size}, b""
            return 200, headers, (repository.folder / path).read_bytes()
        return refusal("EntryNotFound", {"X-Repo-Commit": repository.commit})


def answer_json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def refusal(code: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    """A refusal with the hub's own word for what was not found."""
    return 404, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, b""
