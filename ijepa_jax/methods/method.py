"""What every method is to the step, to the loop and to what looks at a run."""

from typing import Any, ClassVar, Protocol

import jax

from ijepa_jax.models import vit


class Method(Protocol):
  """What a training learns: static, frozen and hashable, without arrays.

  A method is added by one file and a line of from_config.METHODS: the step
  (train_step.py), the loop (train/loop.py), the input pipeline, the signals of
  health, the probe and whatever reads a run ask for no more than this.

  Attributes:
    name: as config.method has it.
    encoder: what evaluations take.
    mean, std: of its pixels, per channel of pixels in [0, 1].
    sampler: of masks, see masks.py: the pipeline then gives `context` and
      `targets` beside each `image`; None: it does not.
    num_views: versions of each picture that the pipeline makes: of 1 `image`
      is [B, H, W, C], of V above 1 it is [B, V, H, W, C].
    batch_keys: of a batch, what the step gets: 'image', 'context', ...
    signal_names: the keys of `signals`.
    parts: what is handed on of it, by the names in pretrained/formats/
      weights.py: 'encoder', and what else they know. `params` may have more.
    judged: in words, the encoder that is judged.
    collapse_advice: what may help where features collapse, in words.
  """

  name: ClassVar[str]
  encoder: vit.Encoder
  mean: tuple[float, ...]
  std: tuple[float, ...]
  sampler: Any
  num_views: int
  batch_keys: ClassVar[tuple[str, ...]]
  signal_names: ClassVar[tuple[str, ...]]
  parts: ClassVar[tuple[str, ...]]
  judged: ClassVar[str]
  collapse_advice: ClassVar[str]

  def init_params(self, key: jax.Array, image_shape) -> dict[str, Any]:
    """Fresh parameters by part: {'encoder': ..., 'predictor': ...}."""

  def init_target(self, params) -> Any:
    """What follows `params` without a gradient; None: there is no such thing.

    It shares no buffer with `params`.
    """

  def loss(self, params, target, batch, key) -> tuple[jax.Array, dict]:
    """float32 [] and metrics; differentiated by `params` alone."""

  def update_target(self, target, params, step) -> tuple[Any, dict]:
    """The target after a step, `params` being new; and metrics."""

  def evaluated(self, params, target) -> Any:
    """Parameters of the encoder that is judged."""

  def encode(self, params, image_BHWC: jax.Array) -> jax.Array:
    """Tokens of full images by that encoder: float32 [B, N, D]."""

  def batch_shapes(self, batch_size: int, image_shape) -> list[dict]:
    """Every batch that a step may have: {key: jax.ShapeDtypeStruct}.

    Each is compiled before the first step.
    """

  def signals(self, params, target, tokens_BND, batch) -> dict[str, jax.Array]:
    """float32 [] signals of its own health, on one batch.

    `tokens_BND` are `encode`'s of the encoder that is judged.
    """

  def settings(self) -> dict[str, Any]:
    """Knobs that change what the networks compute, and no array: {knob: value}.

    A run does not go on with others.
    """


class WithoutTarget:
  """The part of a method that no network follows: the encoder is judged."""

  parts = ('encoder',)
  judged = 'encoder'
  collapse_advice = 'try a lower optim.peak_lr or a longer optim.warmup_steps'

  def init_target(self, params) -> None:
    return None

  def update_target(self, target, params, step) -> tuple[None, dict]:
    return None, {}

  def evaluated(self, params, target) -> Any:
    return params['encoder']


def collapse_statistics(h_BND: jax.Array) -> dict[str, jax.Array]:
  """How far features differ; both near zero is collapse.

  `feature_std`: of the average-pooled features between images; `token_std`: of
  the tokens within an image. Both averaged over features.
  """
  return {
    'feature_std': h_BND.mean(1).std(0).mean(),
    'token_std': h_BND.std(1).mean(),
  }
