"""ViT-H/16 on ImageNet-1K at 448 pixels for 300 epochs (released recipe).

    python main.py --config=configs/vit_h16_448.py --workdir=runs/vit_h16_448

Hardware: 64 A100 or H100 80GB (32 images each, 63 GiB of each by the planner)
or twice as many; 64 chips of TPU v4 or v5e with --config.model.unroll=1
--config.model.remat=full (7 and 6 GiB of each). Batch 2048 over all.
Cost: not stated in the paper; 4 times the tokens of H/14.
Aims at: ImageNet linear probe 81.1 (last 4 layers); 77.3 with 1% of the labels
fine-tuned; 87.1 fully fine-tuned.
"""

from ijepa_jax.configs import vit_h14


def get_config():
  c = vit_h14.get_config()
  c.model.patch_size = 16
  c.data.image_size = (448, 448)
  c.mask.group = 16  # the release's images per device
  return c
