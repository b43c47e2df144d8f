"""Logistic regression on cached features: the 1% metric of every ablation.

    python main.py --config=configs/evals/logistic.py \
        --config.task=imagenet_1pct --config.init_from=runs/vit_l16

Hardware: whatever passes the data set through the encoder once; then seconds.
Aims at: 57.1 B/16, 64.2 L/16, 62.9 H/14 (ImageNet, 1% of the labels).
"""

from ijepa_jax.configs.evals import common


def get_config():
  c = common.get_config('logistic')
  c.task = 'imagenet_1pct'
  c.logistic = dict(
    layers='last',  # last, last4
    per_class=0,  # labelled examples of each class; 0: all
    share=0.0,  # of the labelled examples; 0: all
    list_file='',  # names of the labelled ones, a line each
    l2=tuple(10.0**k for k in range(-7, 1)),  # penalties to choose from
  )
  return c
