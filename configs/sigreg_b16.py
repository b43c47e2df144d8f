"""SIGReg (LeJEPA) with a ViT-B/16 on ImageNet-1K at 224 pixels, 100 epochs.

    python main.py --config=configs/sigreg_b16.py --workdir=runs/sigreg_b16

Hardware: 8 GPUs of 80 GB (54 GiB of each by the planner) or a TPU v4-32; batch
1024 over all of them at once.
Cost: four times that of configs/sigreg_s16.py, which names the sources.
Aims at: between the 64.0 of a ViT-S/16 (Lightly 1.6) and the 79 of a ViT-H/14
(the paper), linear; no accuracy of a B/16 is known to us.
"""

from ijepa_jax.configs import sigreg_s16


def get_config():
  c = sigreg_s16.get_config()
  c.model.size = 'base'
  c.checkpoint.keep_every = 20 * sigreg_s16.STEPS_PER_EPOCH
  return c
