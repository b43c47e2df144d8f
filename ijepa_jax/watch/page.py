"""The page: a table of all runs, and what each of them is like."""

import fnmatch
import html
import urllib.parse

from ijepa_jax.train.report import format_table
from ijepa_jax.visualize.page import markup
from ijepa_jax.watch.runs import COLUMNS, Run

SECONDS = 10  # after which the page renews itself
_NAME, _STEP = 'run', 'step'
# The content is asked for again and put in the place of the old one, so that
# the page stays where it was scrolled to.
SCRIPT = (
  'const renew=async()=>{try{'
  'const text=await(await fetch(location.href)).text();'
  "const page=new DOMParser().parseFromString(text,'text/html');"
  "document.querySelector('#live').innerHTML="
  "page.querySelector('#live').innerHTML;"
  "document.body.classList.remove('stale')}"
  "catch{document.body.classList.add('stale')}};"
  f'setInterval(renew,{1000 * SECONDS});'
)
STYLE = (
  '.ended{display:none}.stale .ended{display:block}'
  'th a{color:inherit}pre{overflow-x:auto;font-size:.875rem}'
  'img.picture{max-width:100%;height:auto}.scroll .wide{min-width:44rem}'
)


def columns(runs: list[Run]) -> list[str]:
  """The metrics that some run has, in the order of runs.COLUMNS."""
  present = sorted({k for run in runs for k in run.latest()})
  return [
    metric
    for pattern in COLUMNS
    for metric in present
    if fnmatch.fnmatchcase(metric, pattern)
  ]


def sort(runs: list[Run], by: str, descending: bool) -> list[Run]:
  """By a metric, the step or the name; runs without the metric are last."""
  if by in ('', _NAME):
    return sorted(runs, key=lambda run: run.name, reverse=descending)
  values = {id(run): {**run.latest(), _STEP: run.step}.get(by) for run in runs}
  have = [run for run in runs if values[id(run)] is not None]
  have.sort(key=lambda run: values[id(run)], reverse=descending)
  return have + [run for run in runs if values[id(run)] is None]


def page(runs: list[Run], by: str = '', descending: bool = False) -> str:
  """The whole page.

  Args:
    runs: refreshed.
    by: the column by which they are sorted; '': as they were given.
    descending: the greatest first.
  """
  shown = sort(runs, by, descending) if by else runs
  parts = [_table(shown, by, descending)] if runs[1:] else []
  parts += [_section(run, runs.index(run)) for run in shown]
  title = runs[0].name if len(runs) == 1 else f'{len(runs)} runs'
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{markup.STYLE}{STYLE}</style>'
    f'</head><body><main><h1>{html.escape(title)}</h1>'
    '<p class="ended banner bad">The server does not answer any more: what '
    f'is below is old.</p><div id="live">{"".join(parts)}</div></main>'
    f'<script>{SCRIPT}</script></body></html>'
  )


def _table(runs, by, descending) -> str:
  """Runs side by side; a click on a heading sorts by it."""
  metrics = [_NAME, _STEP, *columns(runs)]

  def heading(metric):
    # Once more turns the order around; of accuracies the greatest is first.
    first = metric.startswith(('probe/', 'knn/', 'rankme', _STEP))
    turned = not descending if metric == by else first
    query = urllib.parse.urlencode({'sort': metric, 'down': int(turned)})
    arrow = (' ↓' if descending else ' ↑') if metric == by else ''
    return (
      f'<th scope="col"><a href="?{query}">{html.escape(metric)}{arrow}</a>'
      '</th>'
    )

  rows = []
  for run in runs:
    latest = run.latest()
    cells = ''.join(
      f'<td class="n">{number(metric, latest.get(metric))}</td>'
      for metric in metrics[2:]
    )
    rows.append(
      f'<tr><th scope="row">{html.escape(run.name)}</th>'
      f'<td class="n">{run.step:,}</td>{cells}</tr>'
    )
  return (
    '<section><h2>Side by side</h2><p>A heading sorts the table. Accuracies '
    'are in %.</p><div class="scroll"><table><thead><tr>'
    f'{"".join(map(heading, metrics))}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div></section>'
  )


def number(metric: str, value: float | None) -> str:
  if value is None:
    return '-'
  if metric.startswith(('probe/', 'knn/')):
    return f'{100 * value:.1f}'
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _section(run: Run, index: int) -> str:
  """One run: how far, its health, curves and pictures."""
  name = html.escape(run.name)
  parts = [f'<p>{html.escape(run.status())}.</p>']
  grade, sentences = run.health()
  words = ''.join(f'<p>{html.escape(sentence)}</p>' for sentence in sentences)
  parts.append(f'<div class="banner {grade}">{words}</div>')
  if verdict := run.verdict():
    parts.append(f'<p>{html.escape(verdict)}</p>')
  if final := run.final():
    parts.append(f'<pre>{html.escape(format_table(final))}</pre>')
  if run.rows:
    parts.append(
      f'<div class="scroll"><img class="wide" alt="Curves of {name}" '
      f'src="curves/{index}?{run.step}"></div>'
    )
  if run.picture().exists():
    parts.append(
      '<p class="dim">Held-out images; what the context encoder sees; what is '
      'to be predicted; the tokens as colors, among these images and of each '
      f'by itself.</p><img class="picture" alt="Masks and tokens of {name}" '
      f'src="picture/{index}?{run.step}">'
    )
  return f'<section><h2>{name}</h2>{"".join(parts)}</section>'
