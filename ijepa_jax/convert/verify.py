"""Whether what was written is what was read: every name, every bit."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions
from ijepa_jax.pretrained.formats import (
  huggingface_names,
  orbax,
  release_names,
  weights,
)

_WRONG_SHOWN = 3


def table(loaded, part) -> np.ndarray:
  """The position table [N, D] of a part."""
  c = loaded.config
  grid = tuple(n // c['patch_size'] for n in c['image_size'])
  width = 'predictor_width' if part == 'predictor' else 'width'
  return positions.sincos_table(grid, c[width])


def tensors_by_written_name(loaded, to) -> dict[str, np.ndarray]:
  """All that is written, under the names that it has there."""
  moments = {}
  if loaded.optimizer:
    moments = {'mu': loaded.optimizer.mu, 'nu': loaded.optimizer.nu}
  if to == 'orbax':
    tree = orbax.nested(loaded.params) | moments | {'table': loaded.tables}
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): x
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }

  def unstacked(part, tree, what):
    network = 'predictor' if part == 'predictor' else 'encoder'
    p = loaded.config['patch_size']
    tensors = release_names.to_release(tree, network, patch_size=p)
    return {f'{what}{k}': x for k, x in tensors.items()}

  named = {}
  for part, tree in loaded.params.items():
    what = '' if to == 'huggingface' else f'{part} '
    named |= unstacked(part, tree, what)
    stored = loaded.tables.get(part, table(loaded, part))
    named[f'{what}{weights.TABLES[part]}'] = stored[None]
  if to == 'huggingface':
    return huggingface_names.from_release(named)
  for moment, trees in moments.items():
    for part, tree in trees.items():
      named |= unstacked(part, tree, f'{moment} of {part} ')
  return named


def verify_sizes(loaded, back) -> None:
  """Compares what is no tensor: sizes and AdamW's step.

  Raises:
    UserError: one differs.
  """
  ours, theirs = loaded.config, dict(back.config)
  if loaded.optimizer:
    ours = ours | {"AdamW's step": loaded.optimizer.step}
    theirs["AdamW's step"] = back.optimizer and back.optimizer.step
  if differ := [k for k in ours if ours[k] != theirs.get(k)]:
    k = differ[0]
    raise UserError(
      f'What was written says {k} = {theirs.get(k)}, and what was read '
      f'{ours[k]}: nothing is left of it.'
    )


def verify_tensors(wanted: Mapping, found: Mapping) -> Iterator[str]:
  """Goes through {name: array} of what was to be written and of what is there.

  Raises:
    UserError: names, count, shapes or bits differ; at the latest at the end.
  """
  weights.require_same_shapes(
    *({k: x.shape for k, x in t.items()} for t in (found, wanted)),
    'What was written',
  )
  wrong = []
  for name, x in wanted.items():
    if not np.array_equal(*(y.view(np.uint32) for y in (x, found[name]))):
      wrong.append(name)
    yield name
  if wrong:
    more = len(wrong) - _WRONG_SHOWN
    names = ', '.join(wrong[:_WRONG_SHOWN])
    names += f' and {more} more' if more > 0 else ''
    raise UserError(
      f'What was written is not what was read, {names} differ: nothing is left '
      'of it; look after the disk.'
    )
