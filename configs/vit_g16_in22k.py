"""ViT-g/16 on ImageNet-22K at 224 pixels for 44 epochs (released recipe).

    python main.py --config=configs/vit_g16_in22k.py --workdir=runs/g16_in22k \
        --config.data.path=/data/imagenet22k

Hardware: 128 A100 or H100 80GB (16 images each, 7 GiB of each by the planner)
or a TPU v4-256; batch 2048 over all.
Cost: not stated in the paper.
Aims at: the released IN22k-vitg16 checkpoint.
"""

from ijepa_jax.configs import vit_h14_in22k
from ijepa_jax.configs.vit_h14_in22k import STEPS_PER_EPOCH


def get_config():
  c = vit_h14_in22k.get_config()
  c.model.size = 'giant'
  c.model.patch_size = 16
  c.model.predictor_depth = 16
  c.model.unroll = 40  # all: see docs/performance.md
  c.total_steps = 44 * STEPS_PER_EPOCH
  c.mask.group = 16  # the release's images per device
  return c
