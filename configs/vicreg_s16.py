"""VICReg with a ViT-S/16 on ImageNet-1K at 224 pixels for 300 epochs.

    python main.py --config=configs/vicreg_s16.py --workdir=runs/vicreg_s16

Hardware: 8 GPUs of 40 GB (28 GiB of each by the planner); batch 2048 over all
of them at once: its statistics are of the whole batch, so `accumulate` can't
cut it up.
Cost: a step encodes two full views of each image with their gradients, 392
patches, where I-JEPA's has about 50 with and 196 without; the projector has
137 M parameters, the encoder 22 M. See docs/hardware.md.
Aims at: nothing published with a ViT. A ResNet-50 has a linear probe of 73.2
after 1000 epochs (the authors' README), of 63.0 and a kNN of 46.3 after 100 at
batch 256 (Lightly's benchmark).

Published (Bardes et al., ICLR 2022, arXiv 2105.04906): views, weights 25, 25
and 1, projector of three layers of 8192, batch 2048. Other here, for a ViT: the
average pool is projected; AdamW as MoCo v3 trains ViTs (Chen et al., ICCV 2021,
arXiv 2104.02057: 1.5e-4 for 256 images, weight decay .1, 40 epochs of warm-up)
in place of LARS; 300 epochs in place of 1000.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 2048


def get_config():
  c = base.get_config()
  c.method = 'vicreg'
  c.model.size = 'small'
  c.model.unroll = 12  # all: see docs/performance.md
  c.total_steps = 300 * STEPS_PER_EPOCH

  c.optim.start_lr = 0.0
  c.optim.peak_lr = 1.2e-3
  c.optim.final_lr = 0.0
  c.optim.warmup_steps = 40 * STEPS_PER_EPOCH
  c.optim.weight_decay = c.optim.final_weight_decay = 0.1

  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  return c
