"""Every knob of the evaluations once.

    python main.py --config=configs/evals/knn.py --config.init_from=runs/mine

Results go to --workdir, by default init_from/evals (of a file, file.evals):
<task>-<job>.json, with -2 and so on where another evaluation has that name, and
features/, computed once.
"""

from ml_collections import ConfigDict, config_dict


def get_config(job: str) -> ConfigDict:
  c = ConfigDict()
  c.job = job
  c.seed = 0
  c.init_from = ''  # --workdir of a training run
  c.which = 'target'  # target context; to compare with: untrained pixels
  c.step = config_dict.placeholder(int)  # of the checkpoint; None: the newest
  # Height, width in pixels, or a side; None: what the encoder was trained with.
  # On another grid of patches the position table is: recompute interpolate
  c.image_size = config_dict.placeholder(tuple)
  c.pos_embed = 'recompute'
  # See ijepa_jax/evals/tasks.py; '': that of the images at data.path, or of
  # those that the run was trained on
  c.task = ''
  c.batch_size = 256  # images at a time through the encoder
  c.cache_dir = ''  # of features; '': features/ in the workdir
  c.compilation_cache = ''  # as in configs/base.py

  c.data = ConfigDict()
  # Of what data.path is: folder tfds arrayrecord huggingface
  c.data.source = 'folder'
  c.data.path = ''  # '': the task's own TFDS data set
  c.data.train = 'train'  # splits
  c.data.test = ''  # '': as the task has it by default
  c.data.max_pixels = 89_478_485  # of an image that is decoded; 0: no limit
  c.data.workers = 4  # processes a host; 0: in this process

  c.mesh = ConfigDict()
  c.mesh.data = -1  # devices, as in configs/base.py
  c.mesh.fsdp = 1
  return c
