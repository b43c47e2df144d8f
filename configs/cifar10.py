"""A small I-JEPA on CIFAR-10, 32 pixels, for a CPU.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10
    python benchmarks/evaluate.py --init_from=runs/cifar10 --task=cifar10 \
        --path=data/cifar10

Hardware: 2 CPU cores. Cost: 14 minutes.
Images: data/cifar10/{train,test}/<class>/, see benchmarks/real_data.py; or
--config.data.source=tfds --config.data.path=cifar10, prepared as ArrayRecord.
Aims at: README's table; the paper has no CIFAR-10 pre-training.
"""

from ijepa_jax.configs import tiny


def get_config():
  c = tiny.get_config()
  c.batch_size = 128
  c.total_steps = 3400
  c.model.depth = 4
  c.model.mlp_dim = None  # four times the width
  c.model.patch_size = 4

  # A 4 x 4 block of the 8 x 8 grid from the 48 patches around it.
  c.mask.target_scale = (0.25, 0.25)

  c.optim.start_lr = 4e-4
  c.optim.peak_lr = 4e-3
  c.optim.warmup_steps = 150
  c.ema.first = 0.97

  c.data.source = 'folder'
  c.data.path = 'data/cifar10'
  c.data.image_size = (32, 32)
  c.data.crop_scale = (0.6, 1.0)
  c.data.crop_ratio = (3 / 4, 4 / 3)
  c.data.flip = True
  c.data.workers = 1

  c.probe.every_steps = 850
  c.probe.split = 'test'
  c.health.every_steps = 200
  c.health.split = 'test'
  c.checkpoint.every_steps = 850
  return c
