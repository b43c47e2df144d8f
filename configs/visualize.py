"""What the predictor of a run predicts, as one page.

    python main.py --config=configs/visualize.py --config.init_from=runs/tiny

Hardware: 2 CPU cores for `tiny`. Cost: seconds.
Writes index.html and report.json to <init_from>/visualize, or to --workdir.
`init_from` is a workdir, an export, a .pth.tar file or a Hugging Face folder;
what has no predictor gets the pictures of the encoder alone.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
  c = ConfigDict()
  c.job = 'visualize'
  c.seed = 0  # of masks and of the choice of images
  c.init_from = ''
  c.step = config_dict.placeholder(int)  # of the checkpoint; None: the newest
  c.batch_size = 128  # images at a time through the encoder

  c.visualize = ConfigDict()
  c.visualize.images = 500  # of the gallery in which blocks are looked for
  c.visualize.shown = 6  # images on the page
  c.visualize.draws = 2000  # masks that are counted for the coverage

  c.data = ConfigDict()
  # '': images of the run that it was not trained on (scenes: another seed;
  # others: health.split, or its own split); of a file: name them here.
  c.data.source = ''  # scenes folder tfds arrayrecord huggingface
  c.data.path = ''
  c.data.split = 'train'
  c.data.workers = 0
  c.data.max_pixels = 89_478_485  # of an image that is decoded; 0: no limit

  c.mesh = ConfigDict()
  c.mesh.data = -1  # devices, as in configs/base.py
  c.mesh.fsdp = 1
  return c
