"""Job `attentive`: attentive probes on the tokens of a frozen encoder.

What an average pool loses a learned query may still read. The tokens of a large
data set take terabytes, so that by default they are computed anew each epoch,
of images that are cropped anew; those of a small one may be held in memory. The
probes are saved after every epoch, and the same command goes on from there.
"""

import functools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data import loader
from ijepa_jax.errors import UserError
from ijepa_jax.evals import linear
from ijepa_jax.evals.evaluation import Evaluation, report
from ijepa_jax.probes import head_sweep, labels, train_heads
from ijepa_jax.runtime import files, locks, sharding

VERSION = 1  # raise it if the same settings train other probes
MAX_BATCH = 1024  # of AdamW; the linear sweep's LARS has larger ones
MAX_HEADS = 12  # of the attention: V-JEPA's number


def run(config, workdir: str) -> dict:
  """Trains all probes and reports the best.

  Args:
    config: see configs/evals/attentive.py.
    workdir: see `Evaluation.from_config`.

  Raises:
    UserError: a mistake in the config, the checkpoint or the images, or all
      probes have diverged.
  """
  evaluation = Evaluation.from_config(config, workdir)
  files.check_checkpoints(evaluation.workdir)
  sweep, folder = _make_sweep(config, evaluation)
  test, column = evaluation.test, evaluation.column
  # Else they would be read after the training alone.
  labels.check(labels.read(test, column), 'test', evaluation.classes)

  def encode(params, image_BHWC):
    return {'tokens': evaluation.frozen.encode(params, image_BHWC)}

  with locks.only_writer(folder, wait=True, job=True):
    cached = None
    if not config.attentive.augment:
      cached = _in_memory(config, evaluation, encode)
    state = linear.train(config, evaluation, sweep, folder, encode, cached)
  scores = train_heads.judge(
    sweep,
    state,
    _batches(config, evaluation, 'test', encode),
    len(test),
    evaluation.mesh,
  )
  result = head_sweep.report(sweep, scores)
  accuracy = {'attentive': result['best']['accuracy']}
  return report(config, evaluation, accuracy, result)


def _make_sweep(config, evaluation):
  """-> the sweep, and the folder of its probes, see `linear.folder_of`."""
  c, task, frozen = config.attentive, evaluation.task, evaluation.frozen
  tokens = _tokens_of_one(evaluation)
  width = tokens.shape[-1]
  heads = max(n for n in range(1, MAX_HEADS + 1) if width % n == 0)
  # V-JEPA's cosine without a warm-up.
  rates = dict(lrs=tuple(c.lrs), weight_decays=tuple(c.weight_decays))
  protocol = head_sweep.Protocol('attentive', 'adamw', **rates, final=0.0)
  sizes = dict(
    classes=evaluation.classes,
    examples=len(evaluation.train),
    batch_size=c.batch_size or min(task.batch_size, MAX_BATCH),
    epochs=c.epochs,
    attention_heads=c.heads or heads,
  )
  name = files.name_of(
    kind='attentive heads',
    version=VERSION,
    trained_on=evaluation.depends_on,
    tokens=list(tokens.shape),
    transform=repr(task.transforms(frozen.image_size)[0 if c.augment else 1]),
    anew=bool(c.augment),
    course={**rates, **sizes},
    seed=config.seed,
  )
  sweep = head_sweep.AttentiveSweep(protocol, {'tokens': width}, **sizes)
  return sweep, linear.folder_of(evaluation, sweep, name)


def _tokens_of_one(evaluation) -> jax.ShapeDtypeStruct:
  """Returns the shape [1, N, D] of the tokens of an image."""
  frozen = evaluation.frozen
  image = jnp.zeros((1, *frozen.image_size, frozen.channels), jnp.uint8)
  return jax.eval_shape(frozen.encode, frozen.params, image)


def _batches(
  config, evaluation, split: str, encode, replicated: bool = False
) -> Iterator[tuple[dict, jax.Array]]:
  """Yields inputs and labels of all images of a split, in order.

  Args:
    split: 'training' or 'test'.
    replicated: every device gets all rows; else they are split over them.
  """
  mesh, frozen = evaluation.mesh, evaluation.frozen
  source = evaluation.test if split == 'test' else evaluation.train
  size = -(-config.batch_size // mesh.size) * mesh.size
  dataset = loader.local_batches(
    source,
    transform=evaluation.task.transforms(frozen.image_size)[1],
    batch_size=size,
    channels=frozen.channels,
    one_pass=True,
    workers=config.data.workers,
    max_bad_share=0.0,  # the accuracy would be of other images
  ).map(labels.CheckBatch(evaluation.column, split, evaluation.classes))
  rows = sharding.replicated if replicated else sharding.batch_sharding

  @functools.partial(jax.jit, out_shardings=rows(mesh))
  def run(params, batch, start):
    # Rows beyond the last image are padding.
    known_B = start + jnp.arange(size) < len(source)
    labels_B = jnp.where(known_B, batch['label'][:, evaluation.column], -1)
    return encode(params, batch['image']), labels_B

  with loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    for k, batch in enumerate(batches):
      yield run(frozen.params, batch, jnp.int32(k * size))


def _in_memory(config, evaluation, encode) -> tuple[dict, np.ndarray]:
  """Returns the inputs of all training images, and their labels.

  Raises:
    UserError: they take more than half of this machine's memory.
  """
  n, (_, *token_shape) = len(evaluation.train), _tokens_of_one(evaluation).shape
  need, have = 4 * n * int(np.prod(token_shape)), _memory()
  if need > have / 2:
    raise UserError(
      f'The tokens of {n} images are {need / 2**30:.1f} GiB and this machine '
      f'has {have / 2**30:.1f}: set attentive.augment=True, which computes '
      'them anew each epoch.'
    )
  tokens = np.empty((n, *token_shape), np.float32)
  labels_N = np.empty(n, np.int32)
  start = 0
  for inputs, labels_B in _batches(
    config, evaluation, 'training', encode, replicated=True
  ):
    rows = slice(start, min(start + len(labels_B), n))
    tokens[rows] = np.asarray(inputs['tokens'])[: n - start]
    labels_N[rows] = np.asarray(labels_B)[: n - start]
    start = rows.stop
  return {'tokens': tokens}, labels_N


def _memory() -> int:
  """Returns the bytes of this machine's memory."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
