"""Servers that are away, hang, or answer: nobody waits longer than was promised."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafront.search.mlflow_tracker import PROBE_SECONDS, open_tracking
from lorafront.search.paths import RootPaths
from lorafront.search.search_file import SearchFile, parse_search


def search_file(uri: str | None) -> SearchFile:
    return parse_search({"name": "s", "model": "m", "data": {"path": "d"}, "tracking": {"uri": uri} if uri else {}})


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hung_server_is_found_within_its_time(silent_server: str, tmp_path: Path) -> None:
    """A server that accepts and never answers is reported after the probe's five seconds."""
    start = time.monotonic()
    tracking = open_tracking(search_file(silent_server), RootPaths(tmp_path))
    assert "cannot be reached" in tracking.problem
    assert time.monotonic() - start < PROBE_SECONDS + 2


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "ftp://host/x", "./mlruns"])
def test_wrong_addresses_are_said(uri: str, tmp_path: Path) -> None:
    """A closed port and a scheme that MLflow has no store for are reported."""
    assert open_tracking(search_file(uri), RootPaths(tmp_path)).problem


def test_where_runs_go_is_decided_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file decides, then the environment, then the default; the source is named."""
    root = RootPaths(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert open_tracking(search_file(None), root).source == "default"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert open_tracking(search_file(None), root).source == "MLFLOW_TRACKING_URI"
    assert open_tracking(search_file("sqlite:///file.db"), root).source == "tracking.uri"
