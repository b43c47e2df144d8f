"""Labels of CLEVR, computed from its records."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ijepa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
  """A label that is computed from a record of a data set.

  Attributes:
    classes: number of classes; labels are 0 to classes - 1.
    function: record -> label; UserError if it has none.
  """

  classes: int
  function: Callable[[Mapping[str, Any]], int]


def clevr_count(record) -> int:
  """Returns 0 to 7 for 3 to 10 objects in a record of TFDS's `clevr`."""
  count = len(_pixel_coords(record))
  if not 3 <= count <= 10:
    raise UserError(
      f'{count} objects in a picture of Clevr: the task has 3 to 10.'
    )
  return count - 3


# Upper ends, inclusive, of the bins of the nearest object's depth.
CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0, 100.0)


def clevr_distance(record) -> int:
  """Returns the bin, 0 to 5, of the nearest object's depth."""
  nearest = float(_pixel_coords(record)[:, 2].min())
  label = int(np.searchsorted(CLEVR_DISTANCES, nearest))
  if not 0 < nearest <= CLEVR_DISTANCES[-1]:
    raise UserError(
      f'The nearest object of Clevr is {nearest:g} away: the task has 0 to '
      f'{CLEVR_DISTANCES[-1]:g}.'
    )
  return label


def _pixel_coords(record) -> np.ndarray:
  """Returns float32 [objects, 3]: x and y in pixels, and depth."""
  coords = np.asarray(record['objects']['pixel_coords'], np.float32)
  if not coords.size:
    raise UserError(
      'A picture of Clevr has no objects noted: its test split has none, take '
      'train and validation.'
    )
  return coords.reshape(-1, 3)


# One source for both tasks, so that they share features.
CLEVR = {'count': Rule(8, clevr_count), 'distance': Rule(6, clevr_distance)}
