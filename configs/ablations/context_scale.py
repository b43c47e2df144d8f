"""Table 9: how large the context is before the targets leave it. ViT-B/16, 300
epochs.

    python main.py --config=configs/ablations/context_scale.py:0.65-1 \
        --workdir=runs/context_scale-0.65-1

| row | 0.4-1 | 0.65-1 | 0.75-1 | 0.85-1 |
|---|---|---|---|---|
| 1% linear | 31.2 | 47.1 | 49.3 | 54.2 |
"""

from ijepa_jax.configs import vit_b16
from ijepa_jax.configs.ablations import common

ROWS = {
  '0.4-1': (31.2, {'mask.context_scale': (0.4, 1.0)}),
  '0.65-1': (47.1, {'mask.context_scale': (0.65, 1.0)}),
  '0.75-1': (49.3, {'mask.context_scale': (0.75, 1.0)}),
  '0.85-1': (54.2, {'mask.context_scale': (0.85, 1.0)}),
}


def get_config(row: str = '0.85-1'):
  return common.make(vit_b16, 300, ROWS, row)
