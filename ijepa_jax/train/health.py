"""Whether a run is healthy: signals on one fixed batch, and alarms in words.

The loss does not tell: it rises while targets gain variance, and falls when
they collapse. docs/health.md shows how these signals look in runs that learn
and in runs that collapse.

LiDAR is not among them: it wants some 50 views of each of 1000 images, fifty
times what all signals here cost together, and where images are not augmented
its views are all the same.
"""

import dataclasses
import functools

import jax
from absl import logging

from ijepa_jax.methods.method import Method
from ijepa_jax.probes import statistics
from ijepa_jax.runtime import sharding

# Of every method; a method adds its own.
SIGNALS = (
  *('rankme', 'rankme_share', 'feature_std', 'image_cosine', 'token_cosine'),
)


def signals(method: Method, params, target, batch) -> dict[str, jax.Array]:
  """All signals; pure, for `jax.jit`.

  Args:
    method: the static part.
    params, target: of a train_step.State.
    batch: what `method.batch_keys` name, of B images.

  Returns:
    float32 [], of the encoder that is judged, whose features are the average
    pools of its output; then those of `method.signals`:
    rankme: effective rank of the images' features, 1 to min(B, D) (Garrido et
      al., ICML 2023), and rankme_share of that.
    feature_std: of the images' features, averaged over features.
    image_cosine: mean cosine between features of two images.
    token_cosine: mean cosine between two tokens of an image.
  """
  h_BND = method.encode(method.evaluated(params, target), batch['image'])
  x_BD = h_BND.mean(1)
  rank = statistics.rankme(x_BD)
  return {
    'rankme': rank,
    'rankme_share': rank / min(x_BD.shape),
    'feature_std': x_BD.std(0).mean(),
    'image_cosine': statistics.mean_cosine(x_BD[None])[0],
    'token_cosine': statistics.mean_cosine(h_BND).mean(),
    **method.signals(params, target, h_BND, batch),
  }


class Health:
  """A monitor: the signals of a run on one batch, and its alarms in the log.

  Args:
    method: the static part.
    batch: on the devices; see `signals`.
    mesh: of these devices.
    warmup_steps: before any alarm: an untrained predictor says nothing.
  """

  def __init__(self, method: Method, batch, mesh, warmup_steps: int = 0):
    names = (*SIGNALS, *method.signal_names)
    self.names = [f'health/{name}' for name in names]
    self.batch, self._warmup_steps, self._active = batch, warmup_steps, set()
    self._method, self._mesh = method, mesh
    self._run = jax.jit(
      functools.partial(signals, method),
      out_shardings=sharding.replicated(mesh),
    )

  def __call__(self, state) -> dict[str, float]:
    """{'health/<signal>': value} of a train_step.State."""
    values = self.measure(state)
    step = int(state.step)
    active = {}
    if step > self._warmup_steps:
      active = self.alarms(values)
    # Warns once per alarm, and again only after it has cleared.
    for name in active.keys() - self._active:
      logging.warning('Step %d: %s', step, active[name])
    self._active = set(active)
    return values

  def measure(self, state) -> dict[str, float]:
    """The same of any state, without alarms in the log."""
    with sharding.gathering(self._mesh):
      values = self._run(state.params, state.target, self.batch)
    values = jax.device_get(values)
    return {f'health/{k}': float(v) for k, v in values.items()}

  def alarms(self, values: dict[str, float]) -> dict[str, str]:
    """{signal: sentence} of what `measure` returned, see `alarms`."""
    values = {k.removeprefix('health/'): v for k, v in values.items()}
    return alarms(values, self._method)


@dataclasses.dataclass(frozen=True)
class Alarm:
  """A limit of one signal; `above` says on which side it is healthy."""

  signal: str
  limit: float
  above: bool
  words: str

  def is_triggered(self, values) -> bool:
    value = values[self.signal]
    return not (value > self.limit if self.above else value < self.limit)


# '{advice}' is the method's own.
_COLLAPSE = '{advice}, and for a small model model.init=fan_in'
ALARMS = (
  Alarm(
    'rankme_share',
    0.05,
    True,
    f'the features span few directions (dimensional collapse): {_COLLAPSE}',
  ),
  Alarm(
    'feature_std',
    0.02,
    True,
    f'all images have nearly the same features (collapse): {_COLLAPSE}',
  ),
  Alarm(
    'token_cosine',
    0.99,
    False,
    f'all tokens of an image are nearly the same (collapse): {_COLLAPSE}',
  ),
  Alarm(
    'gap_share',
    0.05,
    True,
    "another image's targets are predicted as well (positional collapse: the "
    'position tells all there is to predict): try model.init=fan_in, larger '
    'or fewer targets, and look whether the images differ at all',
  ),
  Alarm(
    'explained',
    0.02,
    True,
    'of the hidden pixels only what all patches have in common is predicted: '
    'try a higher optim.peak_lr or a longer training, and for a small model '
    'model.init=fan_in',
  ),
  Alarm(
    'embedding_std',
    0.1,
    True,
    f'all images have nearly the same embedding (collapse): {_COLLAPSE}',
  ),
  Alarm(
    'embedding_correlation',
    0.5,
    False,
    'the features of the embeddings repeat each other (dimensional collapse): '
    'try a greater vicreg.covariance or vicreg.sigreg, and a larger batch_size',
  ),
)


def alarms(values: dict[str, float], method: Method) -> dict[str, str]:
  """{signal: sentence} of the limits that are passed; NaN passes all."""
  return {
    a.signal: (
      f'{a.signal} is {values[a.signal]:.3g}, '
      f'{"below" if a.above else "above"} {a.limit:g}: '
      f'{a.words.format(advice=method.collapse_advice)}.'
    )
    for a in ALARMS
    if a.signal in values and a.is_triggered(values)
  }
