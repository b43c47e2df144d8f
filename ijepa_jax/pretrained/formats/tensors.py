"""Tables {name: tensor} from anybody's file: safetensors files, and checks.

DistributedDataParallel puts `module.` before every name of a network, the
classifier of transformers `ijepa.`, users `model.` or `backbone.`;
torch.compile and FSDP put their own words at any place. Beside the network lie
classifiers and whatever else was trained.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files

_NAMES_SHOWN = 3
_DTYPES = {'float32', 'float64', 'float16', 'bfloat16'}
_WRAPPERS = re.compile(
  r'(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
# They read the encoder's output only: without them the features are the same.
_HEADS = re.compile(
  r'(pooler|classifier|heads?|fc|linear|probe|projector|predictor|decoder)\.'
)


def read_safetensors(path) -> dict[str, np.ndarray]:
  """Reads all tensors of a safetensors file; bfloat16 as ml_dtypes has it.

  The library compares the header with the file: tensors lie side by side
  without a gap, and none is larger than what is stored of it.

  Raises:
    UserError: it can't be read, is damaged, or holds what NumPy has no type
      for.
  """
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}.') from error
  except (safetensors.SafetensorError, ValueError, AttributeError) as error:
    # The last two are NumPy's, of more axes or of a type than it has.
    raise UserError(
      f'{path} is no safetensors file of weights, or it is damaged or cut off '
      f'({error}): bring it here again.'
    ) from error


def write_safetensors(
  path,
  arrays: Mapping[str, np.ndarray],
  metadata: dict[str, str] | None = None,
) -> None:
  """Writes float32 tensors, or nothing; the same tensors give the same bytes.

  Raises:
    OSError: it can't be written.
  """
  arrays = {k: np.require(x, np.float32, 'C') for k, x in arrays.items()}
  with files.atomic_write(pathlib.Path(path)) as temporary:
    safetensors_numpy.save_file(arrays, temporary, metadata)


def networks(names: Iterable[str], anchor: str) -> dict[str, dict[str, str]]:
  """Finds every network that has a tensor named `anchor`.

  Returns:
    {what stands before its names: {its own name: name in the file}}.

  Raises:
    UserError: two names in the file mean the same tensor.
  """
  stored = {}
  for name in names:
    own = _WRAPPERS.sub('', name)
    if own in stored:
      raise UserError(f'holds a tensor twice, as {stored[own]} and {name}.')
    stored[own] = name
  prefixes = [
    name.removesuffix(anchor)
    for name in stored
    if name == anchor or name.endswith(f'.{anchor}')
  ]
  return {
    prefix: {
      own.removeprefix(prefix): name
      for own, name in stored.items()
      if own.startswith(prefix)
    }
    for prefix in prefixes
  }


def without_heads(names: Mapping[str, str]) -> dict[str, str]:
  """Leaves heads beside the network out of one entry of `networks`."""
  return {k: v for k, v in names.items() if not _HEADS.match(k)}


def only_network(
  names: Iterable[str], anchor: str, title: str
) -> dict[str, str]:
  """Returns the one network of a file, {its own name: name in the file}.

  Where there is none it returns all names, so that the reader can say which
  tensors are missing.

  Raises:
    UserError: there are several, or two names mean the same tensor.
  """
  names = list(names)
  try:
    by_prefix = networks(names, anchor)
  except UserError as error:
    raise UserError(f'{title} {error}') from error
  if len(by_prefix) > 1:
    prefixes = ', '.join(repr(prefix) for prefix in sorted(by_prefix))
    raise UserError(
      f'{title} holds {len(by_prefix)} encoders, whose names begin with '
      f'{prefixes}: which is wanted cannot be known, so save one of them '
      'alone.'
    )
  if not by_prefix:
    return {name: name for name in names}
  return without_heads(*by_prefix.values())


def unused_note(names: Iterable[str], used: Iterable[str]) -> list[str]:
  """Returns a sentence on the names that are not used, or nothing."""
  unused = set(names) - set(used)
  return [f'Passed over: {first_names(unused)}.'] if unused else []


def first_names(names: Iterable[str]) -> str:
  """Returns the first few of these names, and how many more there are."""
  names = sorted(names)
  more = len(names) - _NAMES_SHOWN
  shown = ', '.join(names[:_NAMES_SHOWN])
  return f'{shown} and {more} more' if more > 0 else shown


def require_same_shapes(actual: Mapping, expected: Mapping, title: str) -> None:
  """Compares {name: shape}.

  Raises:
    UserError: a tensor is missing, left over or of another shape, by name.
  """
  faults = []
  if missing := expected.keys() - actual.keys():
    faults.append(f'lacks {first_names(missing)}')
  if extra := actual.keys() - expected.keys():
    faults.append(f'has what I-JEPA has no place for: {first_names(extra)}')
  wrong = [
    f'{k} as {list(actual[k])} instead of {list(expected[k])}'
    for k in expected.keys() & actual.keys()
    if tuple(actual[k]) != tuple(expected[k])
  ]
  if wrong:
    faults.append(f'has {first_names(wrong)}')
  if faults:
    raise UserError(f'{title} does not fit: it {"; it ".join(faults)}.')


def sizes_from_shapes(
  shapes: Mapping, title: str, *, patch: str, fc1: str, blocks: str
) -> dict[str, int]:
  """Reads width, depth, mlp_dim, patch_size and channels of an encoder.

  Args:
    shapes: {name: shape} of its tensors.
    title: of the file, for the sentence.
    patch, fc1: names of the patch embedding's weight [D, C, P, P] and of the
      first block's first MLP weight [mlp_dim, D].
    blocks: pattern that a block's tensors start with, its number in a group.

  Raises:
    UserError: the two tensors are missing, or of another kind.
  """
  kernel, mlp = tuple(shapes.get(patch, ())), tuple(shapes.get(fc1, ()))
  if len(kernel) != 4 or kernel[2] != kernel[3] or len(mlp) != 2:
    shown = ', '.join(sorted(shapes)[:_NAMES_SHOWN]) or 'nothing'
    raise UserError(
      f'{title} is no I-JEPA encoder: its {patch} is {list(kernel)} and its '
      f'{fc1} is {list(mlp)}, where [D, C, P, P] and [mlp, D] are expected '
      f'(it has {shown}, ...).'
    )
  return dict(
    width=kernel[0],
    depth=depth(shapes, blocks),
    mlp_dim=mlp[0],
    patch_size=kernel[2],
    channels=kernel[1],
  )


def depth(names: Iterable[str], blocks: str) -> int:
  """Counts blocks; `require_same_shapes` tells if one of them is missing."""
  return len({m[1] for m in map(re.compile(blocks).match, names) if m})


def dtype_names(dtypes: Iterable, title: str) -> str:
  """Returns the types that weights are stored in, in words.

  Args:
    dtypes: of NumPy or PyTorch.

  Raises:
    UserError: one is not of floating point.
  """
  names = {str(dtype).removeprefix('torch.') for dtype in dtypes}
  words = ', '.join(sorted(names))
  if not names <= _DTYPES:
    raise UserError(f'{title} holds weights of the types {words}: not I-JEPA.')
  return words


def dtype_note(words: str) -> list[str]:
  """Returns a sentence where the weights are not stored as float32."""
  if words == 'float32':
    return []
  return [f'The weights are stored as {words} and taken as float32.']


def require_finite(array: np.ndarray, name: str) -> np.ndarray:
  """Returns the array as float32.

  Raises:
    UserError: it has an entry that is not a finite number.
  """
  array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    raise UserError(f'{name} holds numbers that are not finite.')
  return array
