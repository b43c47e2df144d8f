"""Job `attentive`: attentive probes on the tokens of a frozen encoder.

What an average pool loses a learned query may still read. The tokens of a large
data set take terabytes, so that by default they are computed anew each epoch,
of images that are cropped anew; those of a small one may be kept on disk. The
probes are saved after an epoch, at most once a minute, and the same command
goes on from there.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data import loader
from ijepa_jax.evals import linear
from ijepa_jax.evals.advice import default_task, doubts
from ijepa_jax.evals.evaluation import Evaluation, report
from ijepa_jax.pretrained import stored_arrays
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
  config = default_task.complete(config)
  evaluation = Evaluation.from_config(config, workdir)
  files.check_checkpoints(evaluation.workdir)
  sweep = make_sweep(config, evaluation)
  folder = _folder(config, evaluation, sweep)
  test, column = evaluation.test, evaluation.column
  # Else they would be read after the training alone.
  labels.check(labels.read(test, column), 'test', evaluation.classes)

  encode = make_encode(evaluation.frozen)
  cached = None
  if not config.attentive.augment:
    cached = _stored(config, evaluation, encode)
  with locks.only_writer(folder, wait=True, job=True):
    state = linear.train(config, evaluation, sweep, folder, encode, cached)
  scores = train_heads.judge(
    sweep,
    state,
    _test_batches(config, evaluation, encode),
    len(test),
    evaluation.mesh,
  )
  result = head_sweep.report(sweep, scores)
  result['advice'] = doubts.of_sweep(sweep, result)
  accuracy = {'attentive': result['best']['accuracy']}
  return report(config, evaluation, accuracy, result)


def make_encode(frozen):
  """Returns (params, image uint8 [B, H, W, C]) -> the sweep's inputs."""

  def encode(params, image_BHWC):
    return {'tokens': frozen.encode(params, image_BHWC)}

  return encode


def make_sweep(config, evaluation) -> head_sweep.AttentiveSweep:
  """Returns the probes that the job trains."""
  rates, sizes = _course(config, evaluation)
  width = _tokens_of_one(evaluation).shape[-1]
  # V-JEPA's cosine without a warm-up.
  protocol = head_sweep.Protocol('attentive', 'adamw', **rates, final=0.0)
  return head_sweep.AttentiveSweep(protocol, {'tokens': width}, **sizes)


def _course(config, evaluation) -> tuple[dict, dict]:
  """Returns the rates and the sizes of the probes."""
  c = config.attentive
  tokens = _tokens_of_one(evaluation)
  width = tokens.shape[-1]
  heads = max(n for n in range(1, MAX_HEADS + 1) if width % n == 0)
  rates = dict(lrs=tuple(c.lrs), weight_decays=tuple(c.weight_decays))
  sizes = dict(
    classes=evaluation.classes,
    examples=len(evaluation.train),
    batch_size=c.batch_size or linear.default_batch_size(evaluation, MAX_BATCH),
    epochs=c.epochs,
    attention_heads=c.heads or heads,
  )
  return rates, sizes


def _folder(config, evaluation, sweep):
  """Returns the folder of the probes, see `linear.folder_of`."""
  c, task, frozen = config.attentive, evaluation.task, evaluation.frozen
  rates, sizes = _course(config, evaluation)
  name = files.name_of(
    kind='attentive heads',
    version=VERSION,
    trained_on=evaluation.depends_on,
    tokens=list(_tokens_of_one(evaluation).shape),
    transform=repr(task.transforms(frozen.image_size)[0 if c.augment else 1]),
    anew=bool(c.augment),
    course={**rates, **sizes},
    seed=config.seed,
  )
  return linear.folder_of(evaluation, sweep, name)


def _tokens_of_one(evaluation) -> jax.ShapeDtypeStruct:
  """Returns the shape [1, N, D] of the tokens of an image."""
  frozen = evaluation.frozen
  image = jnp.zeros((1, *frozen.image_size, frozen.channels), jnp.uint8)
  return jax.eval_shape(frozen.encode, frozen.params, image)


def _one_pass(config, evaluation, source, size: int, start: int = 0):
  """The batches of `size` images of a source, in its order, from `start` on."""
  frozen = evaluation.frozen
  return loader.local_batches(
    source,
    transform=evaluation.task.transforms(frozen.image_size)[1],
    batch_size=size,
    channels=frozen.channels,
    one_pass=True,
    start=start,
    workers=config.data.workers,
    max_bad_share=0.0,  # the accuracy would be of other images
  )


def _batch_size(config, mesh) -> int:
  return -(-config.batch_size // mesh.size) * mesh.size


def _test_batches(config, evaluation, encode) -> Iterator[tuple]:
  """Yields inputs and labels, split over all devices; -1 labels padding."""
  mesh, source = evaluation.mesh, evaluation.test
  size = _batch_size(config, mesh)
  dataset = _one_pass(config, evaluation, source, size).map(
    labels.CheckBatch(evaluation.column, 'test', evaluation.classes)
  )

  @functools.partial(jax.jit, out_shardings=sharding.batch_sharding(mesh))
  def run(params, batch, start):
    is_image_B = start + jnp.arange(size) < len(source)
    labels_B = jnp.where(is_image_B, batch['label'][:, evaluation.column], -1)
    return encode(params, batch['image']), labels_B

  with loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    for k, batch in enumerate(batches):
      yield run(evaluation.frozen.params, batch, jnp.int32(k * size))


def _stored(config, evaluation, encode) -> tuple[dict, np.ndarray]:
  """Returns the tokens of all training images, on disk, and their labels.

  Raises:
    UserError: the disk is too small for them, or an image can't be read.
  """
  frozen, source, mesh = evaluation.frozen, evaluation.train, evaluation.mesh
  cache_dir = config.cache_dir or evaluation.workdir / 'features'
  shape = len(source), *_tokens_of_one(evaluation).shape[1:]
  key = files.name_of(
    kind='tokens',
    version=VERSION,
    encoder=[frozen.fingerprint, frozen.channels],
    images=source.identity,
    transform=repr(evaluation.task.transforms(frozen.image_size)[1]),
    shape=list(shape),
  )
  store = stored_arrays.StoredArrays(
    cache_dir,
    sharding.of_first(key),
    {
      'tokens': jax.ShapeDtypeStruct(shape, np.float32),
      'labels': jax.ShapeDtypeStruct(
        (len(source), len(source.labels)), np.int32
      ),
    },
  )
  size = _batch_size(config, mesh)
  store.compute(
    lambda params, batch: (
      encode(params, batch['image']) | {'labels': batch['label']}
    ),
    frozen.params,
    functools.partial(_one_pass, config, evaluation, source, size),
    mesh=mesh,
    keys=('image', 'label'),
    batch_size=size,
    title='tokens',
    advice=(
      'set attentive.augment=True, which computes them anew each epoch, or '
      'cache_dir'
    ),
  )
  arrays = store.read()
  return {'tokens': arrays['tokens']}, arrays['labels'][:, evaluation.column]
