#!/usr/bin/env bash
# One machine, all its devices:
#   launch/local.sh --config=configs/vit_b16.py --workdir=runs/b16
set -euo pipefail
cd "$(dirname "$0")/.."
# Huge pages: without them a step on a CPU spends a third of its time in page
# faults. No effect on accelerators.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" main.py "$@"
