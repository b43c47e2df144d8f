"""Every knob once, with its unit and where its value comes from.

A recipe is a file with `get_config()` that takes this one and changes a few
lines; `--config.optim.peak_lr=5e-4` changes one from the command line. Values
are the release's ImageNet-1K recipe unless a comment says otherwise; where
paper and release differ see docs/paper_vs_release.md.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.job = 'pretrain'
  c.method = 'ijepa'  # what is learned: ijepa, pixels, mae, vicreg
  c.seed = 0  # of initialisation, order, crops and masks
  c.batch_size = 2048  # images a step, over all devices
  c.total_steps = 187_500  # 300 epochs of 625 steps
  # What XLA compiled, for the next start: a folder or bucket that all processes
  # see; '': $JAX_COMPILATION_CACHE_DIR, or nothing is kept. Whoever can write
  # there can run code here.
  c.compilation_cache = ''
  c.accumulate = 1  # micro-batches that a step is cut into, to save memory
  # Weights to begin with: a workdir, an export, .pth.tar or Hugging Face folder
  c.init_from = ''
  c.init_optimizer = False  # also take AdamW's moments and the step from there

  c.model = ConfigDict()
  c.model.size = 'base'  # tiny small base large huge giant
  c.model.patch_size = 16  # pixels
  c.model.width = config_dict.placeholder(int)  # None: that of the size
  c.model.depth = config_dict.placeholder(int)
  c.model.heads = config_dict.placeholder(int)
  c.model.mlp_dim = config_dict.placeholder(int)
  c.model.predictor_width = 384
  c.model.predictor_depth = 6  # 6 base, 12 large and huge, 16 giant
  c.model.predictor_heads = config_dict.placeholder(int)  # None: the encoder's
  c.model.init = 'release'  # release, rescaled (1/sqrt(2 layer)), fan_in
  c.model.dtype = 'bfloat16'  # of the computation; parameters are float32
  # none, dots (keep products), full (keep nothing); on CPUs with unroll = 1
  c.model.remat = 'none'
  c.model.attention = 'xla'  # xla, cudnn (NVIDIA GPUs), pallas (TPUs)
  c.model.unroll = 1  # blocks in a turn of the loop; all: fast, slow to compile

  c.loss = ConfigDict()
  c.loss.kind = 'smooth_l1'  # smooth_l1 (release), l2 (paper); pixels, mae: l2
  # ijepa: layer-norm the targets again (release); pixels, mae: normalise the
  # pixels of each patch (MAE's better half)
  c.loss.normalize_targets = True
  # Not in the paper's I-JEPA; methods/ijepa.py names the sources.
  c.loss.target_layers = 1  # targets: mean of the last k blocks (data2vec)
  c.loss.position_noise = 0.0  # variance, of what is predicted (StoP: .25)
  c.loss.variance = 0.0  # weights of VICReg's terms on contexts (C-JEPA)
  c.loss.covariance = 0.0
  c.loss.mask_input = False  # ijepa: the target encoder sees a block alone

  c.mae = ConfigDict()  # He et al., CVPR 2022; has its own masks
  c.mae.mask_ratio = 0.75  # share of the patches that are hidden
  c.mae.decoder_width = 512
  c.mae.decoder_depth = 8
  c.mae.decoder_heads = 16

  c.mask = ConfigDict()  # of ijepa and pixels
  c.mask.sampler = 'release'  # release uniform rasterized block random
  c.mask.num_contexts = 1
  c.mask.num_targets = 4
  c.mask.context_scale = (0.85, 1.0)  # share of the grid
  c.mask.context_aspect = (1.0, 1.0)  # height over width
  c.mask.target_scale = (0.15, 0.2)
  c.mask.target_aspect = (0.75, 1.5)
  c.mask.min_keep = 10  # a context must keep more patches than this
  c.mask.allow_overlap = False  # targets may stay in the context
  c.mask.group = 128  # images over which the release cuts to the shortest
  c.mask.fraction = 0.6  # of the patches, for `block` and `random`

  # Of method=vicreg; its ImageNet recipe is configs/vicreg_s16.py.
  c.vicreg = ConfigDict()
  c.vicreg.regularizer = 'vicreg'  # vicreg; sigreg, LeJEPA's
  c.vicreg.invariance = 25.0  # weights of VICReg's terms
  c.vicreg.variance = 25.0
  c.vicreg.covariance = 1.0
  c.vicreg.sigreg = 0.02  # weight of SIGReg; the rest is the invariance's
  c.vicreg.slices = 1024  # directions that SIGReg draws for a step
  c.vicreg.projector = (8192, 8192, 8192)  # widths of its layers; (): none
  c.vicreg.num_views = 2  # of each image; BYOL's, by what follows
  c.vicreg.crop_scale = (0.08, 1.0)  # in place of data.crop_scale
  c.vicreg.flip = True
  c.vicreg.jitter = 0.8  # share whose colors change
  c.vicreg.grey = 0.2  # share that turns grey
  c.vicreg.blur = (1.0, 0.1)  # share of the 1st, 2nd view that is blurred
  c.vicreg.solarize = (0.0, 0.2)  # share of them that is solarized

  c.optim = ConfigDict()
  c.optim.start_lr = 2e-4  # at step 0; lr is not scaled by the batch size
  c.optim.peak_lr = 1e-3
  c.optim.final_lr = 1e-6
  c.optim.warmup_steps = 25_000  # 40 epochs (paper: 15, from 1e-4)
  c.optim.weight_decay = 0.04
  c.optim.final_weight_decay = 0.4
  c.optim.weight_decay_schedule = 'cosine'  # cosine (release), linear (paper)
  c.optim.b1 = 0.9
  c.optim.b2 = 0.999
  c.optim.eps = 1e-8
  c.optim.mu_dtype = 'float32'  # of AdamW's first moment; bfloat16: half of it
  c.optim.clip_norm = 0.0  # of the whole gradient; 0 is off
  c.optim.schedule_scale = 1.0  # schedules last this times total_steps

  c.ema = ConfigDict()
  c.ema.first = 0.996  # momentum of the target at step 0, rising linearly
  c.ema.last = 1.0

  c.data = ConfigDict()
  c.data.source = 'scenes'  # scenes folder tfds arrayrecord huggingface
  c.data.path = ''  # a folder or bucket; tfds: a name or a prepared directory
  c.data.split = 'train'  # '': the path itself
  c.data.list_file = ''  # of the images to take, a name a line; '': all
  c.data.flavour = 'scenes'  # of `scenes`: scenes, crowd
  c.data.count = 20_000  # of `scenes`: pictures
  c.data.image_size = (224, 224)  # height, width in pixels; or a side
  c.data.channels = 3
  c.data.mean = (0.485, 0.456, 0.406)  # per channel of pixels in [0, 1]
  c.data.std = (0.229, 0.224, 0.225)
  c.data.from_manifest = False  # these three as packed images have them
  c.data.crop_scale = (0.3, 1.0)  # share of the image's area
  c.data.crop_ratio = (3 / 4, 4 / 3)  # width over height
  c.data.flip = False
  c.data.jitter = 0.0  # strength of random colours (SimCLR: 1); 0: none
  c.data.grey = 0.0  # share of the images that turn grey (SimCLR: .2)
  c.data.blur = 0.0  # share that is blurred (SimCLR: .5)
  c.data.fast = False  # decode and resize by the extra [fast], to a grey level
  c.data.workers = 8  # processes a host; 0: in this process
  c.data.prefetch = 2  # batches on the device ahead of the step
  c.data.max_bad_share = 0.01  # of images that can't be decoded, then stop
  c.data.max_pixels = 89_478_485  # of an image that is decoded; 0: no limit

  c.mesh = ConfigDict()
  c.mesh.data = -1  # devices over which only the batch is split; -1: the rest
  # Devices over which the state is split too; best a power of two: most widths
  # can't be divided by 3, and what a run can't split it says at its start.
  c.mesh.fsdp = 1

  c.checkpoint = ConfigDict()
  c.checkpoint.every_steps = 1000  # 0: not by steps
  c.checkpoint.every_minutes = 0.0  # 0: not by time
  c.checkpoint.keep_last = 3
  c.checkpoint.keep_every = 0  # steps; multiples are never deleted; 0: none
  # By a metric: health/rankme, probe/<label> (of folders: probe/label), ...
  c.checkpoint.keep_best = ''
  c.checkpoint.keep_best_mode = 'max'  # max, min

  c.log = ConfigDict()
  c.log.tensorboard = True

  c.profile = ConfigDict()
  c.profile.steps = (0, 0)  # first and last of a trace in <workdir>/profile

  # Signals of health on a fixed batch, with alarms in words; docs/health.md.
  c.health = ConfigDict()
  c.health.every_steps = 1000  # 0: off
  c.health.images = 256  # or all, where there are fewer
  c.health.split = ''  # of the data; '': data.split; scenes: another seed

  c.probe = ConfigDict()  # linear and kNN while training; needs labels
  c.probe.every_steps = 0  # 0: off
  c.probe.train_count = 5000  # of the training images
  c.probe.test_count = 2000  # of the split
  c.probe.split = ''  # of the data, not trained on; scenes: another seed
  return c
