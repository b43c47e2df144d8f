"""What others save around a network: names before its own, and heads.

DistributedDataParallel puts `module.` before every name, the classifier of
transformers `ijepa.`, users `model.` or `backbone.`; torch.compile and FSDP put
their own words at any place. Beside the network lie classifiers and whatever
else was trained.
"""

import re
from collections.abc import Iterable, Mapping

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import weights

_WORDS = re.compile(
  r'(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
# What only looks at the encoder's output: without it the features are the same.
_HEADS = re.compile(
  r'(pooler|classifier|heads?|fc|linear|probe|projector|predictor|decoder)\.'
)


def networks(names: Iterable[str], anchor: str) -> dict[str, dict[str, str]]:
  """Finds every network that has a tensor named `anchor`.

  Returns:
    {what stands before its names: {its own name: name in the file}}.

  Raises:
    UserError: two names in the file mean the same tensor.
  """
  stored = {}
  for name in names:
    own = _WORDS.sub('', name)
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
      name.removeprefix(prefix): kept
      for name, kept in stored.items()
      if name.startswith(prefix)
    }
    for prefix in prefixes
  }


def without_heads(names: Mapping[str, str]) -> dict[str, str]:
  """Of a network as in `networks`, what is not a head beside it."""
  return {k: v for k, v in names.items() if not _HEADS.match(k)}


def only(names: Iterable[str], anchor: str, what: str) -> dict[str, str]:
  """The one network of a file, {its own name: name in the file}.

  Where there is none all names are given, of which the reader says what they
  lack.

  Raises:
    UserError: there are several, or two names mean the same tensor.
  """
  names = list(names)
  try:
    found = networks(names, anchor)
  except ValueError as error:
    raise UserError(f'{what} {error}') from error
  if len(found) > 1:
    prefixes = ', '.join(repr(prefix) for prefix in sorted(found))
    raise UserError(
      f'{what} holds {len(found)} encoders, whose names begin with {prefixes}: '
      'which is wanted can not be known, so save one of them alone.'
    )
  return without_heads(*found.values()) if found else {k: k for k in names}


def passed_over(names: Iterable[str], taken: Iterable[str]) -> list[str]:
  """A sentence on the names that are not taken, where there are any."""
  rest = set(names) - set(taken)
  return [f'Passed over: {weights.some(rest)}.'] if rest else []
