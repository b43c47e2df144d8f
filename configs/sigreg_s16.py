"""SIGReg (LeJEPA) with a ViT-S/16 on ImageNet-1K at 224 pixels, 100 epochs.

    python main.py --config=configs/sigreg_s16.py --workdir=runs/sigreg_s16

Hardware: 8 GPUs of 40 GB or a TPU v4-16; batch 1024 over all of them at once:
its statistics are of the whole batch, so `accumulate` can't cut it up.
Cost: a step encodes four full views of each image with their gradients, 784
patches, where I-JEPA's has about 50 with and 196 without. See docs/hardware.md.
Aims at: linear probe 64.0, kNN 47.1 after 100 epochs (Lightly 1.6's benchmark
of LeJEPA with a ViT-S/16, with its small crops); the paper has 79 with a
ViT-H/14.

Published (Balestriero and LeCun, 2025, arXiv 2511.08544, and the authors'
README and minimal example): lambda .02, four views that are all large, crops of
.08 to 1, 1024 directions, 17 knots, projector 2048-2048-small, AdamW 5e-4,
weight decay 5e-2, cosine to a thousandth; blur of half the views and
solarization of a fifth. Other here: the average pool of the last layer is
projected; no small crops, which the authors' README has (6 of 98 pixels beside
2 large ones); BatchNorm sees each view by itself; the batch and ten
epochs of warm-up are ours.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 1024


def get_config():
  c = base.get_config()
  c.method = 'vicreg'
  c.batch_size = 1024
  c.model.size = 'small'
  c.model.unroll = 12  # all: see docs/performance.md
  c.total_steps = 100 * STEPS_PER_EPOCH

  c.vicreg.regularizer = 'sigreg'
  c.vicreg.projector = (2048, 2048, 128)
  c.vicreg.num_views = 4
  c.vicreg.blur = (0.5,)
  c.vicreg.solarize = (0.2,)

  c.optim.start_lr = 5e-6
  c.optim.peak_lr = 5e-4
  c.optim.final_lr = 5e-7
  c.optim.warmup_steps = 10 * STEPS_PER_EPOCH
  c.optim.weight_decay = c.optim.final_weight_decay = 0.05

  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  return c
