"""Table 12: how many blocks the predictor has. ViT-L/16, 500 epochs.

    python main.py --config=configs/ablations/predictor_depth.py:6 \
        --workdir=runs/predictor_depth-6

| row | 6 | 12 |
|---|---|---|
| 1% linear | 64.0 | 66.9 |
"""

from ijepa_jax.configs import vit_l16
from ijepa_jax.configs.ablations import common

ROWS = {
  '6': (64.0, {'model.predictor_depth': 6}),
  '12': (66.9, {'model.predictor_depth': 12}),
}


def get_config(row: str = '12'):
  return common.make(vit_l16, 500, ROWS, row)
