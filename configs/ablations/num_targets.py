"""Table 10: how many target blocks of an image are predicted. ViT-B/16, 300
epochs.

    python main.py --config=configs/ablations/num_targets.py:2 \
        --workdir=runs/num_targets-2

| row | 1 | 2 | 3 | 4 |
|---|---|---|---|---|
| 1% linear | 9.0 | 22.0 | 48.5 | 54.2 |
"""

from ijepa_jax.configs import vit_b16
from ijepa_jax.configs.ablations import common

ROWS = {
  '1': (9.0, {'mask.num_targets': 1}),
  '2': (22.0, {'mask.num_targets': 2}),
  '3': (48.5, {'mask.num_targets': 3}),
  '4': (54.2, {'mask.num_targets': 4}),
}


def get_config(row: str = '4'):
  return common.make(vit_b16, 300, ROWS, row)
