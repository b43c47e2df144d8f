"""The one entry point: python -m ijepa_jax, from the repository.

    python main.py --config=configs/vit_l16.py --workdir=runs/l16

The same line on a laptop, a GPU machine, SLURM and a TPU pod; see launch/.
"""

import runpy

if __name__ == '__main__':
  runpy.run_module('ijepa_jax', run_name='__main__')
