"""AdamW's state in PyTorch's files: torch.optim.AdamW's own state_dict.

    state          {number: {'step', 'exp_avg', 'exp_avg_sq'}}
    param_groups   [{'params': [numbers], 'lr', ...}, ...]

It names no parameter but counts them. Each group holds those of one network
that are decayed (matrices and tensors of more axes) or those that are not (one
axis), in the order of the network in the same file; a position table, which is
not trained, may be counted and has no state. A group is recognized by the
shapes of its moments. Whatever does not fit exactly is refused, never guessed.
"""

from collections.abc import Mapping

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import pytorch, release_names, weights

_MOMENTS = 'exp_avg', 'exp_avg_sq'


def read(torch, state_dict, networks: Mapping, path) -> weights.Optimizer:
  """Reads AdamW's state over encoder and predictor.

  Args:
    torch: the module.
    state_dict: the file's entry of the optimizer, or None.
    networks: {'encoder', 'predictor'}: {name as in formats/release_names.py:
      tensor}, in the file's order.
    path: of the file.

  Raises:
    UserError: there is none, it is not whole, or it is of something else.
  """
  for part in weights.TRAINED:
    if part not in networks:
      raise UserError(f'the file has no {part} that it could be of.')
  groups, state = _groups_and_state(state_dict)
  numbers = _assign_groups(torch, groups, state, networks)
  step = _common_step(torch, state, path)
  mu, nu = (
    {
      part: _moments(moment, part, numbers, state, path)
      for part in weights.TRAINED
    }
    for moment in _MOMENTS
  )
  return weights.Optimizer(step, mu, nu)


def _assign_groups(torch, groups, state, networks) -> dict:
  """Returns {(part, name): number}, by the shapes of each group's moments."""
  shapes = {i: _shape(torch, entry, i) for i, entry in state.items()}
  candidates = {
    (part, decayed): _members(networks[part], part, decayed)
    for part in weights.TRAINED
    for decayed in (True, False)
  }
  numbers = {}
  for n, group in enumerate(groups):
    group_shapes = [shapes.get(i) for i in group]
    for (part, decayed), lists in candidates.items():
      fitting = [names for names, expected in lists if expected == group_shapes]
      if fitting:
        names = [(part, name) for name in fitting[0]]
        numbers |= dict(zip(names, group, strict=True))
        del candidates[part, decayed]
        break
    else:
      raise UserError(
        f'its group {n}, of {len(group)} parameters, has not the shapes of the '
        "encoder's or the predictor's, decayed or not."
      )
  if candidates:
    part, decayed = next(iter(candidates))
    raise UserError(
      f'it has no group of the {part}, {"" if decayed else "not "}decayed.'
    )
  return numbers


def _members(network: Mapping, part: str, decayed: bool) -> list[tuple]:
  """Returns what a group may hold: [(names, shapes)], a table's shape None."""
  table = weights.PARTS[part].table

  def member(with_table):
    names = [
      name
      for name, tensor in network.items()
      if (with_table if name == table else (tensor.ndim > 1) == decayed)
    ]
    shapes = [None if n == table else tuple(network[n].shape) for n in names]
    return names, shapes

  return [member(False), member(True)]


def _common_step(torch, state, path) -> int:
  """Returns the number of steps that all parameters have made."""
  steps = {_step(torch, entry['step'], path) for entry in state.values()}
  if len(steps) != 1 or not 1 <= (step := steps.pop()) < 2**31:
    raise UserError(
      'its parameters have not all made the same number of steps, 1 or more.'
    )
  return step


def _step(torch, step, path) -> int:
  """Older versions of PyTorch keep a number, newer ones a tensor."""
  if isinstance(step, torch.Tensor) and step.numel() == 1:
    pytorch.check_tensor(torch, step, 'its step')
    step = pytorch.to_numpy(step, 'its step', path).item()
  if not isinstance(step, int | float) or step != step // 1:
    raise UserError('its number of steps is no whole number.')
  return int(step)


