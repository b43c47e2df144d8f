"""A toy I-JEPA on embedded pictures: `make train`.

    python main.py --config=configs/tiny.py --workdir=runs/tiny

Hardware: 2 CPU cores. Cost: 5 minutes.
Aims at: a linear probe of the mean-pooled target encoder well above the same
encoder untrained, on pictures made with another seed; README has the figures.

What it needed at this size (benchmarks/tiny_seeds.py makes three runs): kernels
scaled by their fan-in, since patches embedded with 0.02 vanish beside the
position table; one large target; and, in about the same time, many small steps
of a thin network (benchmarks/recipe_search.py, benchmarks/compare.py --search):
a batch of 32, an MLP no wider than the tokens, a fast EMA.
"""

from ijepa_jax.configs import base


def get_config():
  c = base.get_config()
  c.batch_size = 32
  c.total_steps = 20_000

  c.model.size = 'tiny'
  c.model.width = 64
  c.model.depth = 3
  c.model.heads = 2
  c.model.mlp_dim = 64
  c.model.patch_size = 8
  c.model.predictor_width = 32
  c.model.predictor_depth = 1
  c.model.unroll = 4  # all, of what is built on this too: docs/performance.md
  c.model.init = 'fan_in'
  c.model.dtype = 'float32'

  # A 4 x 4 block of the 6 x 6 grid from the 20 patches around it: one shape, so
  # one compilation. Two blocks learn as well and cost half as much again.
  c.mask.sampler = 'uniform'
  c.mask.num_targets = 1
  c.mask.target_scale = (0.45, 0.45)
  c.mask.target_aspect = (1.0, 1.0)
  c.mask.context_scale = (1.0, 1.0)

  # With --config.method=mae.
  c.mae.decoder_width = 64
  c.mae.decoder_depth = 2
  c.mae.decoder_heads = 2

  # With --config.method=vicreg.
  c.vicreg.projector = (256, 256, 128)
  c.vicreg.crop_scale = (0.2, 1.0)
  c.vicreg.blur = (0.0,)

  c.optim.start_lr = 1.4e-4
  c.optim.peak_lr = 1.4e-3
  c.optim.warmup_steps = 1000
  c.ema.first = 0.99

  c.data.source = 'scenes'
  c.data.image_size = (48, 48)
  c.data.mean = (0.5, 0.5, 0.5)
  c.data.std = (0.25, 0.25, 0.25)
  c.data.crop_scale = (1.0, 1.0)  # the whole picture: the object fills it
  c.data.crop_ratio = (1.0, 1.0)
  c.data.workers = 0

  c.checkpoint.every_steps = 2000
  c.probe.every_steps = 2000
  c.health.every_steps = 500
  return c
