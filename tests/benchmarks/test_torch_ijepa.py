"""The step in PyTorch that ours is measured against is I-JEPA's."""

import pathlib

import numpy as np
import pytest

from benchmarks.parity import subtree
from tests.close import FLOAT32, TRAINED, close

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/release_tiny.npz'


@pytest.mark.parametrize('fused', [False, True])
def test_it_is_the_releases(fused):
  """Losses of all steps, the first gradients, and the target in the end."""
  torch = pytest.importorskip('torch')
  from benchmarks import torch_ijepa

  golden = dict(np.load(GOLDEN))
  config = {
    k: v.item() for k, v in subtree(golden, 'config').items() if v.ndim == 0
  }
  tensors = {
    part: {
      k: torch.tensor(v) for k, v in subtree(golden, f'init/{part}').items()
    }
    for part in ('encoder', 'predictor')
  }
  heads = config['heads']
  encoder = torch_ijepa.Encoder(
    tensors['encoder']['pos_embed'][0],
    patch_size=config['patch'],
    channels=3,
    depth=config['depth'],
    heads=heads,
    mlp_dim=len(tensors['encoder']['blocks.0.mlp.fc1.bias']),
    fused=fused,
  )
  predictor = torch_ijepa.Predictor(
    tensors['predictor']['predictor_pos_embed'][0],
    *(config['dim'], config['pdepth'], heads, fused),
  )
  encoder.load_state_dict(tensors['encoder'])
  del tensors['predictor']['predictor_pos_embed']
  predictor.load_state_dict(tensors['predictor'], strict=False)
  trainer = torch_ijepa.Trainer(encoder, predictor)
  losses = []
  for s in range(config['steps']):
    g = subtree(golden, f'step{s}')
    batch = {
      'image': torch.tensor(g['images_nchw']),
      'context': torch.tensor(g['context_masks']).swapaxes(0, 1).long(),
      'targets': torch.tensor(g['target_masks']).swapaxes(0, 1).long(),
    }
    schedule = (golden[k][s].item() for k in ('lr', 'wd', 'momentum'))
    losses.append(trainer.step(batch, *schedule).item())
    if s == 0:
      for name, theirs in subtree(golden, 'step0/grad/encoder').items():
        ours = encoder.get_parameter(name).grad
        close(ours.numpy(), theirs, FLOAT32, name=name)
  close(losses, golden['losses'], TRAINED)
  moved = golden['lr'].sum()
  for name, theirs in subtree(golden, 'final/target_encoder').items():
    if name != 'pos_embed' and 'qkv.bias' not in name:
      ours = trainer.target.get_parameter(name).numpy()
      close(ours, theirs, 1e-2, scale=moved, name=name)
