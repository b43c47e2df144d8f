#!/usr/bin/env bash
# What one NVIDIA GPU does with this repository, in eight minutes: gpu.py says
# what it measures and takes the flags.
#   pip install -e '.[cuda]'
#   benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
# As launch/ has it.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
python="${PYTHON:-.venv/bin/python}"
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu.py "$@"
