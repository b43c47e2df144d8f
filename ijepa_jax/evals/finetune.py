"""Fine-tuning as a job: the encoder and a linear head on its average pool.

AdamW with layer decay, warm-up and cosine, RandAugment, mixup, cutmix, label
smoothing and drop path: the paper's 1% and full recipes are configs of it.
"""

import dataclasses
import functools

import jax
import numpy as np
from absl import logging

from ijepa_jax.data import loader
from ijepa_jax.data.transforms import crop, randaugment
from ijepa_jax.errors import UserError
from ijepa_jax.evals import evaluation
from ijepa_jax.evals.advice import default_task
from ijepa_jax.evals.classifier import Classifier
from ijepa_jax.methods.optim import adamw, schedules
from ijepa_jax.probes import labels
from ijepa_jax.runtime import files, locks, metrics, preemption, sharding
from ijepa_jax.runtime.checkpoint import checkpointer
from ijepa_jax.runtime.config import write_config
from ijepa_jax.runtime.config_checks import check_section
from ijepa_jax.runtime.timing import starts
from ijepa_jax.train import compile, loop
from ijepa_jax.train.run import Run


def run_name(config, depends_on: dict) -> str:
  """A folder name that runs of a sweep do not share.

  Args:
    config: of the job; all that changes the trained network counts.
    depends_on: see evaluation.Evaluation.
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
  with preemption.watch() as watched, starts.this_start() as this_start:
    return _run(config, workdir, watched, this_start)


def _run(config, workdir, watched, this_start) -> dict:
  config = default_task.complete(config)
  bench = evaluation.Evaluation.from_config(config, workdir)
  name = sharding.of_first(run_name(config, bench.depends_on))
  folder = bench.workdir / name
  files.check_checkpoints(folder)
  training = make_run(config, bench)
  dataset = _dataset(config, bench)
  # Else they would be read after the training alone.
  labels.check(labels.read(bench.test, bench.column), 'test', bench.classes)
  checkpoints = checkpointer.Checkpointer(
    folder / 'checkpoints',
    every_steps=config.finetune.checkpoint_steps,
    keep_last=1,
  )
  abstract, make_state = compile.abstract_state(
    training, training.method.with_head, bench.frozen.params
  )
  first_process = jax.process_index() == 0
  with (
    watched.together(),
    locks.only_writer(folder, wait=True, job=True),
    checkpoints,
  ):
    state, start = checkpoints.restore(abstract) or (
      make_state(bench.frozen.params),
      0,
    )
    if start:
      logging.info('Going on from step %d of %s.', start, folder)
    if first_process:
      for change in write_config(folder, config.to_json_best_effort()):
        logging.warning('Not as in the run so far: %s.', change)
      if start < training.total_steps:
        this_start.keep_in(folder)
    with metrics.MetricWriter(
      folder, start_step=start, enabled=first_process
    ) as writer:
      state = loop.train(
        *(training, state, abstract, dataset(start)),
        *(checkpoints, writer, watched),
      )
  watched.check()  # after the last step too: it is not judged yet
  with this_start.clock.part('evaluate'):
    accuracy = _accuracy(config, bench, training.method, state.params)
  details = {'steps': training.total_steps, 'run': name}
  return evaluation.report(config, bench, {'finetune': accuracy}, details)


def make_run(config, bench) -> Run:
  """Makes everything static of a fine-tuning.

  Args:
    config: of the job.
    bench: evaluation.Evaluation.

  Raises:
    UserError: one sentence with the value, the limit and what to do.
  """
  c, frozen, mesh = config.finetune, bench.frozen, bench.mesh
  n = len(bench.train)
  if config.which == 'pixels':
    raise UserError('which is pixels: fine-tuning needs an encoder.')
  check_section(c, 'finetune', {'warmup_epochs': (0, c.epochs)})
  if c.batch_size % mesh.size or not 1 <= c.batch_size <= n:
    raise UserError(
      f'finetune.batch_size is {c.batch_size}: take a multiple of the '
      f'{mesh.size} devices, up to the {n} training images.'
    )
  method = Classifier(
    dataclasses.replace(frozen, params={}),
    len(bench.train.labels),
    bench.column,
    bench.classes,
    **{k: c[k] for k in ('smoothing', 'mixup', 'cutmix', 'drop_path')},
  )
  epoch = n // c.batch_size
  lr = schedules.warmup_cosine(
    0.0, c.lr, c.final_lr, c.warmup_epochs * epoch, c.epochs * epoch
  )
  params = jax.eval_shape(method.with_head, frozen.params)
  scales = adamw.layer_scales(params, frozen.encoder.depth, c.layer_decay)
  return Run(
    method=method,
    tx=adamw.adamw_by_layer(lr, c.weight_decay, scales),
    schedules={'lr': lr},
    mesh=mesh,
    image_shape=(*frozen.image_size, frozen.channels),
    batch_size=c.batch_size,
    total_steps=c.epochs * epoch,
    seed=config.seed,
    advice='try a lower finetune.lr or a longer finetune.warmup_epochs.',
  )


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
    answers = [np.asarray(right(params, batch)) for batch in batches]
  return float(np.concatenate(answers)[: len(bench.test)].mean())
