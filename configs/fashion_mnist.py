"""A small I-JEPA on Fashion-MNIST, 28 grey pixels, for a CPU.

    python main.py --config=configs/fashion_mnist.py --workdir=runs/fashion
    python benchmarks/evaluate.py --init_from=runs/fashion \
        --task=fashion_mnist --path=data/fashion_mnist

Hardware: 2 CPU cores. Cost: 16 minutes beside other work.
Images: data/fashion_mnist/{train,test}/<class>/, see benchmarks/real_data.py;
or --config.data.source=tfds --config.data.path=fashion_mnist, prepared as
ArrayRecord.
Aims at: README's table; the paper has no such pre-training.
"""

from ijepa_jax.configs import cifar10


def get_config():
  c = cifar10.get_config()
  c.total_steps = 3000

  # A 4 x 4 block of the 7 x 7 grid from the 33 patches around it.
  c.mask.target_scale = (0.33, 0.33)

  c.data.path = 'data/fashion_mnist'
  c.data.image_size = (28, 28)
  c.data.channels = 1
  c.data.mean = (0.286,)
  c.data.std = (0.353,)

  c.probe.every_steps = c.checkpoint.every_steps = 750
  return c
