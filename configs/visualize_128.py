"""What a predictor predicts, drawn at 128 pixels: for a run on photographs.

    python main.py --config=configs/visualize_128.py \
        --config.init_from=runs/vit_h14

Hardware: one GPU of 80 GB, or several. Cost: one hour of an H100 for the
generator, reckoned and not yet run: 36 GFLOP an image and training step, 256
images a step, at a quarter of 989 TFLOP/s some 6,800 images/s; ten minutes for
the blocks of ViT-H/14, once, and 20 GB of disk for them.
Aims at: the paper's Figure 6, whose generator (RCDM) is some ten times as large
and saw 300,000 steps of 256; docs/see.md says what else differs.

A pixel transformer S/8: width 384, depth 12, 256 tokens (JiT, 2025; DiT-S).
"""

from ijepa_jax.configs import visualize


def get_config():
  c = visualize.get_config()
  c.visualize.images = 2000
  c.visualize.sample_steps = 25
  c.visualize.judged = 400

  c.generator.total_steps = 90_000  # 23 M blocks
  c.generator.blocks = 400_000
  c.generator.image_size = 128
  c.generator.patch_size = 8
  c.generator.width = 384
  c.generator.depth = 12
  c.generator.heads = 6
  c.generator.dtype = 'bfloat16'
  c.generator.batch_size = 256
  c.generator.warmup_steps = 2000
  c.generator.peak_lr = 3e-4
  c.generator.ema = 0.9998
  c.generator.every_steps = 5000

  c.data.workers = 8
  return c
