"""ViT-H/14 on ImageNet-1K at 224 pixels for 300 epochs (released recipe).

    python main.py --config=configs/vit_h14.py --workdir=runs/vit_h14

Hardware: 16 A100 or H100 80GB (128 images each, 41 GiB of each by the planner)
or 64 TPU v4 or v5e (with mesh.data=-1 and mesh.fsdp=8); batch 2048 over all.
Cost: the paper took under 72 hours on 16 A100, under 1200 GPU-hours.
Aims at: ImageNet linear probe 79.3 (last 4 layers), 78.2 (last), 62.9 with 1%.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 2048


def get_config():
  c = base.get_config()
  c.model.size = 'huge'
  c.model.patch_size = 14
  c.model.predictor_depth = 12
  c.model.unroll = 32  # all: see docs/performance.md
  c.total_steps = 300 * STEPS_PER_EPOCH
  c.optim.warmup_steps = 40 * STEPS_PER_EPOCH
  c.mask.group = 128  # the release's images per device
  c.mesh.data = 1
  c.mesh.fsdp = -1
  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  c.checkpoint.keep_every = 50 * STEPS_PER_EPOCH
  return c
