"""How a command line runs on a cluster: addresses, quoting, output and errors apart. No cluster is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorafront.search.cli_remote import without_address
from lorafront.search.ray_jobs import framed, in_the_clear, unframed, url_of
from lorafront.spaces.errors import InvalidInput

MARK = "-- mark --"
HARD = """it's "quoted" $HOME `id` \\ * ; exit 9"""
ECHO = "import json, sys; print(json.dumps(sys.argv[1:])); print('warned', file=sys.stderr); sys.exit(5)"


def shell(line: str, folder: Path) -> tuple[str, int]:
    done = subprocess.run(line, shell=True, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)  # fmt: skip
    return done.stdout, done.returncode


def test_output_and_errors_come_apart(tmp_path: Path) -> None:
    """With the exit code, from a folder with a blank in its name, whatever the arguments hold."""
    (tmp_path / "a b").mkdir()
    log, code = shell(framed([sys.executable, "-c", ECHO, HARD, ""], MARK, "a b"), tmp_path)
    out, err = unframed("INFO Runtime env is setting up.\n" + log, MARK) or ("", "")
    assert (json.loads(out), err, code) == ([HARD, ""], "warned\n", 5)


@pytest.mark.parametrize("output", ["", "x", "x\n", "\n\n", f"{MARK} x\n"])
def test_output_is_as_it_was(output: str, tmp_path: Path) -> None:
    """To the last line break."""
    log, _ = shell(framed(["printf", "%s", output], MARK), tmp_path)
    assert unframed(log, MARK) == (output, "")


def test_a_command_that_never_ran_has_no_output(tmp_path: Path) -> None:
    """Such as one in a folder that is not there."""
    assert unframed(shell(framed(["true"], MARK, "gone"), tmp_path)[0], MARK) is None
    assert unframed("", MARK) is None


@pytest.mark.parametrize(
    ("address", "url"),
    [("host:8265", "http://host:8265"), ("https://host/", "https://host"), ("http://[::1]:8265", "http://[::1]:8265")],
)
def test_an_address_is_a_url(address: str, url: str) -> None:
    """Without a scheme it is http."""
    assert url_of(address) == url


@pytest.mark.parametrize(
    "address", ["ray://host:10001", "http://", "http://host:99999", "http://host/jobs", "http://me:pw@host/x"]
)
def test_another_address_is_refused(address: str) -> None:
    """Other protocols, half a URL, one with a page or a password, which is not shown."""
    with pytest.raises(InvalidInput, match="--address") as refused:
        url_of(address)
    assert "pw" not in str(refused.value)


def test_a_token_in_the_clear_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it leaves this machine without encryption."""
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        monkeypatch.delenv(name)
    assert not in_the_clear("http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert in_the_clear("http://head:8265")
    assert in_the_clear("head:8265")
    quiet = ["https://head:8265", "http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265", ""]
    assert [address for address in quiet if in_the_clear(address)] == []


def test_the_same_command_runs_there() -> None:
    """Without the option that says where."""
    assert without_address(["status", "s", "--address", "http://h", "--json"]) == ["status", "s", "--json"]
    assert without_address(["stop", "--address=http://h", "s", "--now"]) == ["stop", "s", "--now"]
    assert without_address(["status", "--address", "--address", "s"]) == ["status", "s"]