def _moments(moment: str, part: str, numbers, state, path) -> dict:
  """Returns the tree of one moment over one network."""
  arrays = {
    name: pytorch.to_numpy(state[i][moment], f'{moment} of {name}', path)
    for (owner, name), i in numbers.items()
    if owner == part and i in state
  }
  if moment == 'exp_avg_sq':
    for name, x in arrays.items():
      if x.min() < 0:
        raise UserError(f'{moment} of {name} has entries below 0.')
  return weights.own_arrays(release_names.from_release(arrays, part))


def _groups_and_state(state_dict) -> tuple[list[list[int]], dict]:
  """Returns the groups' numbers, and {number: state}, each number once."""
  if state_dict is None:
    raise UserError('the file holds none.')
  groups = _get(state_dict, 'param_groups', list)
  groups = [_get(group, 'params', list) for group in groups]
  state = _get(state_dict, 'state', dict)
  numbers = [i for group in groups for i in group]
  if (
    not all(isinstance(i, int) for i in numbers)
    or len(set(numbers)) < len(numbers)
    or not state.keys() <= set(numbers)
  ):
    raise UserError(
      'its groups and its state do not count the same parameters, each once.'
    )
  return groups, state


def _get(table, key: str, kind: type):
  if not isinstance(table, dict) or not isinstance(table.get(key), kind):
    raise UserError(f"it is none of torch.optim's: it has no {key}.")
  return table[key]


def _shape(torch, entry, number: int) -> tuple[int, ...]:
  """Returns the shape of a parameter, from its state."""
  if not isinstance(entry, dict) or entry.keys() != {'step', *_MOMENTS}:
    raise UserError(f"the state of its parameter {number} is not AdamW's.")
  for moment in _MOMENTS:
    pytorch.check_tensor(
      torch, entry[moment], f'{moment} of parameter {number}'
    )
    if not entry[moment].is_floating_point():
      raise UserError(f'{moment} of parameter {number} is of whole numbers.')
  first, second = (tuple(entry[moment].shape) for moment in _MOMENTS)
  if first != second:
    raise UserError(f'the moments of its parameter {number} differ in shape.')
  return first


def write(
  torch,
  optimizer: weights.Optimizer,
  networks: Mapping,
  config: Mapping,
) -> dict:
  """Returns the state_dict of an AdamW over these networks.

  Its groups are: encoder decayed, encoder not decayed, and the same of the
  predictor; the tables are among the decayed ones, as their shape has it.
  Learning rates and decays are PyTorch's defaults, and 0 for what is not
  decayed: a schedule sets them.

  Args:
    torch: the module.
    optimizer: the state.
    networks: as in `read`; others are left.
    config: of the networks, as in `weights.Weights`.

  Raises:
    UserError: the moments are not of these networks.
  """
  trees = optimizer.mu, optimizer.nu
  _check_parts(networks, trees)
  for tree in trees:
    weights.check_params(tree, config)
  groups, state = [], {}
  for part in weights.TRAINED:
    moments = {
      key: release_names.to_release(
        tree[part], part, patch_size=config['patch_size']
      )
      for key, tree in zip(_MOMENTS, trees, strict=True)
    }
    parameters = {
      name: torch.nn.Parameter(tensor, requires_grad=False)
      for name, tensor in networks[part].items()
    }
    for decayed in True, False:
      group = [p for p in parameters.values() if (p.ndim > 1) == decayed]
      groups.append(
        {'params': group} | ({} if decayed else {'weight_decay': 0.0})
      )
    for name in moments['exp_avg']:
      state[parameters[name]] = {
        'step': torch.tensor(float(optimizer.step)),
        **{
          key: pytorch.from_numpy(torch, arrays[name])
          for key, arrays in moments.items()
        },
      }
  adamw = torch.optim.AdamW(groups)
  adamw.state.update(state)
  return adamw.state_dict()


def _check_parts(networks, trees) -> None:
  """Refuses networks and moments that are not of both trained parts."""
  for words, by_part in zip(
    ('networks', 'moments', 'moments'), (networks, *trees), strict=True
  ):
    if missing := [part for part in weights.TRAINED if part not in by_part]:
      raise UserError(
        f"An optimizer's state is of both networks: the {words} have no "
        f'{missing[0]}.'
      )
