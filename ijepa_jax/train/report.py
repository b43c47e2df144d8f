"""The report of a run: its table and its curves."""

import fnmatch
import io
import json

import jax
import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.probes import verdict
from ijepa_jax.runtime import files, metrics
from ijepa_jax.runtime.progress import text_table


def format_table(rows: dict[str, dict[str, float]]) -> str:
  """A small text table: a row a name, a column a metric, accuracies in %."""
  return text_table(verdict.table_of(rows))


def report(
  run, workdir, state, make_state, seconds, *, probe=None, signals=None
) -> None:
  """Writes what was learned: a table, a verdict, report.json and curves.png.

  The table and the verdict are printed too.

  Args:
    run: of pre-training.
    workdir: of it.
    state: the last one.
    make_state: key -> State, of the untrained encoder.
    seconds: -> seconds since the start; called when all is computed.
    probe, signals: online_probe.Probe and health.Health, or None; not both.
  """
  rows = {}
  if probe:
    rows['chance (commonest label)'] = probe.chance()
    rows['raw pixels'] = probe.pixels()
  untrained, trained = 'encoder, untrained', f'{run.method.judged}, trained'
  fresh = make_state(jax.random.key(run.seed))
  rows[untrained], _ = _measure(fresh, probe, signals)
  del fresh
  rows[trained], alarms = _measure(state, probe, signals)
  seconds = seconds()
  if jax.process_index():
    return
  n = len(probe.test.images) if probe else 0
  judged = verdict.judge(
    rows[trained],
    rows[untrained],
    rows.get('raw pixels', {}),
    images=n,
    alarms=alarms,
  )
  steps = int(state.step)
  counts = {
    'steps': steps,
    'seconds_since_last_start': seconds,
    'verdict': judged.word,
    'verdict_in_words': judged.sentence,
  }
  title = 'Signals of health, of images without labels'
  if probe:
    counts |= {
      'training_images': len(probe.train.images),
      'held_out_images': n,
    }
    title = (
      f'Linear probe and kNN on {n} held-out images (accuracy in %), learned '
      f'from {len(probe.train.images)} training images'
    )
  print(
    f'\n{title}; after {steps} steps, {seconds:.0f} s since the last start:'
    f'\n\n{format_table(rows)}\n\n{judged.sentence}\n'
  )
  files.atomic_write_text(
    workdir / 'report.json', json.dumps(rows | counts, indent=2)
  )
  path = workdir / 'curves.png'
  levels = {k: rows[k] for k in ('raw pixels', untrained) if k in rows}
  picture = draw_curves(
    metrics.read(workdir), title=workdir.name, levels=levels
  )
  path.write_bytes(picture)
  print(f'Checkpoints, metrics.jsonl and {path.name} lie in {workdir}')


def _measure(state, probe, signals) -> tuple[dict, list[str]]:
  """Returns what is in the table of a state, and its alarms as sentences."""
  values = probe.monitor(state) if probe else {}
  if not signals:
    return values, []
  health = signals.measure(state)
  # The probe has a RankMe of more images.
  shown = ('health/token_cosine',) if probe else _SIGNALS
  values |= {name: health[name] for name in shown}
  return values, list(signals.alarms(health).values())


# Of the table, where there is no probe.
_SIGNALS = 'health/rankme', 'health/token_cosine', 'health/image_cosine'
_STYLES = ':', '--', '-.'  # of levels
# They fall by factors, and most of the fall is in the first steps.
_LOGARITHMIC = 'loss', 'loss on what is held out'
# Panel title, then the metrics in it.
PANELS = (
  ('loss', ('loss',)),
  ('loss on what is held out', ('held_out/*',)),
  ('learning rate', ('lr',)),
  ('EMA momentum', ('momentum',)),
  ('feature spread', ('feature_std', 'token_std')),
  ('linear probe, held-out images', ('probe/*',)),
  ('kNN, held-out images', ('knn/*',)),
  ('RankMe', ('rankme', 'health/rankme')),
  ('mean cosine', ('health/token_cosine', 'health/image_cosine')),
  ('same-position gap, share of the loss', ('health/gap_share',)),
  ('hidden pixels, share that is predicted', ('health/explained',)),
)


