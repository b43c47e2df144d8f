"""main.py of which every process keeps what it has compiled.

For benchmarks/faults.py, which starts hundreds of processes. Of several on CPUs
JAX lets the first one alone write to its cache, and the others, whose entries
have other names, compile all again.
"""

import pathlib
import runpy
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[0] = str(ROOT)
MAIN = str(ROOT / 'main.py')


def keep_all() -> None:
  from jax._src import compiler, distributed

  write, state = compiler._cache_write, distributed.global_state

  def as_the_first(*args):
    rank, state.process_id = state.process_id, 0
    try:
      write(*args)
    finally:
      state.process_id = rank

  compiler._cache_write = as_the_first


if __name__ == '__main__':
  keep_all()
  sys.argv[0] = MAIN
  runpy.run_path(MAIN, run_name='__main__')
