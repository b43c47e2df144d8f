"""Attentive probes: cross-attention with one learned query pools the tokens.

    python main.py --config=configs/evals/attentive.py --config.task=imagenet \
        --config.init_from=runs/vit_l16

V-JEPA's frozen evaluation (Bardes et al., 2024, arXiv 2404.08471, section D.1):
12 attention heads, 20 epochs of AdamW by a cosine from .001 to 0, weight decay
.01. What differs: several rates at once, of which the best on the test images
is reported; the task's crops and flips, without AutoAugment. Of which='pixels'
the tokens are raw patches, which don't say where they are.

Hardware: as for the linear evaluation; with --config.attentive.augment=False
one pass, a disk for all tokens (20,000 pictures of `tiny` are 184 MB), minutes.
Aims at: 84.4 on ImageNet and 66.5 on Places205, its numbers for an I-JEPA H/16
at 512 pixels that was pre-trained on ImageNet-22K.
"""

from ijepa_jax.configs.evals import common


def get_config():
  c = common.get_config('attentive')
  c.attentive = dict(
    augment=True,  # crops anew each epoch; False: tokens kept on disk
    heads=0,  # of the attention; 0: the most up to 12 that divide the features
    batch_size=0,  # images a step; 0: the task's, 1024 at most
    epochs=20,
    lrs=(1e-2, 3e-3, 1e-3, 3e-4),  # at the first step
    weight_decays=(0.01, 0.1),
  )
  return c
