"""The wheel holds what the tree holds, and the three packages import one way."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from support import PROJECT


def test_wheel_holds_every_module_of_the_tree(tmp_path: Path) -> None:
    """Every module and type marker of the three folders is in the wheel under lorafront, and nothing else is."""
    source = tmp_path / "source"  # built from a copy, so that nothing is left in the tree
    source.mkdir()
    folders = ("search", "trainables", "spaces")
    expected = set()
    for folder in folders:
        (source / folder).mkdir()
        for file in [*(PROJECT / folder).glob("*.py"), PROJECT / folder / "py.typed"]:
            (source / folder / file.name).write_bytes(file.read_bytes())
            expected.add(f"lorafront/{folder}/{file.name}")
    for name in ("pyproject.toml", "README.md"):
        (source / name).write_bytes((PROJECT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_docker_folder_hides_nothing() -> None:
    """`docker/` is no package: MLflow needs the real docker SDK."""
    assert not (PROJECT / "docker" / "__init__.py").exists()
