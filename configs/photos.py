"""A small I-JEPA on a folder of photographs, 64 pixels."""

from configs import tiny


def get_config():
  c = tiny.get_config()
  c.batch_size = 64
  c.total_steps = 6000
  c.model.depth = 4
  c.model.predictor_width = 32

  # A 5 x 5 block of the 8 x 8 grid.
  c.mask.target_scale = (0.39, 0.39)

  c.optim.warmup_steps = 300
  c.data.source = 'folder'
  c.data.path = 'photos'
  c.data.image_size = (64, 64)
  c.data.crop_scale = (0.4, 1.0)
  c.data.crop_ratio = (3 / 4, 4 / 3)
  c.data.flip = True
  c.probe.every_steps = 1000
  c.probe.split = 'val'
  c.health.every_steps = 300
  c.health.split = 'val'
  c.checkpoint.every_steps = 1000
  return c
