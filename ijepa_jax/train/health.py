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
import jax.numpy as jnp
from absl import logging

from ijepa_jax.methods.ijepa import IJEPA
from ijepa_jax.models import vit
from ijepa_jax.probes import statistics
from ijepa_jax.runtime import sharding


def signals(model: IJEPA, params, target, batch) -> dict[str, jax.Array]:
  """All signals; pure, for `jax.jit`.

  Args:
    model: the static part.
    params: {'encoder', 'predictor'}.
    target: the target encoder's parameters.
    batch: as in `ijepa.loss_and_grad`, of B images.

  Returns:
    float32 []:
    rankme: effective rank of the images' features, 1 to min(B, D) (Garrido et
      al., ICML 2023), and rankme_share of that.
    feature_std: of the images' features, averaged over features.
    image_cosine: mean cosine between features of two images.
    token_cosine: mean cosine between two tokens of an image.
    loss: of this batch.
    gap: by how much the loss would be greater against another image's targets
      at the same positions, and gap_share of that loss. Near zero, position
      alone is predicted.
    Features are average pools of the target encoder's output.
  """
  h_BND = model.encode(target, batch['image'])
  y_BND = model.standardize(h_BND)
  predictions = model.predict(
    params, batch['image'], batch['context'], batch['targets']
  )
  own = vit.gather(y_BND, batch['targets'])
  # At the same positions, of the next image: each gets another one's.
  swapped = vit.gather(jnp.roll(y_BND, 1, axis=0), batch['targets'])
  loss = model.distance(predictions, own)
  other = model.distance(predictions, swapped)
  x_BD = h_BND.mean(1)
  rank = statistics.rankme(x_BD)
  return {
    'rankme': rank,
    'rankme_share': rank / min(x_BD.shape),
    'feature_std': x_BD.std(0).mean(),
    'image_cosine': statistics.mean_cosine(x_BD[None])[0],
    'token_cosine': statistics.mean_cosine(h_BND).mean(),
    'loss': loss,
    'gap': other - loss,
    'gap_share': (other - loss) / other,
  }


SIGNALS = (
  *('rankme', 'rankme_share', 'feature_std', 'image_cosine', 'token_cosine'),
  *('loss', 'gap', 'gap_share'),
)


class Health:
  """The signals of a run, `names`, on one batch, and its alarms in the
  log.

  Args:
    model: the static part.
    batch: on the devices; see `signals`.
    mesh: of these devices.
    quiet: steps before any alarm: an untrained predictor tells nothing.
  """

  def __init__(self, model: IJEPA, batch, mesh, quiet: int = 0):
    self.names = [f'health/{k}' for k in SIGNALS]
    self._batch, self._quiet, self._rung = batch, quiet, set()
    self._run = jax.jit(
      functools.partial(signals, model),
      out_shardings=sharding.replicated(mesh),
    )

  def __call__(self, state) -> dict[str, float]:
    """{'health/<signal>': value} of an train_step.State."""
    values = jax.device_get(self._run(state.params, state.target, self._batch))
    step = int(state.step)
    rung = alarms(values) if step > self._quiet else {}
    # Each once, until it has been quiet again.
    for name in rung.keys() - self._rung:
      logging.warning('Step %d: %s', step, rung[name])
    self._rung = set(rung)
    return {f'health/{k}': float(v) for k, v in values.items()}


@dataclasses.dataclass(frozen=True)
class Alarm:
  """A limit of one signal; `above` says on which side it is healthy."""

  signal: str
  limit: float
  above: bool
  words: str

  def rings(self, values) -> bool:
    value = values[self.signal]
    return not (value > self.limit if self.above else value < self.limit)


_COLLAPSE = (
  'try a lower optim.peak_lr, a longer optim.warmup_steps or an ema.first '
  'nearer to 1, and for a small model model.init=fan_in'
)
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
)


def alarms(values: dict[str, float]) -> dict[str, str]:
  """{signal: sentence} of the limits that are passed; NaN passes all."""
  return {
    a.signal: (
      f'{a.signal} is {values[a.signal]:.3g}, '
      f'{"below" if a.above else "above"} {a.limit:g}: {a.words}.'
    )
    for a in ALARMS
    if a.rings(values)
  }
