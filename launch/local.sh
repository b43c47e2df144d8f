#!/usr/bin/env bash
# One machine, all its devices:
#   launch/local.sh --config=configs/vit_b16.py --workdir=runs/b16
set -euo pipefail
cd "$(dirname "$0")/.."
# Huge pages: without them a step on a CPU spends a third of its time in page
# faults. No effect on accelerators.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
# Of a GPU's memory JAX takes three quarters else. No effect on others.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
# What XLA compiled is kept in the workdir, so that a restart compiles nothing;
# JAX_COMPILATION_CACHE_DIR= (empty) keeps nothing.
if [ -z "${JAX_COMPILATION_CACHE_DIR+set}" ]; then
  for argument in "$@"; do
    case "$argument" in
      --workdir=?*)
        export JAX_COMPILATION_CACHE_DIR="${argument#*=}/compilation_cache" ;;
    esac
  done
fi
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" main.py "$@"
