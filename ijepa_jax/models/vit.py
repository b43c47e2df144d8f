"""The vision transformers of I-JEPA: encoder and predictor, in Flax Linen.

The encoder maps an image, or only its context patches, to one token a patch.
The predictor maps the context tokens and the positions of the targets to a
prediction for each target token. No class token anywhere; positions are fixed
2-D sin-cos tables (paper section 3 and appendix A).

Shapes in names: B images, H x W pixels, C channels, N patches of the grid, K
tokens of a mask, M target blocks, T tokens of a sequence, D features.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ijepa_jax.errors import UserError, one_of
from ijepa_jax.models import positions, transformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(image_BHWC: jax.Array, mean, std) -> jax.Array:
  """uint8 pixels to normalised float32; float images pass as they are."""
  if image_BHWC.dtype != jnp.uint8:
    return image_BHWC
  mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
  return (image_BHWC.astype(jnp.float32) / 255 - mean) / std


# The table of the method: width, depth, heads and MLP width by name.
SIZES = {
  'tiny': dict(width=192, depth=12, heads=3, mlp_dim=768),
  'small': dict(width=384, depth=12, heads=6, mlp_dim=1536),
  'base': dict(width=768, depth=12, heads=12, mlp_dim=3072),
  'large': dict(width=1024, depth=24, heads=16, mlp_dim=4096),
  'huge': dict(width=1280, depth=32, heads=16, mlp_dim=5120),
  'giant': dict(width=1408, depth=40, heads=16, mlp_dim=6144),
}


def patchify(image_BHWC: jax.Array, patch_size: int) -> jax.Array:
  """Cuts images into row-major patches: [B, N, patch_size**2 * C].

  Raises:
    UserError: the image is not a whole number of patches.
  """
  b, h, w, c = image_BHWC.shape
  p = patch_size
  if h % p or w % p:
    raise UserError(
      f'An image of {h} x {w} pixels is not a whole number of {p} x {p} '
      'patches: change data.image_size or model.patch_size.'
    )
  # A patch's row stays whole: TPUs' compiler pads an axis of channels to 128.
  x = image_BHWC.reshape(b, h // p, p, w // p, p * c)
  return x.transpose(0, 1, 3, 2, 4).reshape(b, -1, p * p * c)


def gather(x_BND: jax.Array, index_BK: jax.Array) -> jax.Array:
  """Takes the tokens [B, ..., K, D] that `index` [B, ..., K] names."""
  b, *rest = index_BK.shape
  flat = index_BK.reshape(b, -1, 1)
  return jnp.take_along_axis(x_BND, flat, axis=1).reshape(
    b, *rest, x_BND.shape[-1]
  )


def layer_norm(x: jax.Array) -> jax.Array:
  """PyTorch's LayerNorm without parameters, of targets."""
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / jnp.sqrt(variance + 1e-5)


class Encoder(transformer.Transformer):
  """The ViT encoder, context and target alike (paper section 3)."""

  patch_size: int = 16

  @nn.compact
  def __call__(
    self,
    image_BHWC: jax.Array,
    context_BK: jax.Array | None = None,
    *,
    position_ND: np.ndarray | None = None,
    layers: str = '',
    drop_path: float = 0.0,
  ):
    """Encodes an image, or only the patches that `context` names.

    Args:
      image_BHWC: float [B, H, W, C], normalised.
      context_BK: integer [B, K] token indices; None for the full image.
      position_ND: float [N, D], the positions of all N patches; None: the
        sin-cos table of the image's grid.
      layers: 'tokens': also return the output of every block, before the last
        norm. 'pooled': also return each block's output after the last norm,
        averaged over tokens; only averages are kept, not tokens.
      drop_path: rate at which the last block's branches are left out of an
        image, rising linearly from 0 at the first; takes a 'drop_path' key.

    Returns:
      float32 [B, N or K, D]; with `layers` also [depth, B, N or K, D], or of
      'pooled' float32 [depth, B, D].
    """
    h, w = image_BHWC.shape[1:3]
    patches = patchify(image_BHWC, self.patch_size)
    if position_ND is None:
      grid = h // self.patch_size, w // self.patch_size
      position_ND = positions.sincos_table(grid, self.width)
    position = jnp.asarray(position_ND)
    if context_BK is not None:
      # Each token depends on its own patch alone until the first attention, so
      # gathering before the embedding is the same and embeds fewer patches.
      patches = gather(patches, context_BK)
      position = position[context_BK]
    x = transformer.dense('patch_embed', self.width, self)(patches)
    x = x + position.astype(x.dtype)
    x, outputs = self.blocks(x, transformer.BLOCK_OUTPUTS[layers], drop_path)
    last = transformer.LayerNorm(jnp.float32, name='norm')
    x = last(x)
    if layers == 'pooled':
      # Scale and offset are linear, so they may come after the average.
      affine = last.variables['params']
      outputs = outputs * affine['scale'] + affine['bias']
    return (x, outputs) if layers else x


