"""Invariance, generation and prediction at equal cost, on one trainer.

    python benchmarks/compare.py --data=scenes [--seeds=3] [--budget=300]
    python benchmarks/compare.py --data=crowd
    python benchmarks/compare.py --data=cifar10 --path=data/cifar10

Every method is trained for --budget seconds by the cost of its step, which is
measured first, all methods side by side (method_costs.py), or, with
--equal=flops, for the operations of I-JEPA's budget. Each has a schedule of its
own length and the settings of comparison_settings.py. Checkpoints on the way
are judged alike: multinomial logistic regression on the average pool, its
penalty chosen on held-out training images; kNN, best of its ks; the last also
by an attentive probe. The untrained encoder and raw pixels stand beside them.

Writes <workdir>/<data>/costs.json, table.md and figure.png after each seed, and
a run's accuracies in <method>/<seed>/accuracies.json. A stopped command goes on
where it was.

    python benchmarks/compare.py --data=scenes --search

tries each method's TRIALS, equally many, for a share of the budget's seconds
each and with seed 1000, and prints what they come to on held-out training
images, by which SETTINGS are chosen: by no test image.

Several processes, such as one pinned to each core, share a comparison or a
search: --methods= with no name measures the costs, then each process has its
own --methods=ijepa,mae, and at last the whole command makes the table.
"""

import dataclasses
import importlib
import json
import pathlib
import statistics
import sys

import jax
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks import comparison_figure, judges, method_costs
from benchmarks.comparison_settings import (
  BATCH,
  DATA,
  METHODS,
  SETTINGS,
  TRIALS,
  changes_of,
)
from ijepa_jax.errors import UserError, one_of
from ijepa_jax.runtime import cli, preemption
from ijepa_jax.train import loop, pretrain


