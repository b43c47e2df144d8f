"""ViT-L/16 on ImageNet-1K at 224 pixels for 600 epochs (the paper's L/16).

    python main.py --config=configs/vit_l16.py --workdir=runs/vit_l16

Hardware: 16 A100 80GB, a TPU v4-32 or more; batch 2048 over all of them.
Cost: not stated in the paper; see docs/hardware.md for what a step takes.
Aims at: ImageNet linear probe 77.5 (last 4 layers), 76.1 (last), 64.2 with 1%.
The release has no L/16 configuration; warm-up and start are the paper's.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 2048


def get_config():
  c = base.get_config()
  c.model.size = 'large'
  c.model.predictor_depth = 12
  c.model.unroll = 24  # all: see docs/performance.md
  c.total_steps = 600 * STEPS_PER_EPOCH
  c.optim.warmup_steps = 15 * STEPS_PER_EPOCH
  c.optim.start_lr = 1e-4
  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  c.checkpoint.keep_every = 100 * STEPS_PER_EPOCH
  return c
