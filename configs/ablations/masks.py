"""Table 6: which masks. ViT-B/16, 300 epochs.

    python main.py --config=configs/ablations/masks.py:rasterized \
        --workdir=runs/masks-rasterized

| row | targets | context | 1% linear |
|---|---|---|---|
| multi_block | 4 of .15 to .2 | one of .85 to 1, less targets | 54.2 |
| rasterized | 3 quadrants | the fourth | 15.5 |
| block | a block of .6 | the rest | 20.2 |
| random | .6 of the patches | the rest | 17.6 |
"""

from ijepa_jax.configs import vit_b16
from ijepa_jax.configs.ablations import common

ROWS = {
  'multi_block': (54.2, {}),
  'rasterized': (15.5, {'mask.sampler': 'rasterized'}),
  'block': (20.2, {'mask.sampler': 'block', 'mask.fraction': 0.6}),
  'random': (17.6, {'mask.sampler': 'random', 'mask.fraction': 0.6}),
}


def get_config(row: str = 'multi_block'):
  return common.make(vit_b16, 300, ROWS, row)
