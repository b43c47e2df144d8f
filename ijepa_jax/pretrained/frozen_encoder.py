"""A frozen encoder for evaluations, or raw pixels in its place.

The paper evaluates the average pool over the tokens of the last layer, and the
concatenation of those of the last four.
"""

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, vit
from ijepa_jax.runtime.checkpoint import checksums

NUM_LAST_LAYERS = 4  # layers that the paper's wider features concatenate


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
  """An encoder, its parameters, and the images that it expects.

  Attributes:
    encoder: the Linen module.
    params: its parameters, float32, on the devices.
    mean, std: per channel, of pixels in [0, 1].
    image_size: (H, W) in pixels that images are brought to: that of the
      training, unless the caller asked for another.
    channels: of its images.
    name: for tables and logs.
    table: the position table that is interpolated, float32 [rows, columns, D];
      None: the sin-cos table is computed for every grid.
    method: by which it was trained; I-JEPA where a file does not say.
  """

  encoder: vit.Encoder
  params: dict
  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: tuple[int, int]
  channels: int
  name: str
  table: np.ndarray | None = None
  method: str = 'ijepa'

  def adapted(
    self, table_ND, size, pos_embed: str, dtype: str | None
  ) -> 'FrozenEncoder':
    """Returns this encoder for other images, or computed in another type.

    Args:
      table_ND: the stored position table, of `self.image_size`; None: it is the
        computed one.
      size: (H, W) in pixels, or None to keep it.
      pos_embed, dtype: see load.load_encoder.

    Raises:
      UserError: the size is not a whole number of patches.
    """
    p, name, table = self.encoder.patch_size, self.name, None
    if size and (size[0] % p or size[1] % p):
      raise UserError(
        f'image_size is {size}: take a whole number of patches of {p} pixels.'
      )
    encoder = self.encoder.clone(dtype=jnp.dtype(dtype or self.encoder.dtype))
    if encoder.dtype == jnp.float32:  # cuDNN's attention is of 16 bits alone
      encoder = encoder.clone(attention='xla')
    if size not in (None, self.image_size):
      name += f', at {size[0]} x {size[1]}'
    if pos_embed == 'interpolate':
      name += ', positions interpolated'
      grid = tuple(n // p for n in self.image_size)
      if table_ND is None:
        table_ND = positions.sincos_table(grid, encoder.width)
      table = table_ND.reshape(*grid, -1)
    return dataclasses.replace(
      self,
      encoder=encoder,
      image_size=size or self.image_size,
      name=name,
      table=table,
    )

  @functools.cached_property
  def fingerprint(self) -> str:
    """A text that changes with whatever changes the features."""
    identity = [checksums.digests(self.params), repr(self.encoder)]
    identity += [self.mean, self.std, self.image_size, self.channels]
    if self.table is not None:
      digest = hashlib.sha256(self.table.tobytes()).hexdigest()
      identity.append([self.table.shape, digest])
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

  def normalize(self, image_BHWC: jax.Array) -> jax.Array:
    """Returns uint8 images as normalized float32; floats as they are."""
    return vit.normalize(image_BHWC, self.mean, self.std)

  def position(self, image_shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns the position table of images [B, H, W, C], float32 [N, D].

    None: the encoder computes it.
    """
    if self.table is None:
      return None
    rows, columns, width = self.table.shape
    p = self.encoder.patch_size
    grid = image_shape[1] // p, image_shape[2] // p
    return positions.resize(
      self.table.reshape(-1, width), (rows, columns), grid
    )

  def encode(self, params, image_BHWC, **kwargs):
    """Applies the encoder to full images of any whole number of patches.

    Args:
      params: of the encoder.
      image_BHWC: uint8, or float32 already normalized.
      **kwargs: of the encoder.

    Returns:
      float32 [B, N, D]; with `layers` those too.
    """
    return self.encoder.apply(
      {'params': params},
      self.normalize(image_BHWC),
      position_ND=self.position(image_BHWC.shape),
      **kwargs,
    )

  def pooled(self, params, image_BHWC) -> tuple[jax.Array, jax.Array]:
    """Computes the features that the paper probes, in one pass; for `jax.jit`.

    They are the average pool over the tokens of the last layer, and the
    concatenation of those of the last 4 layers, each after the encoder's last
    norm.

    Args:
      params: of the encoder.
      image_BHWC: uint8, or float32 already normalized.

    Returns:
      float32 [B, D] and [B, 4 D] (fewer where there are fewer layers).
    """
    tokens, layers_LBD = self.encode(params, image_BHWC, layers='pooled')
    last = jnp.moveaxis(layers_LBD[-NUM_LAST_LAYERS:], 0, 1)
    return tokens.mean(1), last.reshape(len(tokens), -1)


@dataclasses.dataclass(frozen=True)
class RawPixels:
  """Raw pixels in the place of an encoder's features; see `FrozenEncoder`."""

  image_size: tuple[int, int]
  channels: int
  patch_size: int
  params: dict = dataclasses.field(default_factory=dict)
  fingerprint: str = 'pixels'
  name: str = 'raw pixels'

  def encode(self, params, image_BHWC) -> jax.Array:
    """Returns the patches, which don't say where they are, as tokens.

    They are float32 [B, N, patch_size**2 C] in [0, 1].
    """
    return vit.patchify(image_BHWC.astype(jnp.float32) / 255, self.patch_size)

  def pooled(self, params, image_BHWC) -> tuple[jax.Array, jax.Array]:
    """Returns float32 [B, H W C] in [0, 1], twice."""
    x = image_BHWC.reshape(len(image_BHWC), -1).astype(jnp.float32) / 255
    return x, x
