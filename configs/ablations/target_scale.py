"""Table 8: how large target blocks are, as shares of the image. ViT-B/16, 300
epochs.

    python main.py --config=configs/ablations/target_scale.py:0.2-0.3 \
        --workdir=runs/target_scale-0.2-0.3

| row | 0.075-0.2 | 0.1-0.2 | 0.125-0.2 | 0.15-0.2 | 0.2-0.25 | 0.2-0.3 |
|---|---|---|---|---|---|---|
| 1% linear | 19.2 | 39.2 | 42.4 | 54.2 | 38.9 | 33.6 |
"""

from ijepa_jax.configs import vit_b16
from ijepa_jax.configs.ablations import common

ROWS = {
  '0.075-0.2': (19.2, {'mask.target_scale': (0.075, 0.2)}),
  '0.1-0.2': (39.2, {'mask.target_scale': (0.1, 0.2)}),
  '0.125-0.2': (42.4, {'mask.target_scale': (0.125, 0.2)}),
  '0.15-0.2': (54.2, {'mask.target_scale': (0.15, 0.2)}),
  '0.2-0.25': (38.9, {'mask.target_scale': (0.2, 0.25)}),
  '0.2-0.3': (33.6, {'mask.target_scale': (0.2, 0.3)}),
}


def get_config(row: str = '0.15-0.2'):
  return common.make(vit_b16, 300, ROWS, row)
