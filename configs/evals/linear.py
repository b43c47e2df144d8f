"""The linear evaluation of Table 1: all heads trained in one run.

16 on ImageNet, and 4 on tasks with one learning rate and weight decay.

    python main.py --config=configs/evals/linear.py --config.task=imagenet \
        --config.init_from=runs/vit_l16

Hardware: for ImageNet as for pre-training, 50 passes through the encoder
without gradients; with --config.linear.augment=False one pass, then minutes.
Aims at: 72.9 B/16, 77.5 L/16, 79.3 H/14, 81.1 H/16 at 448 pixels.
"""

from ijepa_jax.configs.evals import common


def get_config():
  c = common.get_config('linear')
  c.linear = dict(
    augment=True,  # crops anew each epoch; False: cached features
    inputs=('last', 'last4'),  # average pools of the last, the last 4 layers
    protocol='',  # imagenet transfer clevr; '': the task's
    batch_size=0,  # images a step; 0: the task's
    epochs=0,  # 0: the task's
    lrs=(),  # for 256 images; (): the protocol's
    weight_decays=(),  # (): the protocol's
  )
  return c