def draw_curves(
  rows: list[dict],
  *,
  title: str = '',
  levels: dict[str, dict[str, float]] | None = None,
) -> bytes:
  """Draws the panels whose metrics are there, over steps.

  Args:
    rows: what `metrics.read` gives.
    title: above all panels.
    levels: name -> metrics that do not change over steps, such as the untrained
      encoder's; drawn as dotted and dashed lines.

  Returns:
    A PNG.

  Raises:
    UserError: none of the metrics is there.
  """
  recorded = {k for row in rows for k, v in row.items() if v is not None}
  panels = []
  for label, names in PANELS:
    present = [
      metric
      for metric in sorted(recorded)
      if any(fnmatch.fnmatch(metric, name) for name in names)
    ]
    if present:
      panels.append((label, present))
  if not panels:
    raise UserError('There is nothing to draw: no step has been recorded.')
  # Late: every start would wait for it, and only the end of a run draws.
  from matplotlib.figure import Figure

  columns = min(3, len(panels))
  grid = -(-len(panels) // columns), columns
  # Not of pyplot, whose windows and state are the caller's.
  figure = Figure(figsize=(4 * columns, 2.8 * grid[0]))
  axes = figure.subplots(*grid, squeeze=False)
  for axis, (label, names) in zip(axes.flat, panels, strict=False):
    _panel(axis, rows, names, levels or {})
    axis.set_title(label, fontsize=10)
    if label in _LOGARITHMIC and _all_positive(axis):
      _make_logarithmic(axis)
    axis.set_xlim(0, 1.02 * max(1, *(row['step'] for row in rows)))
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(which='both', labelsize=8)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
      axis.legend(fontsize=7, framealpha=0.6)
  for axis in axes.flat[len(panels) :]:
    axis.set_visible(False)
  figure.suptitle(title)
  figure.tight_layout()
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=110)
  return file.getvalue()


def _all_positive(axis) -> bool:
  """Whether all numbers that are drawn have a logarithm."""
  return all(np.nanmin(line.get_ydata()) > 0 for line in axis.get_lines())


def _make_logarithmic(axis) -> None:
  """With 0.02, 0.05, 0.1 where others write 10^-1."""
  from matplotlib import ticker

  axis.set_yscale('log')
  axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
  axis.yaxis.set_major_formatter('{x:g}')
  axis.yaxis.set_minor_formatter('{x:g}')


def _panel(axis, rows, names, levels) -> None:
  """The lines of some metrics; a level in the colour of its metric."""
  ends = [name.split('/')[-1] for name in names]
  for name, end in zip(names, ends, strict=True):
    points = [(r['step'], r[name]) for r in rows if r.get(name) is not None]
    x, y = np.asarray(points, float).T
    label = name if ends.count(end) > 1 else end
    # Of one probe too: the name of the label says of what it is.
    one = len(names) == 1 and not name.startswith(('probe/', 'knn/'))
    label = None if one else label
    if len(x) < 100:
      (line,) = axis.plot(x, y, marker='o', markersize=3, label=label)
    else:
      smooth = name == 'loss'
      (line,) = axis.plot(
        x, y, linewidth=0.8, alpha=0.4 if smooth else 1.0, label=label
      )
      if smooth:
        width = max(len(y) // 50, 1)
        mean = np.convolve(y, np.ones(width) / width, 'valid')
        axis.plot(x[width - 1 :], mean, color=line.get_color())
    for style, level in zip(_STYLES, levels.values(), strict=False):
      if name in level:
        axis.axhline(
          level[name], color=line.get_color(), linestyle=style, linewidth=1
        )
  for style, (title, level) in zip(_STYLES, levels.items(), strict=False):
    if level.keys() & set(names):
      axis.plot([], [], color='grey', linestyle=style, label=title)
