"""Table 11: whether the target encoder's output or its input is masked.
ViT-H/16, 300 epochs.

    python main.py --config=configs/ablations/target_masking.py:input \
        --workdir=runs/target_masking-input

| row | the target encoder sees | 1% linear |
|---|---|---|
| output | the full image; blocks are cut out of its output | 67.3 |
| input | the patches of a block alone | 56.1 |

The paper does not say of how many pixels the images were: 224 here.
"""

from ijepa_jax.configs import vit_h14
from ijepa_jax.configs.ablations import common

_PATCH = {'model.patch_size': 16}
ROWS = {
  'output': (67.3, _PATCH),
  'input': (56.1, _PATCH | {'loss.mask_input': True}),
}


def get_config(row: str = 'output'):
  return common.make(vit_h14, 300, ROWS, row)