class Predictor(transformer.Transformer):
  """The narrow ViT that predicts target tokens (paper section 3)."""

  out_width: int = 0

  @nn.compact
  def __call__(
    self,
    z_BKD: jax.Array,
    context_BK: jax.Array,
    targets_BMK: jax.Array,
    grid: tuple[int, int],
    noise_BMKD: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts each target block in a pass of its own.

    Args:
      z_BKD: float [B, Kc, D], the context encoder's output.
      context_BK: integer [B, Kc], where those tokens stand.
      targets_BMK: integer [B, M, Kt], the tokens to predict.
      grid: rows and columns of patches.
      noise_BMKD: float [B, M, Kt, D], added to the positions of the tokens to
        predict by the matrix that takes the context's tokens.

    Returns:
      float32 [B, M, Kt, out_width].
    """
    b, m, k = targets_BMK.shape
    position = jnp.asarray(positions.sincos_table(grid, self.width)).astype(
      self.dtype
    )
    mask_token = self.param('mask_token', self.init_token, (self.width,))
    embed = transformer.dense('embed', self.width, self)
    x = embed(z_BKD) + position[context_BK]
    masked = mask_token.astype(self.dtype) + position[targets_BMK]
    if noise_BMKD is not None:
      noise_BMKD, kernel = transformer.gather_weights(
        noise_BMKD, embed.variables['params']['kernel'], dtype=self.dtype
      )
      masked += noise_BMKD @ kernel
    x = jnp.broadcast_to(x[:, None], (b, m, *x.shape[1:]))
    x = jnp.concatenate([x, masked], axis=2).reshape(b * m, -1, self.width)
    x = self.last_tokens(x, k)
    x = transformer.LayerNorm(self.dtype, name='norm')(x)
    x = transformer.dense('proj', self.out_width, self)(x)
    return x.reshape(b, m, k, self.out_width).astype(jnp.float32)

  @staticmethod
  def init_token(key, shape):
    # One vector has no fan-in: .02 whatever the initialisation of the kernels.
    return nn.initializers.normal(0.02)(key, shape, jnp.float32)


def rescale_residuals(params):
  """Divides what block l adds to its stream by sqrt(2 l), l from 1.

  The release computes this for the attention output and the second MLP layer
  and then overwrites it; `init='rescaled'` is what it would have been.
  """

  def rescale(path, x):
    names = [entry.key for entry in path]
    if names[-1] == 'kernel' and names[-2] in ('proj', 'fc2') and x.ndim == 3:
      block = jnp.arange(1, len(x) + 1, dtype=jnp.float32)
      return x / jnp.sqrt(2.0 * block)[:, None, None]
    return x

  return jax.tree_util.tree_map_with_path(rescale, params)


def make_models(
  *,
  size: str,
  patch_size: int,
  predictor_depth: int,
  predictor_width: int = 384,
  predictor_heads: int | None = None,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp_dim: int | None = None,
  **computation,
) -> tuple[Encoder, Predictor]:
  """Makes encoder and predictor: an argument for each knob of config.model.

  Args:
    size: a name of SIZES; width to mlp_dim, where given, take the place of the
      size's. A width brings an MLP four times as wide unless mlp_dim is given.
    patch_size: in pixels.
    predictor_depth, predictor_width, predictor_heads: of the predictor, which
      has the encoder's number of heads by default, and an MLP four times its
      width (release).
    **computation: see `_computation`.

  Raises:
    UserError: an unknown name, or a width that the heads do not divide.
  """
  one_of('model.size', size, SIZES)
  computation = _computation(**computation)
  sizes = dict(SIZES[size])
  if width:
    sizes |= dict(width=width, mlp_dim=4 * width)
  by_hand = dict(depth=depth, heads=heads, mlp_dim=mlp_dim)
  sizes |= {k: v for k, v in by_hand.items() if v}
  predictor_sizes = dict(
    width=predictor_width,
    depth=predictor_depth,
    heads=predictor_heads or sizes['heads'],
    mlp_dim=4 * predictor_width,
  )
  for name, s in (('model', sizes), ('predictor', predictor_sizes)):
    if s['width'] % s['heads'] or s['width'] % 4:
      raise UserError(
        f'{name}.width is {s["width"]}: it must be a multiple of 4 and of the '
        f'{s["heads"]} heads.'
      )
    if computation.get('attention') == 'pallas' and s['width'] % 128:
      raise UserError(
        f"model.attention is 'pallas' and {name}.width {s['width']}: its "
        'kernel takes multiples of 128; take xla.'
      )
  return (
    Encoder(**sizes, **computation, patch_size=patch_size),
    Predictor(**predictor_sizes, **computation, out_width=sizes['width']),
  )


def _computation(
  *,
  init: str = 'release',
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'xla',
  unroll: int = 1,
) -> dict:
  """Fields of the modules that say how they compute, see configs/base.py."""
  for name, value, known in (
    ('init', init, transformer.INITS),
    ('remat', remat, transformer.REMAT),
    ('dtype', dtype, ('float32', 'bfloat16')),
    ('attention', attention, ('xla', 'cudnn', 'pallas')),
  ):
    one_of(f'model.{name}', value, known)
  return dict(
    kernel_init=transformer.INITS[init],
    dtype=jnp.dtype(dtype),
    remat=remat,
    attention=attention,
    unroll=unroll,
  )
