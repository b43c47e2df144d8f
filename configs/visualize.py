"""What the predictor of a run predicts, as one page.

    python main.py --config=configs/visualize.py --config.init_from=runs/tiny

Hardware: 2 CPU cores for `tiny`. Cost: seconds for the first page, 9 minutes
with what the generator draws; generator.total_steps=0 leaves it out.
Writes index.html, samples.png, samples.pdf and report.json to
<init_from>/visualize, or to --workdir; docs/see.md says how they are read.
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
  c.cache_dir = ''  # of predicted blocks; '': $IJEPA_JAX_CACHE or ~/.cache
  c.compilation_cache = ''  # as in configs/base.py

  c.visualize = ConfigDict()
  c.visualize.images = 500  # of the gallery in which blocks are looked for
  c.visualize.shown = 6  # images on the page
  c.visualize.draws = 2000  # masks that are counted for the coverage
  c.visualize.judged = 200  # images with a hidden block that is drawn
  c.visualize.seeds = 8  # samples of each
  c.visualize.sample_steps = 12  # of Heun's method; each asks twice

  # Flow matching in pixels on one predicted vector, as a pixel transformer
  # (JiT, 2025); see docs/see.md.
  c.generator = ConfigDict()
  c.generator.total_steps = 5000  # 0: no generator
  c.generator.blocks = 80_000  # predicted blocks that it learns from
  c.generator.image_size = 16  # pixels that a block is resized to
  c.generator.patch_size = 4
  c.generator.width = 128
  c.generator.depth = 4
  c.generator.heads = 4
  c.generator.dtype = 'float32'  # of the computation
  c.generator.batch_size = 96
  c.generator.warmup_steps = 100
  c.generator.peak_lr = 1e-3  # then a cosine to 0
  # Of the time's logit, 0 being noise: greater is nearer to the clean image.
  c.generator.time_mean = -0.8
  c.generator.ema = 0.998  # momentum of what is sampled with
  c.generator.every_steps = 500  # saves, and the loss of held-out blocks

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
