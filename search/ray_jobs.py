"""A Ray cluster's job server: the only module that talks to it.

Whatever the server, the network or the token have against a request becomes one line that says what to do.
"""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import asyncio
import contextlib
import functools
import logging
import os
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from lorafront.spaces.errors import InvalidInput, NoCluster, SearchNotFound

if TYPE_CHECKING:
    from lorafront.search.travel import Luggage

TIMEOUT = 60.0  # seconds for one request
HELLO = 10.0  # of them for the first one
AGENT_SECONDS = 60.0  # after its start, a head takes no jobs for some seconds
POLL = 0.3
SEARCH = "lorafront"  # in a job's metadata: the search that it drives
NEEDS = "Ray's job server is missing here: pip install 'lorafront[cluster]'"
LOOK = (
    "is it the URL of Ray's job server (port 8265), does the head run with ray[default] and its dashboard, and is "
    "there a way there (a tunnel)?"
)
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Answer(NamedTuple):
    """What a command said that ran on the cluster."""

    out: str
    err: str
    code: int


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, address: str = "") -> None:
        """Say hello.

        Args:
            address: URL of its job server; none is the cluster that this machine is a node of.

        Raises:
            InvalidInput: it is no URL of one.
            NoCluster: it does not answer, or refuses.
        """
        try:
            import aiohttp  # noqa: F401  # Ray's client goes without until it needs it
            import requests
            from ray.exceptions import AuthenticationError
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise InvalidInput(NEEDS) from error
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = url_of(address) if address else _own_address()
        _past_proxies(self.address)
        headers = _token_header()
        with self._asked():
            said = requests.get(f"{self.address}/api/version", headers=headers, timeout=HELLO, verify=_certificates())
            if said.status_code in {401, 403}:
                raise AuthenticationError(said.text)
            if not said.ok or "ray_version" not in said.text:
                raise RuntimeError(f"status code {said.status_code}")
            with _without(_ADDRESSES):  # they would be taken in place of the address that was given
                self._client: Any = JobSubmissionClient(self.address, headers=headers, verify=_certificates())
        self._client._do_request = functools.partial(self._client._do_request, timeout=TIMEOUT)  # noqa: SLF001  # it has none

    def ask(self, arguments: Sequence[str], width: int, luggage: Luggage | None = None) -> Answer:
        """Run `lorafront …` there, and wait until it is done.

        Args:
            arguments: of the command.
            width: of the terminal that its tables are for.
            luggage: files that the command finds in its current folder.
        """
        mark, environment = f"-- {uuid.uuid4().hex} --", {"env_vars": {"COLUMNS": str(width)}}
        entrypoint = framed(["lorafront", *arguments], mark, str(luggage.base) if luggage is not None else ".")
        with tempfile.TemporaryDirectory(prefix="lorafront-") as folder, self._asked():
            if luggage is not None:  # an archive, since of a folder Ray leaves out what .gitignore names
                archive = Path(folder) / "files.zip"
                luggage.zipped(archive)
                environment["working_dir"] = str(archive)  # type: ignore[assignment]
            job = self._submit(entrypoint, environment)
            code = self._code(job)
            log = self._client.get_job_logs(job)
        # Ray appends this line when the command may have begun to speak.
        log = log.replace(f"Running entrypoint for job {job}: {entrypoint}\n", "", 1)
        found = unframed(log, mark)
        if found is None or code == 127:  # noqa: PLR2004  # a shell's: no such command
            last = (log.strip().splitlines() or ["its log is empty"])[-1]
            raise NoCluster(
                f"{self.address} could not run `lorafront`: {last}; it has to be installed there, and on the PATH of "
                "`ray start`"
            )
        return Answer(*found, code)

    def drive(self, name: str, root: Path) -> str:
        """Start a job that drives a search that was submitted (search/driver_job.py); its id."""
        entrypoint = shlex.join([sys.executable, "-m", "lorafront.search.driver_job", name])
        environment = {"env_vars": {"LORAFRONT_RAY": "auto", "LORAFRONT_ROOT": str(root)}}
        with self._asked():
            taken = {job.submission_id for job in self._client.list_jobs()}
            number = next(n for n in range(1, len(taken) + 2) if _id(name, n) not in taken)
            return self._submit(entrypoint, environment, submission_id=_id(name, number), metadata={SEARCH: name})

    def resources(self) -> dict[str, float]:
        """`CPU` and `GPU` that the nodes have which live."""
        from ray.util.state import list_nodes

        with self._asked(), _without(_ADDRESSES):
            nodes = list_nodes(self.address, timeout=int(TIMEOUT), filters=[("state", "=", "ALIVE")])
        return {kind: sum(node.resources_total.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}

    def driver_of(self, name: str) -> str:
        """The job that drives a search now; empty where none does."""
        with self._asked():
            return next((job.submission_id for job in self._drivers(name) if not job.status.is_terminal()), "")

    def newest(self, name: str) -> str:
        """The job that drove a search last.

        Raises:
            SearchNotFound: there is none.
        """
        with self._asked():
            found = self._drivers(name)
        if not found:
            raise SearchNotFound(f"no job has driven a search {name!r} since the head of {self.address} started")
        return str(found[0].submission_id)

    def log(self, job: str) -> str:
        """What a job has said so far."""
        with self._asked():
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, say: Callable[[str], None]) -> int:
        """Hand on what a job says until its end; its exit code."""

        async def tail() -> None:
            async for chunk in self._client.tail_job_logs(job):
                say(chunk)

        with self._asked():
            asyncio.run(tail())
            return self._code(job)

    def _drivers(self, name: str) -> list[Any]:
        """Jobs that drive or drove a search, newest first."""
        found = [job for job in self._client.list_jobs() if (job.metadata or {}).get(SEARCH) == name]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    def _submit(self, entrypoint: str, environment: dict[str, Any], **named: Any) -> str:
        end = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return str(self._client.submit_job(entrypoint=entrypoint, runtime_env=environment, **named))
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(POLL)

    def _code(self, job: str) -> int:
        """Wait until a job has ended; its exit code."""
        while True:
            info = self._client.get_job_info(job)
            if info.status.is_terminal():
                break
            time.sleep(POLL)
        if info.driver_exit_code is None:
            said = (info.message or "").strip().splitlines()
            raise NoCluster(f"job {job} on {self.address} ended as {info.status.value}: {said[-1] if said else ''}")
        return int(info.driver_exit_code)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Errors of Ray's client and its libraries as ours."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError
        from ray.util.state.exception import RayStateApiException

        try:
            yield
        except (requests.exceptions.SSLError, aiohttp.ClientSSLError) as error:
            raise NoCluster(
                f"{self.address} has a certificate that is not trusted here ({_short(error)}); name its authority's "
                "file in REQUESTS_CA_BUNDLE"
            ) from error
        except AuthenticationError as error:
            raise NoCluster(
                f"{self.address} refuses the token: give the cluster's in RAY_AUTH_TOKEN, or its file in "
                "RAY_AUTH_TOKEN_PATH"
            ) from error
        except (requests.exceptions.RequestException, aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            if isinstance(error, NoCluster):
                raise
            raise NoCluster(f"{self.address} does not answer ({_short(error)}); {LOOK}") from error
        except (RuntimeError, RayStateApiException) as error:
            raise NoCluster(f"{self.address} does not answer as a job server does ({_short(error)}); {LOOK}") from error


def url_of(address: str) -> str:
    """The URL of a job server.

    Raises:
        InvalidInput: it has another form.
    """
    if "@" in address:
        raise InvalidInput("--address has a user or a password in it; give the token in RAY_AUTH_TOKEN instead")
    given = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(given)
        well = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        well = False
    if not well or parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidInput(f"--address is the URL of Ray's job server, such as http://127.0.0.1:8265 (got {address})")
    return f"{parts.scheme}://{parts.netloc}"


def in_the_clear(address: str) -> bool:
    """Whether a token that goes to an address can be read on the way."""
    if not address:
        return False
    parts = urlsplit(url_of(address))
    here = parts.hostname in {"localhost", "::1"} or (parts.hostname or "").startswith("127.")
    return parts.scheme == "http" and not here and bool(_token_header() or os.environ.get("RAY_AUTH_MODE") == "token")


def framed(command: Sequence[str], mark: str, folder: str = ".") -> str:
    """A line for `sh` that runs a command and prints its standard output and its errors, each after a line `mark`.

    Ray keeps both of a job in one log, with words of its own.
    """
    say = shlex.quote(mark)
    return (
        f"cd {shlex.quote(folder)} && e=$(mktemp) && printf '%s\\n' {say} && {shlex.join(command)} 2>\"$e\"; c=$?; "
        f'printf \'\\n%s\\n\' {say}; cat "$e"; rm -f "$e"; exit $c'
    )


def unframed(log: str, mark: str) -> tuple[str, str] | None:
    """(Output, errors) of a framed command; None where it did not run."""
    _, *said = f"\n{log}".split(f"\n{mark}\n")
    return (said[0], said[1]) if len(said) == 2 else None  # noqa: PLR2004  # output and errors


def _id(name: str, number: int) -> str:
    """Of a search's n-th driver: Ray refuses one that it knows, so two at the same moment do not both start."""
    return f"lorafront-{name}-{number}"


def _own_address() -> str:
    """The job server of the cluster that this machine is a node of."""
    from ray.dashboard.utils import get_address_for_submission_client

    known = os.environ.get("RAY_ADDRESS") or os.environ.get("LORAFRONT_RAY") or "auto"
    with _without(_ADDRESSES):
        try:
            return str(get_address_for_submission_client(known)).rstrip("/")
        except Exception as error:
            raise NoCluster(
                f"no Ray cluster runs on this machine ({_short(error)}); name one with --address http://HOST:8265, or "
                "start its head: ray start --head"
            ) from error


def _token_header() -> dict[str, str]:
    """What Ray's client sends by itself only where RAY_AUTH_MODE is set too."""
    token, file = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token and file:
        try:
            token = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"RAY_AUTH_TOKEN_PATH: cannot read {file}: {error.strerror or error}") from error
    return {"authorization": f"Bearer {token.strip()}"} if token else {}


def _past_proxies(address: str) -> None:
    """What is on this machine, as the end of a tunnel is, is asked directly: a proxy would see the token."""
    host = urlsplit(address).hostname or ""
    if host in {"localhost", "::1"} or host.startswith("127."):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), host]))


def _certificates() -> str | bool:
    return os.environ.get("REQUESTS_CA_BUNDLE") or True


@contextlib.contextmanager
def _without(variables: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _short(error: BaseException) -> str:
    """The innermost reason, on one line."""
    text = " ".join(str(error).split())
    if "BadStatusLine" in text:  # what was said instead is bytes
        return "it does not speak HTTP"
    return text.rsplit(": ", 1)[-1].strip("')( .>")[:200] or type(error).__name__
