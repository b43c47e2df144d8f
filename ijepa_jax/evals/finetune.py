"""Fine-tuning as a job: the encoder and a linear head on its average pool.

AdamW with layer decay, warm-up and cosine, RandAugment, mixup, cutmix, label
smoothing and drop path: the paper's 1% and full recipes are configs of it.
"""

import dataclasses
import functools
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from ijepa_jax.data import loader
from ijepa_jax.data.transforms import crop, randaugment
from ijepa_jax.data.transforms.mixup import mix
from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation
from ijepa_jax.methods import optim, schedules
from ijepa_jax.probes import labels
from ijepa_jax.runtime import files, locks, metrics, preemption, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.runtime.config_checks import check_section
from ijepa_jax.runtime.progress import Progress, Throughput
from ijepa_jax.train import monitors

_MEND = 'try a lower finetune.lr or a longer finetune.warmup_epochs.'


@flax.struct.dataclass
class State:
  """All that a step changes; params are {'encoder', 'head'}."""

  step: jax.Array
  params: dict
  opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Classifier:
  """The static part of fine-tuning; see configs/evals/finetune_full.py."""

  frozen: object  # interop.load.Frozen, whose parameters are the start
  classes: int
  smoothing: float
  mixup: float
  cutmix: float
  drop_path: float

  def logits(self, params, image_BHWC, **kwargs) -> jax.Array:
    """float32 [B, classes] of normalised images."""
    tokens = self.frozen.encode(params['encoder'], image_BHWC, **kwargs)
    head = params['head']
    return tokens.mean(1) @ head['kernel'] + head['bias']

  def loss(self, params, batch, labels_B, key) -> jax.Array:
    key_mix, key_drop = jax.random.split(key)
    image = self.frozen.normalize(batch['image'])
    target = labels.soft_labels(labels_B, self.classes, self.smoothing)
    image, target = mix(
      key_mix, image, target, mixup=self.mixup, cutmix=self.cutmix
    )
    logits = self.logits(
      params, image, drop_path=self.drop_path, rngs={'drop_path': key_drop}
    )
    return optax.losses.softmax_cross_entropy(logits, target).mean()


def run_name(config, depends_on: dict) -> str:
  """Another name for whatever trains another network.

  Args:
    depends_on: see evaluation.Evaluation; a sweep must not find its first run
      finished.
  """
  c = {k: v for k, v in config.finetune.items() if k != 'checkpoint_steps'}
  name = files.name_of(
    kind='finetune', trained_on=depends_on, course=c, seed=config.seed
  )
  return f'{config.task}-finetune-{name}'


def run(config, workdir: str) -> dict:
  """Trains on the task's training images and is judged on its test images.

  Checkpoints and metrics.jsonl lie in <workdir>/<`run_name`>; the same command
  goes on from them.

  Raises:
    Stopped: SIGTERM or Ctrl-C came before the last step; what was trained is
      saved.
  """
  with preemption.watch() as watched:
    return _run(config, workdir, watched)


