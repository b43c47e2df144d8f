"""Weighted k nearest neighbours on frozen features; nothing is trained.

    python main.py --config=configs/evals/knn.py --config.task=imagenet \
        --config.init_from=runs/vit_l16

Hardware: whatever passes the data set through the encoder once.
The paper gives no kNN numbers: a signal of development, of the best k on the
test images.
"""

from ijepa_jax.configs.evals import common


def get_config():
  c = common.get_config('knn')
  c.knn = dict(ks=(10, 20, 100, 200), temperatures=(0.07,))
  return c
