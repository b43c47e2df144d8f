"""Position tables: the sin-cos table, and tables of another size."""

import numpy as np

from ijepa_jax.errors import UserError

# How far a table may be from the computed one, by the type it was stored in.
_TOLERANCE = {'float32': 1e-5, 'float64': 1e-5, 'float16': 1e-3}
_TOLERANCE_OF_OTHERS = 5e-3  # bfloat16 keeps 8 bits of a number


def find_grid(
  table_ND: np.ndarray, *, tolerance: float
) -> tuple[int, int] | None:
  """Returns the rows and columns whose sin-cos table this is.

  Of a table that is no sin-cos table, those of a square; None where its length
  is no square either.
  """
  n, width = table_ND.shape
  side = round(n**0.5)
  divisors = [r for r in range(1, n + 1) if n % r == 0]
  for rows in sorted(divisors, key=lambda r: abs(r - side)):
    computed = sincos_table((rows, n // rows), width)
    if np.abs(computed - table_ND).max() <= tolerance:
      return rows, n // rows
  return (side, side) if side * side == n else None


def tolerance_of(dtype: str) -> float:
  """Returns how far a table stored in `dtype` may be from the computed one."""
  return _TOLERANCE.get(dtype, _TOLERANCE_OF_OTHERS)


def note(
  table_ND: np.ndarray, grid: tuple[int, int], owner: str, *, tolerance: float
) -> list[str]:
  """Returns a sentence where a stored table is not the computed one.

  Args:
    owner: of the table, for the sentence.
  """
  computed = sincos_table(grid, table_ND.shape[1])
  error = float(np.abs(computed - table_ND).max())
  if error <= tolerance:
    return []
  return [
    f"The {owner}'s stored position table differs from the sin-cos table by up "
    f'to {error:.2g}: this model computes the table, so its outputs will '
    'differ from those of the code that the file is from; for features, '
    "pos_embed='interpolate' takes the stored one."
  ]


def resize(
  table_ND: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
  """Resizes a position table to another grid, by bicubic interpolation.

  As PyTorch's interpolate(mode='bicubic', align_corners=False): Keys' kernel
  with a = -0.75, the border repeated, no antialiasing.

  Args:
    table_ND: float [N, D], row-major.
    old_grid, new_grid: rows and columns; N is the product of the old ones.

  Returns:
    float32 [product of the new ones, D]; where nothing changes the table
    itself.

  Raises:
    UserError: the table is not of the old grid.
  """
  n, width = table_ND.shape
  if n != old_grid[0] * old_grid[1]:
    raise UserError(
      f'A table of {n} positions is not of {old_grid[0]} x {old_grid[1]}.'
    )
  x = np.asarray(table_ND, np.float32)
  if tuple(old_grid) == tuple(new_grid):
    return x
  rows, columns = map(_bicubic, old_grid, new_grid)
  x = x.reshape(*old_grid, width).astype(np.float64)
  x = np.einsum('rh,cw,hwd->rcd', rows, columns, x, optimize=True)
  return x.reshape(-1, width).astype(np.float32)


def _bicubic(old: int, new: int) -> np.ndarray:
  """Returns the weight of each old place in each new one: [new, old]."""
  a = -0.75
  place = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(place).astype(int) - 1
  weights = np.zeros((new, old))
  for i in first + np.arange(4)[:, None]:
    x = np.abs(place - i)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    np.add.at(
      weights,
      (np.arange(new), np.clip(i, 0, old - 1)),
      np.where(x <= 1, near, far),
    )
  return weights


def sincos_table(grid: tuple[int, int], width: int) -> np.ndarray:
  """Computes the fixed 2-D sin-cos position embedding.

  Args:
    grid: rows and columns of patches.
    width: features, a multiple of 4.

  Returns:
    float32 [rows * columns, width]; the first half of the features encodes the
    column, the second the row, each as [sin, cos] (release).

  Raises:
    UserError: the width is not a multiple of 4.
  """
  if width % 4:
    raise UserError(
      f'A width of {width} has no 2-D sin-cos table: take a multiple of 4.'
    )
  frequency = 10000.0 ** -(np.arange(width // 4) / (width / 4))
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  angles = [np.outer(p, frequency) for p in (column, row)]
  return np.concatenate(
    [f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1
  ).astype(np.float32)
