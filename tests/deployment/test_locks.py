"""The packages of the image are those that the tests ran with, and each has a hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import PROJECT

DOCKER = PROJECT / "docker"
CUDA = re.compile(r"nvidia-|cuda-|triton$")  # what torch's CUDA build brings; no test runs with it
TOOLS = {"setuptools"}  # torch asks for it; which one, an environment decides


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize("name", ["requirements.txt", "torch-cpu.txt", "torch-cuda.txt"])
def test_versions_are_those_that_were_tested_together(name: str) -> None:
    """constraints.txt names each, but for what only CUDA needs."""
    tested = pins(PROJECT / "constraints.txt")
    locked = {key: version.removesuffix("+cpu") for key, version in pins(DOCKER / name).items() if key not in TOOLS}
    assert {key: version for key, version in locked.items() if key in tested} == {
        key: tested[key] for key in locked if key in tested
    }
    assert all(CUDA.match(key) for key in locked.keys() - tested.keys())


@pytest.mark.parametrize("name", ["requirements.txt", "torch-cpu.txt", "torch-cuda.txt", "build.txt"])
def test_every_version_has_hashes(name: str) -> None:
    """Else pip refuses it, and so it does what somebody puts in its place."""
    for entry in re.split(r"\n(?=\w)", (DOCKER / name).read_text().strip()):
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry.rstrip()), entry


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_nothing_that_the_image_needs_is_missing(variant: str) -> None:
    """All of pyproject.toml, with the extras of the image; no package twice in two versions."""
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cluster"], *extras["mlflow-server"]]
    torch, others = pins(DOCKER / f"torch-{variant}.txt"), pins(DOCKER / "requirements.txt")
    assert all(torch[name] == others[name] for name in torch.keys() & others.keys())
    for requirement in map(Requirement, wanted):
        version = {**others, **torch}[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
