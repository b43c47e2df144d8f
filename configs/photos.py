"""A small I-JEPA on a folder of photographs: some hundreds, or many thousands.

    python main.py --config=configs/photos.py --workdir=runs/mine \
        --config.data.path=/my/images

Hardware: 2 CPU cores. Cost: 5 minutes of one core.
Images: any tree of files; a folder `train` in it is taken, where there is one.
`python -m ijepa_jax.start /my/images` sets the steps, the splits and the rest
by what is in the folder. Of classes that are held out in val/<class>/, take
--config.health.split=val --config.probe.split=val
--config.probe.every_steps=600
Aims at: a probe, kNN and RankMe well above those of the untrained encoder;
docs/small_data.md has the figures, and what to change for other sizes.

As configs/tiny.py, whose many small steps of a thin network suit few images, at
64 pixels and with crops: so no image is seen twice as it was.
"""

from configs import tiny


def get_config():
  c = tiny.get_config()
  c.batch_size = 64
  c.total_steps = 3000
  c.model.depth = 4

  # A 5 x 5 block of the 8 x 8 grid from the 39 patches around it.
  c.mask.target_scale = (0.39, 0.39)

  c.optim.start_lr = 2e-4
  c.optim.peak_lr = 2e-3
  c.optim.warmup_steps = 150

  c.data.source = 'folder'
  c.data.path = 'data/photographs'
  c.data.image_size = (64, 64)
  c.data.crop_scale = (0.4, 1.0)
  c.data.crop_ratio = (3 / 4, 4 / 3)
  c.data.flip = True
  c.data.workers = 1

  c.probe.every_steps = 0  # of images in classes, with probe.split
  c.health.every_steps = 150
  c.checkpoint.every_steps = 600
  return c
