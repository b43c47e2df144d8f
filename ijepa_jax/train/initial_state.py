"""The first state of a run that begins with somebody's weights.

The encoders and the predictor begin with the stored ones, as far as the method
has them; the optimizer and the schedules begin anew, unless run.init_optimizer
is set.
"""

import jax
import numpy as np
import optax
from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.methods import train_step
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import weights
from ijepa_jax.train.run import PretrainRun

_MAY_DIFFER = 'image_size', 'mean', 'std'  # what another run may have otherwise


def state_from_weights(
  run: PretrainRun, abstract: train_step.State, make_state
) -> train_step.State:
  """Returns the first state, of weights and perhaps of AdamW's state.

  Where there is one encoder only, the target encoder and the context encoder
  both begin with it; a method without a target begins with the encoder that was
  judged. What is not stored is fresh: a predictor, and whatever else a method
  has. Images of another size are no hindrance: the position tables are
  computed.

  Args:
    run: that begins; its init_from is a workdir, an export, a .pth.tar file or
      a Hugging Face folder.
    abstract, make_state: from `compile.abstract_state`.

  Returns:
    A state laid out as `abstract`; its step is 0, or the optimizer's.

  Raises:
    UserError: there is nothing of the kind, it is of another model, or the
      optimizer's state is asked for and can't be had. Nothing was compiled.
  """
  path = run.init_from
  if not path:
    raise UserError('init_optimizer is set: say in init_from where it is.')
  loaded = load.read_weights(
    path, optimizer=run.init_optimizer, heads=run.model['heads']
  )
  loaded.log_notes(path)
  _check_model(run, loaded)
  _check_optimizer(run, loaded)
  _log_what_is_missing(run, loaded)

  optimizer, opt_state = loaded.optimizer, None
  step = np.int32(optimizer.step if optimizer else 0)
  params, target = _first_params(run, loaded)
  if optimizer:
    opt_state = optax.tree_utils.tree_set(
      abstract.opt_state, count=step, mu=optimizer.mu, nu=optimizer.nu
    )
  if params.keys() < abstract.params.keys() or opt_state is None:
    fresh = make_state(jax.random.key(run.seed))
    params = {k: params.get(k, fresh.params[k]) for k in fresh.params}
    opt_state = opt_state or fresh.opt_state
    del fresh  # The devices never hold more than one state.

  def place(x, like):
    if isinstance(x, jax.Array):
      return x
    # Each process gives what its own devices hold.
    return jax.make_array_from_callback(
      like.shape, like.sharding, lambda index: np.asarray(x, like.dtype)[index]
    )

  state = train_step.State(step, params, target, opt_state)
  return jax.tree.map(place, state, abstract)


def _first_params(run: PretrainRun, loaded: weights.Weights):
  """The stored ones of State.params, and State.target."""
  stored, parts = loaded.params, run.method.parts
  context = stored.get('encoder', stored.get('target'))
  target = stored.get('target', context)
  if 'target' not in parts:
    return {'encoder': target}, None
  params = {'encoder': context}
  if 'predictor' in stored:
    params['predictor'] = stored['predictor']
  return params, target


def _check_model(run: PretrainRun, loaded: weights.Weights) -> None:
  """Refuses weights that are not of the run's model."""
  stored = loaded.config
  expected = weights.complete_config(
    {
      **run.model,
      'image_size': run.image_shape[:2],
      'channels': run.image_shape[2],
    },
    loaded.params.keys() & set(run.method.parts),
  )
  differences = [
    f'{k} is {stored.get(k)} there and {value} in the config'
    for k, value in expected.items()
    if k not in _MAY_DIFFER and stored.get(k) != value
  ]
  if differences:
    raise UserError(
      f'{run.init_from} is of another model: {"; ".join(differences)}: change '
      'config.model or take other weights.'
    )


def _check_optimizer(run: PretrainRun, loaded: weights.Weights) -> None:
  """Refuses weights without the AdamW state that run.init_optimizer asks."""
  path = run.init_from
  if not run.init_optimizer:
    return
  fits = set(weights.TRAINED) <= set(run.method.parts)
  if loaded.optimizer is None or not fits:
    raise UserError(
      f'{path} holds no state of AdamW over encoder and predictor that '
      f'{run.method.name} can take: set init_optimizer=False to begin with a '
      'fresh one.'
    )
  if loaded.optimizer.step >= run.total_steps:
    raise UserError(
      f'{path} has made {loaded.optimizer.step} steps already and total_steps '
      f'is {run.total_steps}: take more, or init_optimizer=False to begin '
      'again from step 0.'
    )


def _log_what_is_missing(run: PretrainRun, loaded: weights.Weights) -> None:
  """Logs what the weights lack, and where their pixels differed."""
  path, params = run.init_from, loaded.params
  if 'predictor' in run.method.parts and 'predictor' not in params:
    logging.warning(
      '%s has no predictor: the run starts with a random one, of seed %d.',
      path,
      run.seed,
    )
  encoders = params.keys() & set(weights.ENCODERS.values())
  if len(encoders) == 1 and 'target' in run.method.parts:
    logging.warning(
      '%s has one encoder only, the %s: both of the run start with it.',
      path,
      weights.PARTS[min(encoders)].words,
    )
  for name in 'mean', 'std':
    stored, expected = loaded.config.get(name), getattr(run.method, name)
    if stored is not None and not np.allclose(stored, expected):
      logging.warning(
        'The pixels of %s had the %s %s, here data.%s is %s: the features '
        'will not be what they were.',
        path,
        name,
        tuple(stored),
        name,
        expected,
      )
  logging.info(
    'Beginning with the weights of %s%s.',
    path,
    f' and its optimizer, after step {loaded.optimizer.step}'
    if loaded.optimizer
    else '',
  )
