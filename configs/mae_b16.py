"""MAE with a ViT-B/16 on ImageNet-1K at 224 pixels for 1600 epochs.

    python main.py --config=configs/mae_b16.py --workdir=runs/mae_b16

Hardware: 8 GPUs of 80 GB (40 GiB of each by the planner); batch 4096 over all
of them, or --config.accumulate=2 and more where there is less, which is the
same to rounding.
Cost: an image costs the encoder of 49 of its 196 patches and the decoder, 8
blocks of width 512, of all 196, with their gradients; I-JEPA's encoders see
about 50 with a gradient and 196 without one. The paper names 31 hours on 128
TPU-v3 cores for ViT-L and 1600 epochs, and no time for ViT-B.
Aims at: ImageNet linear probe 68.0 (table 1 of the I-JEPA paper) and fine-tuned
83.6 (table 3 of He et al., CVPR 2022, arXiv 2111.06377), after 1600 epochs.
Lightly's benchmark has 46.0 and a kNN of 11.2 after 100 epochs. Judged here by
the average of the tokens, since there is no class token.

Published (appendix A.1): AdamW with betas .9 and .95, weight decay .05,
learning rate 1.5e-4 for 256 images, 40 epochs of warm-up, a cosine to 0, batch
4096, crops of .2 to 1 of the area and flips, no colors; 75% hidden, a decoder
of 8 blocks of width 512, pixels normalized by patch. methods/mae.py says where
this is not the published code.
"""

from ijepa_jax.configs import base

STEPS_PER_EPOCH = 1_281_167 // 4096


def get_config():
  c = base.get_config()
  c.method = 'mae'
  c.model.size = 'base'
  c.model.unroll = 12  # all: see docs/performance.md
  c.batch_size = 4096
  c.total_steps = 1600 * STEPS_PER_EPOCH

  c.optim.start_lr = 0.0
  c.optim.peak_lr = 1.5e-4 * c.batch_size / 256
  c.optim.final_lr = 0.0
  c.optim.warmup_steps = 40 * STEPS_PER_EPOCH
  c.optim.weight_decay = c.optim.final_weight_decay = 0.05
  c.optim.b2 = 0.95

  c.data.source = 'tfds'
  c.data.path = 'imagenet2012'
  c.data.crop_scale = (0.2, 1.0)
  c.data.flip = True
  c.checkpoint.keep_every = 200 * STEPS_PER_EPOCH
  return c
