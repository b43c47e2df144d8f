"""A toy I-JEPA on embedded pictures."""

from configs import base


def get_config():
  c = base.get_config()
  c.batch_size = 64
  c.total_steps = 3000
  c.model.size = 'tiny'
  c.model.patch_size = 6
  c.model.width = 64
  c.model.depth = 3
  c.model.heads = 2
  c.model.predictor_width = 32
  c.model.predictor_depth = 2
  c.model.init = 'fan_in'
  c.model.dtype = 'float32'
  c.mask.sampler = 'uniform'
  c.mask.num_targets = 3
  c.mask.target_scale = (0.2, 0.3)
  c.mask.min_keep = 4
  c.mask.group = 4
  c.optim.start_lr = 4e-4
  c.optim.peak_lr = 4e-3
  c.optim.warmup_steps = 150
  c.ema.first = 0.99
  c.data.image_size = (48, 48)
  c.data.mean = (0.5, 0.5, 0.5)
  c.data.std = (0.25, 0.25, 0.25)
  c.data.workers = 0
  c.probe.every_steps = 300
  return c
