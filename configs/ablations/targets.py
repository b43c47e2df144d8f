"""Table 7: what is predicted. ViT-L/16, 500 epochs, with pixels 800.

    python main.py --config=configs/ablations/targets.py:pixels \
        --workdir=runs/targets-pixels

| row | the targets are | 1% linear |
|---|---|---|
| encoder | the target encoder's output | 66.9 |
| pixels | the block's pixels, see methods/pixels.py | 40.7 |
"""

from ijepa_jax.configs import vit_l16
from ijepa_jax.configs.ablations import common

ROWS = {
  'encoder': (66.9, {}),
  'pixels': (
    40.7,
    {'method': 'pixels', 'total_steps': 800 * common.STEPS_PER_EPOCH},
  ),
}


def get_config(row: str = 'encoder'):
  return common.make(vit_l16, 500, ROWS, row)
