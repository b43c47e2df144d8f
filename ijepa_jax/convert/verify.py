"""Compares the weights that an export wrote with those that it read."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import (
  huggingface_names,
  orbax,
  release_names,
  tensors,
  weights,
)


def tensors_by_written_name(
  loaded: weights.Weights, to: str
) -> dict[str, np.ndarray]:
  """Returns all that is written in the format `to`, by its names there."""
  moments = {}
  if loaded.optimizer:
    moments = {'mu': loaded.optimizer.mu, 'nu': loaded.optimizer.nu}
  if to == 'orbax':
    tree = orbax.nested(loaded.params) | moments | {'table': loaded.tables}
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): x
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
  config, named = loaded.config, {}
  for part, tree in loaded.params.items():
    table = loaded.tables.get(part)
    arrays = weights.release_tensors(config, part, tree, table)
    if to == 'huggingface':
      return huggingface_names.from_release(arrays)
    named |= {f'{part} {name}': x for name, x in arrays.items()}
  for moment, trees in moments.items():
    for part, tree in trees.items():
      arrays = release_names.to_release(
        tree, part, patch_size=config['patch_size']
      )
      named |= {f'{moment} of {part} {name}': x for name, x in arrays.items()}
  return named


def verify_sizes(loaded: weights.Weights, back: weights.Weights) -> None:
  """Compares what is no tensor: sizes and AdamW's step.

  Args:
    loaded: what was to be written.
    back: what was read back.

  Raises:
    UserError: one differs.
  """
  expected, actual = dict(loaded.config), dict(back.config)
  if loaded.optimizer:
    expected["AdamW's step"] = loaded.optimizer.step
    actual["AdamW's step"] = back.optimizer and back.optimizer.step
  for name, value in expected.items():
    if value != actual.get(name):
      raise UserError(
        f'What was written says {name} = {actual.get(name)}, and what was read '
        f'{value}: nothing is left of it.'
      )


def verify_tensors(expected: Mapping, actual: Mapping) -> Iterator[str]:
  """Compares {name: float32 array} bit by bit; yields each name when done.

  Args:
    expected: what was to be written.
    actual: what was read back.

  Raises:
    UserError: names, count, shapes or bits differ; at the latest at the end.
  """
  tensors.require_same_shapes(
    {k: x.shape for k, x in actual.items()},
    {k: x.shape for k, x in expected.items()},
    'What was written',
  )
  wrong = []
  for name, x in expected.items():
    if not np.array_equal(x.view(np.uint32), actual[name].view(np.uint32)):
      wrong.append(name)
    yield name
  if wrong:
    raise UserError(
      f'What was written is not what was read, {tensors.first_names(wrong)} '
      'differ: nothing is left of it; look after the disk.'
    )
