"""ViT-H/14 on ImageNet-22K at 224 pixels for 66 epochs (released recipe).

    python main.py --config=configs/vit_h14_in22k.py --workdir=runs/h14_in22k \
        --config.data.path=/data/imagenet22k

Hardware: 16 to 64 A100 or H100 80GB, as configs/vit_h14.py, or a TPU v4-128;
batch 2048 over all.
Cost: not stated in the paper.
Aims at: the released IN22k-vith14 checkpoint; linear transfer in the paper's
appendix.
"""

from ijepa_jax.configs import vit_h14

STEPS_PER_EPOCH = 14_197_122 // 2048


def get_config():
  c = vit_h14.get_config()
  c.total_steps = 66 * STEPS_PER_EPOCH
  c.optim.warmup_steps = 3 * STEPS_PER_EPOCH
  c.mask.group = 32  # the release's images per device
  c.data.source = 'folder'
  c.data.path = ''  # the tree of images
  c.checkpoint.keep_every = 10 * STEPS_PER_EPOCH
  return c
