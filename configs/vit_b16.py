"""ViT-B/16 on ImageNet-1K at 224 pixels for 600 epochs (the paper's B/16).

    python main.py --config=configs/vit_b16.py --workdir=runs/vit_b16

Hardware: 8 GPUs of 40 GB or a TPU v4-16; batch 2048 over all of them.
Cost: not stated in the paper; see docs/hardware.md for what a step takes.
Aims at: ImageNet linear probe 72.9 (last 4 layers), 70.9 (last), 57.1 with 1%.
The release has no B/16 configuration; warm-up and start are the paper's.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 2048


def get_config():
  c = base.get_config()
  c.model.size = 'base'
  c.model.predictor_depth = 6
  c.model.unroll = 12  # all: see docs/performance.md
  c.total_steps = 600 * STEPS_PER_EPOCH
  c.optim.warmup_steps = 15 * STEPS_PER_EPOCH
  c.optim.start_lr = 1e-4
  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  c.checkpoint.keep_every = 100 * STEPS_PER_EPOCH
  return c
