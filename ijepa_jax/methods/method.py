"""What every method is to the step and to the loop."""

from typing import Any, ClassVar, Protocol

import jax

from ijepa_jax.models import vit


class Method(Protocol):
  """What a training learns: static, frozen and hashable, without arrays.

  A method is added by one file: the step (train_step.py), the loop
  (train/loop.py) and the signals of health ask for no more than this.

  Attributes:
    encoder: what evaluations take.
    batch_keys: of a batch, what the step gets: 'image', 'context', ...
    signal_names: the keys of `signals`.
  """

  encoder: vit.Encoder
  batch_keys: ClassVar[tuple[str, ...]]
  signal_names: ClassVar[tuple[str, ...]]

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

  def signals(self, params, tokens_BND, batch) -> dict[str, jax.Array]:
    """float32 [] signals of its own health, on one batch.

    `tokens_BND` are `encode`'s of the encoder that is judged.
    """