def _run(config, workdir, watched) -> dict:
  c = config.finetune
  bench = evaluation.Evaluation.from_config(config, workdir)
  name = sharding.of_first(run_name(config, bench.depends_on))
  folder = bench.workdir / name
  n, mesh = len(bench.train), bench.mesh
  files.check_checkpoints(folder)
  if config.which == 'pixels':
    raise UserError('which is pixels: fine-tuning needs an encoder.')
  check_section(c, 'finetune', {'warmup_epochs': (0, c.epochs)})
  if c.batch_size % mesh.size or not 1 <= c.batch_size <= n:
    raise UserError(
      f'finetune.batch_size is {c.batch_size}: take a multiple of the '
      f'{mesh.size} devices, up to the {n} training images.'
    )
  steps = c.epochs * (n // c.batch_size)
  warmup = c.warmup_epochs * (n // c.batch_size)
  dataset = _dataset(config, bench)
  # Else they would be read after the training alone.
  labels.check(labels.read(bench.test, bench.column), 'test', bench.classes)
  checkpoints = checkpointer.Checkpointer(
    folder / 'checkpoints', every_steps=c.checkpoint_steps, keep_last=1
  )
  model = Classifier(
    bench.frozen, bench.classes, c.smoothing, c.mixup, c.cutmix, c.drop_path
  )
  width = bench.frozen.encoder.width
  params = {
    'encoder': bench.frozen.params,
    'head': {
      'kernel': jnp.zeros((width, bench.classes), jnp.float32),
      'bias': jnp.zeros(bench.classes, jnp.float32),
    },
  }
  lr = schedules.warmup_cosine(0.0, c.lr, c.final_lr, warmup, steps)
  scales = optim.layer_scales(params, bench.frozen.encoder.depth, c.layer_decay)
  tx = optim.adamw_by_layer(lr, c.weight_decay, scales)

  def init(params):
    # A copy: the first step takes its buffers over.
    params = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))

  abstract = sharding.with_shardings(jax.eval_shape(init, params), mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    labels_B = batch['label'][:, bench.column]
    loss, grad = jax.value_and_grad(model.loss)(
      state.params, batch, labels_B, key
    )
    updates, opt_state = tx.update(grad, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    values = {'loss': loss, 'grad_norm': optax.tree.norm(grad)}
    return State(state.step + 1, params, opt_state), values

  with (
    watched.together(),
    locks.only_writer(folder, wait=True, job=True),
    checkpoints,
  ):
    restored = checkpoints.restore(abstract)
    state, start = restored or (
      jax.jit(init, out_shardings=shardings)(params),
      0,
    )
    if start:
      logging.info('Going on from step %d of %s.', start, folder)
    if jax.process_index() == 0:
      changes = write_config(folder, config.to_json_best_effort())
      for change in changes:
        logging.warning('Not as in the run so far: %s.', change)
    if start < steps:
      train_step = _compile(train_step, abstract, bench, c.batch_size)
    with metrics.MetricWriter(
      folder, start_step=start, enabled=jax.process_index() == 0
    ) as writer:
      state = _loop(
        config,
        mesh,
        dataset(start),
        train_step,
        state,
        steps,
        checkpoints,
        writer,
        lr,
        watched,
      )
  if int(state.step) < steps:
    logging.info('Stopped at step %d of %d.', int(state.step), steps)
  watched.check()  # after the last step too: it is not judged yet
  accuracy = _accuracy(config, bench, model, state.params)
  details = {'steps': steps, 'run': name}
  return evaluation.report(config, bench, {'finetune': accuracy}, details)


def _dataset(config, bench):
  """step -> the endless batches of training images from there."""
  c, frozen = config.finetune, bench.frozen
  transform = crop.RandomResizedCrop(
    frozen.image_size,
    scale=tuple(c.crop_scale),
    flip=c.flip,
    resample='bicubic',
  )
  if c.randaugment:
    if frozen.channels != 3:
      raise UserError(
        f'The encoder takes {frozen.channels} channels and RandAugment is for '
        '3: set finetune.randaugment=0.'
      )
    transform = randaugment.RandAugment(
      transform,
      magnitude=c.randaugment,
      fill=tuple(round(255 * x) for x in frozen.mean),
    )

  def make(start):
    dataset = loader.local_batches(
      bench.train,
      transform=transform,
      batch_size=c.batch_size,
      seed=config.seed,
      channels=frozen.channels,
      start=start,
      workers=config.data.workers,
    )
    return dataset.map(
      labels.CheckBatch(bench.column, 'training', bench.classes)
    )

  make(0)  # refuses before anything is compiled
  return make


def _compile(train_step, abstract, bench, batch_size: int):
  """The step, ready: the first one takes no longer than the others."""
  began = time.monotonic()
  split = sharding.batch_sharding(bench.mesh)
  image = batch_size, *bench.frozen.image_size, bench.frozen.channels
  batch = {
    'image': jax.ShapeDtypeStruct(image, jnp.uint8, sharding=split),
    'label': jax.ShapeDtypeStruct(
      (batch_size, len(bench.train.labels)), jnp.int32, sharding=split
    ),
  }
  compiled = train_step.lower(abstract, batch).compile()
  logging.info('Compiled the step in %.0f s.', time.monotonic() - began)
  return compiled


def _loop(
  config,
  mesh,
  dataset,
  train_step,
  state,
  steps,
  checkpoints,
  writer,
  lr,
  watched,
):
  start = int(state.step)
  progress = Progress(steps, start, enabled=jax.process_index() == 0)

  def record(step, values):
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    meter.step()
    values |= {'lr': float(lr(step)), **meter.rates()}
    writer.write(step, values)
    # Of the gradient too: it may spoil the state that is saved next.
    if not np.isfinite((values['loss'], values['grad_norm'])).all():
      raise monitors.NotFinite(
        f'At step {step} the loss is {values["loss"]} and the gradient norm '
        f'{values["grad_norm"]}; the last good checkpoint is '
        f'{max(checkpoints.steps(), default="none")}: {_MEND}'
      )
    progress.update(step, values)

  def save(step):
    try:
      checkpoints.save(step, state)
    except checkpointer.NotFinite as error:
      raise monitors.NotFinite(f'{error} To go on: {_MEND}') from error

  def keep():
    if pending:
      record(*pending)
    if step := monitors.unsaved(checkpoints, state, start):
      save(step)

  # The step before is recorded while this one runs.
  pending = None
  watched.check()
  watched.keep()
  with (
    progress,
    loader.device_batches(dataset, mesh, 'image', 'label') as batches,
    monitors.keeping(keep),
  ):
    meter = Throughput(config.finetune.batch_size)
    for step in range(start + 1, steps + 1):
      with meter.waiting():
        batch = next(batches)
      state, values = train_step(state, batch)
      if pending:
        before, pending = pending, None
        record(*before)
      stop = watched.requested() or step == steps
      if not stop and not checkpoints.should_save(step):
        pending = step, values
        continue
      record(step, values)
      with meter.pausing():
        save(step)
      if stop:
        break
  return state


def _accuracy(config, bench, model, params) -> float:
  """Of the test images, each looked at once."""
  mesh = bench.mesh
  size = -(-config.batch_size // mesh.size) * mesh.size
  dataset = loader.local_batches(
    bench.test,
    transform=bench.task.transforms(bench.frozen.image_size)[1],
    batch_size=size,
    channels=bench.frozen.channels,
    one_pass=True,
    workers=config.data.workers,
    max_bad_share=0.0,
  ).map(labels.CheckBatch(bench.column, 'test', bench.classes))

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def right(params, batch):
    image = model.frozen.normalize(batch['image'])
    logits = model.logits(params, image)
    return labels.is_correct(logits, batch['label'][:, bench.column])

  with loader.device_batches(dataset, mesh, 'image', 'label') as batches:
    found = [np.asarray(right(params, batch)) for batch in batches]
  return float(np.concatenate(found)[: len(bench.test)].mean())
