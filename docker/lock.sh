#!/bin/sh
# Write the hash-pinned requirements of the image anew, from pyproject.toml and constraints.txt. It needs uv, reads
# metadata alone, and downloads no wheel:
#
#   pip install uv
#   docker/lock.sh
#
# TORCH_CPU: where torch's wheels for CPUs are, a page of links or a folder (https://download.pytorch.org/whl/cpu/torch/).
set -eu
cd "$(dirname "$0")/.."
torch=$(grep '^torch==' constraints.txt)
cpu=${TORCH_CPU:-https://download.pytorch.org/whl/cpu/torch/}

compile() {
    uv pip compile --quiet --constraint constraints.txt --generate-hashes --no-annotate --no-header \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

echo "$torch" | compile - --output-file docker/torch-cuda.txt
echo "$torch+cpu" | compile - --find-links "$cpu" --output-file docker/torch-cpu.txt
# What both variants share: torch itself and what only CUDA needs are in the files above.
compile pyproject.toml --extra cluster --extra mlflow-server --extra s3 --constraint docker/torch-cpu.txt --find-links "$cpu" \
    --no-emit-package torch --output-file docker/requirements.txt
sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml | compile - --constraint docker/torch-cpu.txt --output-file docker/build.txt
sed -i '/^--find-links/d' docker/torch-cpu.txt docker/requirements.txt
