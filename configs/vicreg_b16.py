"""VICReg with a ViT-B/16 on ImageNet-1K at 224 pixels for 300 epochs.

    python main.py --config=configs/vicreg_b16.py --workdir=runs/vicreg_b16

Hardware: 8 GPUs of 80 GB (56 GiB of each by the planner) or a TPU v4-32; batch
2048 over all of them at once.
Cost: four times that of configs/vicreg_s16.py, which names the sources.
Aims at: nothing published with a ViT; see there for a ResNet-50.
"""

from ijepa_jax.configs import vicreg_s16


def get_config():
  c = vicreg_s16.get_config()
  c.model.size = 'base'
  c.checkpoint.keep_every = 50 * vicreg_s16.STEPS_PER_EPOCH
  return c
