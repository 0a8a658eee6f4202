"""Is a name a place on this disk or a name on the hub? Decided by its form, never by trying one after the other.

A path that is missing here must not turn into a download of somebody else's repository of the same name.
"""

from __future__ import annotations

import functools
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from lorafront.spaces.errors import InvalidInput

PROBE_SECONDS = 5
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_FILE_SUFFIX = re.compile(r"\.(txt|text|md|rst|jsonl?|ndjson|csv|tsv|parquet)$", re.IGNORECASE)


def local_folder_or_file(name: str) -> Path | None:
    """The path that `name` means on this disk, or None where it is a name on the hub.

    Raises:
        InvalidInput: it has the form of a path and nothing is there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if _FILE_SUFFIX.search(name) or not _HUB_NAME.match(name):
        raise InvalidInput(f"{name} does not exist (current folder: {Path.cwd()})")
    return None


@functools.cache
def hub_answers() -> bool:
    """One short question, once per process: the hub's own clients retry for over a minute where there is no network."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True  # it answers, if only to say no
    except (urllib.error.URLError, OSError, ValueError):
        return False


def unreachable(kind: str, name: str, error: Exception) -> str:
    """One line for a hub name that could not be loaded."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if not hub_answers():
        reason = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else "the hub does not answer"
        reason += ", and it is not in the local cache"
    return (
        f"{name} is no {kind} in the current folder ({Path.cwd()}) and could not be loaded from the Hugging Face hub: "
        f"{reason}"
    )


def weights_on_hub(name: str, revision: str | None) -> list[tuple[str, int, bool]]:
    """(file, bytes, whether it is in the local cache) of the weights of a model on the hub; nothing where it won't say.

    Raises:
        InvalidInput: it has none that can be read without running code.
    """
    import httpx  # what huggingface_hub asks with
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=PROBE_SECONDS)
    except (OSError, httpx.HTTPError):  # gated, busy, slow: loading it will say so where it matters
        return []
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    shards = [file for file in sizes if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file)]
    files = ["model.safetensors"] if "model.safetensors" in sizes else shards
    if not files:
        raise InvalidInput(f"{name} has no model*.safetensors; pickled weights are not loaded, convert them first")
    found = [(file, try_to_load_from_cache(name, file, revision=info.sha)) for file in files]
    return [(file, sizes[file], isinstance(place, str)) for file, place in found]