@dataclasses.dataclass(frozen=True)
class Comparison:
  """All methods on one data set, and where their runs are kept.

  Attributes:
    data: a key of DATA.
    folder: of the runs.
    path: of a folder of images, where the data set is one.
    budget: seconds of each training.
    equal: 'seconds' or 'flops', of all methods.
    points: checkpoints that are judged.
    attentive: whether the last ones are judged by attentive probes too.
    methods: that are trained; without any, only what a step costs is measured.
    turns: arguments of method_costs.seconds.
  """

  data: str
  folder: pathlib.Path
  path: str = ''
  budget: float = 300.0
  equal: str = 'seconds'
  points: int = 4
  attentive: bool = True
  methods: tuple[str, ...] = METHODS
  turns: tuple[tuple[str, int], ...] = ()

  @property
  def whole(self) -> bool:
    """Whether this process has all methods, and so makes the tables."""
    return set(self.methods) == set(METHODS)

  @property
  def tasks(self) -> dict[str, str]:
    return DATA[self.data].tasks

  @property
  def judges(self) -> tuple[str, ...]:
    """Of the last checkpoints."""
    return tuple(judges.JUDGES) if self.attentive else judges.POOLED

  def recipe(self):
    """The config that all methods share."""
    data = DATA[self.data]
    c = importlib.import_module(f'configs.{data.recipe}').get_config()
    if c.data.source == 'folder':
      c.data.path = self.path
    c.update_from_flattened_dict(data.changes)
    # What looks at a run costs time of its own.
    c.probe.every_steps = c.health.every_steps = 0
    c.log.tensorboard = False
    return c

  def config(self, method: str, changes: dict, steps=None, seed=0):
    """Of a training; `steps` None: as many as the recipe has."""
    c = self.recipe()
    c.method, c.seed = method, seed
    c.update_from_flattened_dict(changes)
    c.total_steps = steps or c.total_steps
    c.optim.start_lr = c.optim.peak_lr / 10
    c.optim.warmup_steps = c.total_steps // 20
    every = max(1, c.total_steps // self.points)
    c.checkpoint.every_steps = c.checkpoint.keep_every = every
    return c

  def costs(self, configs: dict, measure) -> dict[str, dict[str, float]]:
    """Of a step of each config; measured once, so that all runs agree.

    Args:
      configs: name -> config of a training.
      measure: what measures them, see method_costs.py.

    Raises:
      UserError: the runs in the folder are of others, or nothing is measured
        yet and this is one of several processes.
    """
    path = self.folder / 'costs.json'
    now = {k: json.loads(c.to_json_best_effort()) for k, c in configs.items()}
    now |= {'--budget': self.budget, '--equal': self.equal}
    before = judges.remember(path, 'configs', lambda: now)
    if before != now:
      other = [k for k in now | before if now.get(k) != before.get(k)]
      raise UserError(
        f'The runs in {self.folder} were of another {", ".join(other)}: take '
        'another --workdir.'
      )
    known = 'costs' in json.loads(path.read_text())
    if not known and self.methods and not self.whole:
      raise UserError(
        'What a step costs is not measured yet, and would be by each process '
        'beside the others: start once with --methods= and no name.'
      )
    return judges.remember(path, 'costs', measure, configs, **dict(self.turns))

  def steps(self, costs: dict) -> dict[str, int]:
    """Of each method, for the budget: a multiple of the points."""
    kind, budget = self.equal, self.budget
    if kind == 'flops':
      budget *= costs['ijepa']['flops'] / costs['ijepa']['seconds']
    steps = {k: budget / cost[kind] for k, cost in costs.items()}
    points = self.points
    return {k: points * max(1, round(n / points)) for k, n in steps.items()}

  def run(self, seeds: int) -> str:
    """Trains and judges; of all methods writes the table and the figure."""
    settings = SETTINGS[self.data]
    configs = {m: self.config(m, settings[m]) for m in METHODS}
    costs = self.costs(configs, method_costs.measure)
    steps = self.steps(costs)
    results = {method: [] for method in self.methods}
    levels, text = {'raw pixels': [], 'untrained': []}, ''
    for seed in range(seeds):
      for method in self.methods:
        run = self.folder / method / str(seed)
        config = self.config(method, settings[method], steps[method], seed)
        results[method].append(self._train_and_judge(run, config))
      if not self.whole:
        continue
      run = self.folder / 'ijepa' / str(seed)
      if not seed:
        levels['raw pixels'].append(self._level(run, 'pixels'))
      # All methods of a seed begin with the same encoder.
      levels['untrained'].append(self._level(run, 'untrained'))
      text = comparison_figure.table(results, levels, costs)
      (self.folder / 'table.md').write_text(text + '\n')
      comparison_figure.draw(results, levels, costs, self.folder / 'figure.png')
    return text

  def _train_and_judge(self, run: pathlib.Path, config) -> dict[int, dict]:
    """{step: accuracies} of its checkpoints; does what is not done yet."""
    path, every = run / 'accuracies.json', config.checkpoint.every_steps
    last = config.total_steps
    known = json.loads(path.read_text()) if path.exists() else {}
    if str(last) not in known:
      pretrain.run(config, run)
      jax.clear_caches()
    return {
      step: judges.remember(
        *(path, str(step), judges.judge, run, self.tasks),
        path=self.path,
        step=step,
        names=self.judges if step == last else judges.POOLED,
      )
      for step in range(every, last + 1, every)
    }

  def _level(self, run: pathlib.Path, which: str) -> dict[str, float]:
    """What an encoder of the run, or its pixels, have without training."""
    return judges.remember(
      *(run / 'levels.json', which, judges.judge, run, self.tasks),
      path=self.path,
      which=which,
      names=self.judges,
    )

  def search(self, share: float) -> str:
    """Tries all TRIALS for a share of the budget's seconds; returns a table of
    accuracies in %, of training images that were held out."""
    trials, configs, recipe = {}, {}, self.recipe()
    for method, several in TRIALS.items():
      for trial in several:
        changes = changes_of(trial, recipe)
        name = ','.join(f'{knob}={x:g}' for knob, x in changes.items())
        # Nothing else that is tried changes what a step costs, and two
        # measurements of the same differ by a tenth and more.
        batch = changes.get(BATCH, recipe.batch_size)
        cost = f'{method} {batch}'
        configs[cost] = self.config(method, {BATCH: batch})
        trials[method, name] = changes, cost
    costs = self.costs(configs, method_costs.seconds)
    lines = [f'| method | settings | {" | ".join(self.tasks)} | mean |']
    lines.append('|---' * (3 + len(self.tasks)) + '|')
    for (method, name), (changes, cost) in trials.items():
      if method not in self.methods:
        continue
      steps = round(share * self.budget / costs[cost])
      config = self.config(method, changes, steps, seed=1000)
      # Of another length it is another run.
      run = self.folder / method / f'{name},total_steps={steps}'
      scores = judges.remember(
        *(run / 'accuracies.json', 'last', self._try, run, config)
      )
      cells = [f'{100 * x:.1f}' for x in (*scores, statistics.mean(scores))]
      lines.append(f'| {method} | {name} | {" | ".join(cells)} |')
      if self.whole:
        (self.folder / 'search.md').write_text('\n'.join(lines) + '\n')
    return '\n'.join(lines)

  def _try(self, run: pathlib.Path, config) -> list[float]:
    """Accuracies of the held-out training images, task by task."""
    try:
      pretrain.run(config, run)
    except loop.NotFinite as error:
      logging.error('%s: %s', run, error)
      return [0.0] * len(self.tasks)
    finally:
      jax.clear_caches()
    found = judges.judge(run, self.tasks, path=self.path, names=('linear',))
    return [found[f'{title} {judges.HELD_OUT}'] for title in self.tasks]


@cli.one_sentence()
def main(_):
  name = one_of('data', FLAGS.data, DATA)
  comparison = Comparison(
    name,
    pathlib.Path(FLAGS.workdir) / (f'{name}-search' if FLAGS.search else name),
    path=FLAGS.path if name == 'cifar10' else '',
    budget=FLAGS.budget,
    equal=FLAGS.equal,
    points=FLAGS.points,
    attentive=FLAGS.attentive,
    methods=tuple(one_of('method', m, METHODS) for m in FLAGS.methods),
  )
  run, value = comparison.run, FLAGS.seeds
  if FLAGS.search:
    run, value = comparison.search, FLAGS.share
  print(f'\n{run(value)}\n\n{comparison.folder}')


if __name__ == '__main__':
  FLAGS = flags.FLAGS
  flags.DEFINE_string('data', 'scenes', 'scenes, crowd or cifar10.')
  flags.DEFINE_string('path', 'data/cifar10', 'Of the images of cifar10.')
  flags.DEFINE_float('budget', 300, 'Seconds of each training.')
  flags.DEFINE_enum('equal', 'seconds', ['seconds', 'flops'], 'Of all methods.')
  flags.DEFINE_integer('seeds', 3, 'Of each method.')
  flags.DEFINE_integer('points', 4, 'Checkpoints that are judged.')
  flags.DEFINE_list('methods', list(METHODS), 'To train; none: measure.')
  flags.DEFINE_bool('attentive', True, 'Attentive probes of the last ones.')
  flags.DEFINE_bool('search', False, "Try each method's TRIALS instead.")
  flags.DEFINE_float('share', 0.25, 'Of the budget, for each trial.')
  flags.DEFINE_string('workdir', 'runs/compare', 'Folder of the runs.')
  logging.set_verbosity(logging.INFO)
  with preemption.job():
    app.run(main)
