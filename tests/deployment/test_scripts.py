"""The scripts that start servers refuse passwords that everybody knows; before anything starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import PROJECT

DOCKER = PROJECT / "docker"
GOOD = "f3b1c09d5e7a2846"
SECRETS = {
    "mlflow.sh": [
        "RUNS_PASSWORD",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ],
    "head.sh": ["RAY_AUTH_TOKEN"],
    "worker.sh": ["RAY_AUTH_TOKEN"],
    "driver.sh": ["RAY_AUTH_TOKEN"],
    "store.sh": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    "postgres.sh": ["STUDIES_PASSWORD", "RUNS_PASSWORD"],
}
KNOWN = ["", "short", "password1234", "Password1234", "postgres-password", "minioadmin-minioadmin", "changeme-changeme"]


def started(script: str, tmp_path: Path, **secrets: str) -> tuple[int, str]:
    """Its exit code and what it says; no program that it could start is on the path."""
    names = dict.fromkeys(SECRETS[script], GOOD)
    environment = {
        "PATH": "/usr/bin:/bin", "DATABASE": "postgresql+psycopg://mlflow@127.0.0.1:1/mlflow", "ARTIFACTS": "s3://b",
        "FOLDER": str(tmp_path), "AWS_ACCESS_KEY_ID": GOOD, **names, **secrets,
    }  # fmt: skip
    arguments = ["start", str(tmp_path / "postgres"), "1"] if script == "postgres.sh" else []
    ended = subprocess.run(
        [str(DOCKER / script), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(("script", "name"), [(script, name) for script, names in SECRETS.items() for name in names])
def test_known_passwords_are_refused(script: str, name: str, tmp_path: Path) -> None:
    """Empty ones, short ones, and those of examples; by name, and without showing them."""
    for value in KNOWN:
        code, said = started(script, tmp_path, **{name: value})
        assert code == 2, (value, said)
        assert said.startswith(f"{name} is ")
        assert not value or value not in said.replace("docker/secrets.sh", "").replace(name, "").split()


def test_a_password_may_stand_in_a_file(tmp_path: Path) -> None:
    """And is judged by the same rules."""
    file = tmp_path / "token"
    file.write_text("password1234\n")
    assert "is a known default" in started("driver.sh", tmp_path, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(file))[1]
    file.write_text(f"{GOOD}\n")
    show = 'echo "$RAY_AUTH_TOKEN $PGPASSWORD $RAY_AUTH_MODE ${STUDIES_PASSWORD-}"'
    told = subprocess.run(
        [str(DOCKER / "driver.sh"), "sh", "-c", show],
        env={"PATH": os.defpath, "RAY_AUTH_TOKEN_PATH": str(file), "STUDIES_PASSWORD": "it's \"one\" of $many"},
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert told.strip() == f'{GOOD} it\'s "one" of $many token'
