"""The figure and the table of compare.py.

Both take
  results  {method: [of each seed {step: {'<task> <judge>': accuracy}}]}
  levels   {'raw pixels': [of each seed {'<task> <judge>': accuracy}], ...}
  costs    {method: {'seconds', 'flops'} of a step}
with accuracies in [0, 1].
"""

import statistics

import matplotlib
import numpy as np

from benchmarks import judges
from benchmarks.seeds import mean_and_spread

matplotlib.use('Agg')
from matplotlib import pyplot as plt

AXES = {'seconds': ('seconds', 1), 'flops': ('TFLOP', 1e12)}
STYLES = ':', '--'


def columns(rows: list[dict]) -> list[str]:
  """Names of accuracies that all have, without those to choose settings by."""
  return [
    name
    for name in rows[0]
    if not name.endswith(judges.HELD_OUT) and all(name in r for r in rows)
  ]


def table(results, levels, costs) -> str:
  """Markdown: accuracies in % at the end, mean and standard deviation."""
  last = {m: [r[max(r)] for r in runs] for m, runs in results.items()}
  rows = levels | last
  names = columns([row for seeds in rows.values() for row in seeds])
  lines = [f'| | seeds | {" | ".join(names)} | steps | seconds | TFLOP |']
  lines.append('|---' * (len(names) + 5) + '|')
  for title, seeds in rows.items():
    cells = [title, str(len(seeds))]
    cells += [mean_and_spread([100 * r[name] for r in seeds]) for name in names]
    cost = [''] * 3
    if title in results:
      steps = max(results[title][0])
      cost = [str(steps)] + [
        f'{steps * costs[title][kind] / unit:.3g}'
        for kind, (_, unit) in AXES.items()
      ]
    lines.append(f'| {" | ".join(cells + cost)} |')
  return '\n'.join(lines)


def draw(results, levels, costs, path) -> None:
  """Accuracy against the cost of pre-training, as a PNG.

  A row of panels for each unit of the cost, a panel for each accuracy; a line a
  method, with a band from the worst to the best seed.
  """
  all_rows = [
    row for runs in results.values() for run in runs for row in run.values()
  ]
  names = columns(all_rows)
  kinds = [(kind, name) for kind in AXES for name in names]
  width = max(w for w in (4, 3, 2, 1) if not len(names) % w)
  figure, panels = plt.subplots(
    -(-len(kinds) // width),
    width,
    figsize=(3.2 * width, 2.8 * len(kinds) / width + 0.5),
    squeeze=False,
  )
  for (kind, name), panel in zip(kinds, panels.flat, strict=True):
    unit, size = AXES[kind]
    for method, runs in results.items():
      steps = sorted(runs[0])
      cost = np.array(steps) * costs[method][kind] / size
      scores = 100 * np.array([[run[s][name] for s in steps] for run in runs])
      panel.plot(cost, scores.mean(0), marker='o', label=method, ms=4)
      panel.fill_between(cost, scores.min(0), scores.max(0), alpha=0.2)
    for style, (title, seeds) in zip(STYLES, levels.items(), strict=True):
      level = 100 * statistics.mean(s[name] for s in seeds)
      panel.axhline(level, color='grey', ls=style, lw=1, label=title)
    panel.set_xlim(left=0)
    panel.set_xlabel(f'pre-training, {unit}', fontsize=8)
    panel.set_title(f'{name}, %', fontsize=9)
    panel.grid(alpha=0.3)
  handles, labels = panels.flat[0].get_legend_handles_labels()
  beside = min(len(labels), 2 * width)
  figure.legend(handles, labels, ncols=beside, loc='upper center')
  inches = 0.15 + 0.25 * -(-len(labels) // beside)
  figure.tight_layout(rect=(0, 0, 1, 1 - inches / figure.get_figheight()))
  figure.savefig(path, dpi=110, bbox_inches='tight')
  plt.close(figure)
