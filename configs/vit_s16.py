"""ViT-S/16 on ImageNet-1K at 224 pixels for 300 epochs; not in the paper.

    python main.py --config=configs/vit_s16.py --workdir=runs/vit_s16

Hardware: 1 to 8 GPUs; `--config.accumulate=8` fits a small one.
Cost: see docs/hardware.md for what a step takes.
Aims at: nothing published; the cheapest model for trying things on ImageNet.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 2048


def get_config():
  c = base.get_config()
  c.model.size = 'small'
  c.model.predictor_depth = 6
  c.model.unroll = 12  # all: see docs/performance.md
  c.total_steps = 300 * STEPS_PER_EPOCH
  c.optim.warmup_steps = 15 * STEPS_PER_EPOCH
  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  return c
