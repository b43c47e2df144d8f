"""A training step of I-JEPA in plain PyTorch, to measure ours against.

Written from the paper and published facts, not from the released code: modules
as a practitioner writes them, a loop over blocks, AdamW of torch.optim, an EMA
parameter by parameter. Its tensors have the release's names, and its numbers
are those of the release (tests/benchmarks/test_torch_ijepa.py).

Shapes in names: B images, E contexts and M targets of an image, K tokens of a
mask, N patches, T tokens of a sequence, D features.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
  def __init__(self, width: int, heads: int, fused: bool):
    super().__init__()
    self.heads, self.fused = heads, fused
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x_BTD):
    b, t, d = x_BTD.shape
    qkv = self.qkv(x_BTD).reshape(b, t, 3, self.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if self.fused:
      y = F.scaled_dot_product_attention(q, k, v)
    else:
      scale = q.shape[-1] ** -0.5
      y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
    return self.proj(y.transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
  def __init__(self, width: int, mlp_dim: int):
    super().__init__()
    self.fc1 = nn.Linear(width, mlp_dim)
    self.fc2 = nn.Linear(mlp_dim, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
  def __init__(self, width: int, heads: int, mlp_dim: int, fused: bool):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.attn = Attention(width, heads, fused)
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = Mlp(width, mlp_dim)

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
  def __init__(self, patch_size: int, channels: int, width: int):
    super().__init__()
    self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

  def forward(self, image_BCHW):
    return self.proj(image_BCHW).flatten(2).transpose(1, 2)


def take(x_BND, index_BK):
  """The tokens that an index names."""
  return x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[-1]))


class Encoder(nn.Module):
  def __init__(
    self, table_ND, patch_size, channels, depth, heads, mlp_dim, fused=False
  ):
    super().__init__()
    width = table_ND.shape[-1]
    self.register_buffer('pos_embed', table_ND[None])
    self.patch_embed = PatchEmbed(patch_size, channels, width)
    self.blocks = nn.ModuleList(
      Block(width, heads, mlp_dim, fused) for _ in range(depth)
    )
    self.norm = nn.LayerNorm(width, eps=1e-6)

  def forward(self, image_BCHW, context_BK=None):
    x = self.patch_embed(image_BCHW) + self.pos_embed
    if context_BK is not None:
      x = take(x, context_BK)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


class Predictor(nn.Module):
  def __init__(self, table_ND, out_width, depth, heads, fused=False):
    super().__init__()
    width = table_ND.shape[-1]
    self.register_buffer('predictor_pos_embed', table_ND)
    self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
    self.predictor_embed = nn.Linear(out_width, width)
    self.predictor_blocks = nn.ModuleList(
      Block(width, heads, 4 * width, fused) for _ in range(depth)
    )
    self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
    self.predictor_proj = nn.Linear(width, out_width)

  def forward(self, z_BKD, context_BK, targets_BMK):
    """Predictions [B, M, K, D], each block in a pass of its own."""
    b, m, k = targets_BMK.shape
    x = self.predictor_embed(z_BKD) + self.predictor_pos_embed[context_BK]
    x = x[:, None].expand(-1, m, -1, -1)
    masked = self.mask_token + self.predictor_pos_embed[targets_BMK]
    x = torch.cat([x, masked], 2).flatten(0, 1)
    for block in self.predictor_blocks:
      x = block(x)
    x = self.predictor_proj(self.predictor_norm(x)[:, -k:])
    return x.unflatten(0, (b, m))


class Trainer:
  """Context encoder, predictor, target encoder and optimizer.

  Attributes:
    loss: of images, contexts and targets; may be compiled.
  """

  def __init__(self, encoder: Encoder, predictor: Predictor):
    self.encoder, self.predictor = encoder, predictor
    self.target = copy.deepcopy(encoder).requires_grad_(False)
    self.optimizer = torch.optim.AdamW(_groups(encoder, predictor))
    self.loss = self._loss

  def compile(self) -> None:
    self.loss = torch.compile(self._loss)

  def step(self, batch, lr: float, weight_decay: float, momentum: float):
    """One step; returns the loss.

    Args:
      batch: float image [B, C, H, W], normalised; int64 context [B, E, K] and
        targets [B, M, K].
    """
    for group in self.optimizer.param_groups:
      group['lr'] = lr
      group['weight_decay'] = weight_decay if group['decayed'] else 0.0
    loss = self.loss(batch['image'], batch['context'], batch['targets'])
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    with torch.no_grad():
      parameters = zip(
        self.encoder.parameters(), self.target.parameters(), strict=True
      )
      for own, target in parameters:
        target.mul_(momentum).add_(own.detach(), alpha=1 - momentum)
    return loss.detach()

  def _loss(self, image_BCHW, context_BEK, targets_BMK):
    with torch.no_grad():
      h = self.target(image_BCHW)
      h = F.layer_norm(h, h.shape[-1:])
      y = take(h, targets_BMK.flatten(1)).unflatten(1, targets_BMK.shape[1:])
    losses = []
    for context_BK in context_BEK.unbind(1):
      z = self.encoder(image_BCHW, context_BK)
      prediction = self.predictor(z, context_BK, targets_BMK)
      losses.append(F.smooth_l1_loss(prediction, y))
    return torch.stack(losses).mean()


def _groups(*modules) -> list[dict]:
  """Kernels and the mask token are decayed, biases and norms are not."""
  parameters = [p for module in modules for p in module.parameters()]
  return [
    {'params': [p for p in parameters if p.ndim > 1], 'decayed': True},
    {'params': [p for p in parameters if p.ndim == 1], 'decayed': False},
  ]
