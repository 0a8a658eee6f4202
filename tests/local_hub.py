"""A stand-in for the Hugging Face hub on the loopback interface: folders served by the few routes that its clients ask.

`HF_ENDPOINT` points the real clients here, so that the path from a hub name to weights and rows is tested for real.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


@contextmanager
def local_hub(models: dict[str, Path], datasets: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:  # noqa: C901  # a server is one class
    """Serve folders as repositories.

    Yields:
        The address, and the list of files that were fetched so far.
    """
    fetched: list[str] = []
    repositories = {("models", name): path for name, path in models.items()}
    repositories |= {("datasets", name): path for name, path in datasets.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.split("/") if part]
            if not parts:
                self._send(200, b"", {})
            elif parts[0] == "api":
                self._api(parts[1], parts[2:])
            else:
                kind = parts.pop(0) if parts[0] == "datasets" else "models"
                self._file(kind, parts, body=body)

        def _api(self, kind: str, parts: list[str]) -> None:
            folder = repositories.get((kind, "/".join(parts[:2])))
            if folder is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if parts[2:3] == ["tree"]:
                inside = folder.joinpath(*parts[4:])
                if not inside.is_dir():
                    self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                    return
                listed = [_entry(folder, path) for path in files if inside in path.parents]
                self._json(listed)
                return
            name = "/".join(parts[:2])
            siblings = [{"rfilename": str(p.relative_to(folder)), "size": p.stat().st_size} for p in files]
            self._json({"_id": "0", "id": name, "modelId": name, "sha": COMMIT, "private": False, "gated": False,
                        "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})  # fmt: skip

        def _file(self, kind: str, parts: list[str], *, body: bool) -> None:
            folder = repositories.get((kind, "/".join(parts[:2])))
            path = folder.joinpath(*parts[4:]) if folder is not None else Path("/nowhere")
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            content = path.read_bytes()
            if body:
                fetched.append(path.name)
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, body=body)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()


def _entry(folder: Path, path: Path) -> dict[str, object]:
    oid = hashlib.sha256(path.read_bytes()).hexdigest()[:40]
    return {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": oid}
