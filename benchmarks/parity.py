"""Compares this I-JEPA with numbers that the released PyTorch code produced.

    python benchmarks/parity.py tests/golden/release_tiny.npz
    python benchmarks/parity.py tests/golden/release_tiny.npz --dtype=bfloat16

Reads any file of the golden format (inputs, parameters before and after,
gradients and schedules of a short float32 run of the release), makes the same
run here, and prints the largest error of each quantity beside its bound. Exits
with 0 only when all are within. Errors are shares: of the largest value, and
after steps of AdamW of the way that it can have gone, the sum of the rates.

With --dtype=bfloat16 this side computes in bfloat16, as recipes do, and bounds
are wider. Where the steps of AdamW lead is then left out: a step is as large as
the rate, whatever the gradient, and may turn with what is rounded.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterator

import jax
import numpy as np

from ijepa_jax.methods import ijepa, train_step
from ijepa_jax.methods.optim import adamw, schedules
from ijepa_jax.models import positions, vit
from ijepa_jax.pretrained.formats import release_names

# Bounds; tests/close.py says why they are shares.
FLOAT64, FLOAT32, TRAINED = 1e-9, 2e-5, 5e-4
# AdamW turns a gradient that is rounding alone into a step of any size up to
# the rate: where it is small, errors are large.
ADAMW = 1e-2
# Of a network that computes with 8 bits of mantissa, and of its gradients.
BFLOAT16, BFLOAT16_GRADIENTS = 5e-2, 2e-1


def subtree(golden, prefix: str) -> dict[str, np.ndarray]:
  prefix += '/'
  return {
    k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)
  }


def parameters(golden, prefix: str, *parts: str) -> dict:
  names = {'target_encoder': 'encoder'}
  return {
    part: release_names.from_release(
      subtree(golden, f'{prefix}/{part}'), names.get(part, part)
    )
    for part in parts
  }


def batch(golden, step: int) -> dict[str, np.ndarray]:
  g = subtree(golden, f'step{step}')
  return {
    'image': g['images_nchw'].transpose(0, 2, 3, 1),
    'context': g['context_masks'].swapaxes(0, 1).astype(np.int32),
    'targets': g['target_masks'].swapaxes(0, 1).astype(np.int32),
  }


def largest(ours, theirs) -> float:
  """Largest error, as a share of the largest value."""
  error = np.abs(np.asarray(ours, np.float64) - theirs).max()
  return float(error / np.abs(theirs).max())


def tree_errors(ours, theirs, scale=None) -> tuple[float, float]:
  """Largest error over a tree: (key biases, everything else).

  Key biases, the middle third of each qkv bias, have a true gradient of zero;
  Adam divides their rounding by itself. Errors are shares of `scale`, without
  one of each tensor's largest entry.
  """
  keys, rest = [0.0], [0.0]

  def compare(path, a, b):
    error = np.abs(np.asarray(a, np.float64) - b) / (scale or np.abs(b).max())
    if [entry.key for entry in path][-2:] == ['qkv', 'bias']:
      third = error.shape[-1] // 3
      keys.append(error[..., third : 2 * third].max())
      rest.extend((error[..., :third].max(), error[..., 2 * third :].max()))
    else:
      rest.append(error.max())

  jax.tree_util.tree_map_with_path(compare, ours, theirs)
  return max(keys), max(rest)


def comparisons(
  golden, dtype: str = 'float32'
) -> Iterator[tuple[str, float, float]]:
  """Yields (name, largest error, bound) for everything in the file.

  Args:
    golden: the file.
    dtype: of the computation here, 'float32' or 'bfloat16'.
  """
  exact = dtype == 'float32'
  passes = FLOAT32 if exact else BFLOAT16
  config = subtree(golden, 'config')
  params = parameters(golden, 'init', 'encoder', 'predictor')
  mlp_dim = params['encoder']['blocks']['fc1']['bias'].shape[-1]
  encoder, predictor = vit.make_models(
    size='tiny',
    width=int(config['dim']),
    depth=int(config['depth']),
    heads=int(config['heads']),
    mlp_dim=int(mlp_dim),
    patch_size=int(config['patch']),
    predictor_width=int(config['pdim']),
    predictor_depth=int(config['pdepth']),
    dtype=dtype,
  )
  steps, warmup = int(config['steps']), int(config['warm'])
  lr = schedules.warmup_cosine(
    *(float(config[k]) for k in ('start_lr', 'lr', 'final_lr')), warmup, steps
  )
  decay = schedules.cosine(float(config['wd']), float(config['fwd']), steps)
  first, last = 1 - config['ema']
  ema_rate = schedules.linear(float(first), float(last), steps)
  model = ijepa.IJEPA(encoder, predictor, ema_rate=ema_rate)
  tx = adamw.adamw(lr=lr, weight_decay=decay)

  for name, ours in (
    ('lr', [lr(s + 1) for s in range(steps)]),
    ('wd', [decay(s + 1) for s in range(steps)]),
    ('momentum', [1 - ema_rate(s) for s in range(steps)]),
  ):
    yield name, largest(ours, golden[name]), FLOAT64

  b = batch(golden, 0)
  grid = model.grid(b['image'])
  for part, width in (
    ('encoder', encoder.width),
    ('predictor', predictor.width),
  ):
    stem = '' if part == 'encoder' else 'predictor_'
    table = golden.get(f'init/{part}/{stem}pos_embed')
    if table is not None:
      yield (
        f'{part} sin-cos table',
        largest(positions.sincos_table(grid, width), table[0]),
        FLOAT32,
      )
  targets, h = jax.jit(model.targets)(
    params['encoder'], b['image'], b['targets']
  )
  # The release stacks [targets, contexts, images].
  e = b['context'].shape[1]
  stacked = np.repeat(np.swapaxes(targets, 0, 1)[:, None], e, axis=1)
  z = jax.jit(encoder.apply)(
    {'params': params['encoder']},
    np.tile(b['image'], (e, 1, 1, 1)),
    np.concatenate(b['context'].swapaxes(0, 1)),
  )
  predictions = jax.jit(model.predict)(
    params, b['image'], b['context'], b['targets']
  )
  for name, ours in (
    ('target_encoder_out', h),
    ('context_encoder_out', z),
    ('targets', stacked),
    ('predictor_out', predictions.transpose(2, 1, 0, 3, 4)),
  ):
    theirs = golden[f'step0/{name}']
    yield name, largest(np.reshape(ours, theirs.shape), theirs), passes

  loss_and_grad = jax.value_and_grad(model.loss, has_aux=True)
  (loss, _), grad = jax.jit(loss_and_grad)(params, params['encoder'], b)
  yield 'loss of the first step', largest(loss, golden['losses'][0]), passes
  theirs = parameters(golden, 'step0/grad', 'encoder', 'predictor')
  keys, rest = tree_errors(grad, theirs)
  bound = FLOAT32 if exact else BFLOAT16_GRADIENTS
  yield 'gradients', rest, bound
  yield 'gradients of key biases', keys, bound

  params = jax.tree.map(jax.numpy.asarray, params)
  state = train_step.State(
    step=jax.numpy.zeros((), 'int32'),
    params=params,
    target=params['encoder'],
    opt_state=tx.init(params),
  )
  step = jax.jit(functools.partial(train_step.train_step, method=model, tx=tx))
  metrics = []
  for s in range(steps):
    state, out = step(state, batch(golden, s))
    metrics.append(jax.device_get(out))
  yield (
    f'losses of all {steps} steps',
    largest([x['loss'] for x in metrics], golden['losses']),
    TRAINED if exact else BFLOAT16,
  )
  yield (
    'momentum in the compiled step',
    largest([x['momentum'] for x in metrics], golden['momentum']),
    1e-6,
  )
  if not exact:
    return
  ours = {**state.params, 'target_encoder': state.target}
  for part, tree in parameters(golden, 'final', *ours).items():
    keys, rest = tree_errors(ours[part], tree, golden['lr'].sum())
    yield f'final {part}', rest, ADAMW
    yield f'final {part}, key biases', keys, ADAMW


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument('file', help='Of the golden format, .npz.')
  parser.add_argument('--dtype', default='float32', help='Or bfloat16.')
  parser.add_argument('--json', action='store_true', help='Print an object.')
  arguments = parser.parse_args()
  golden = dict(np.load(arguments.file))
  # The release ran in float32; a GPU would multiply in TF32.
  with jax.default_matmul_precision('highest'):
    rows = list(comparisons(golden, arguments.dtype))
  if arguments.json:
    device = jax.devices()[0]
    words = {'device': device.device_kind, 'platform': device.platform}
    print(json.dumps({**words, 'jax': jax.__version__, 'errors': rows}))
  else:
    for name, error, bound in rows:
      verdict = 'ok' if error <= bound else 'FAIL'
      print(f'{name:36} {error:9.2e}  bound {bound:.0e}  {verdict}')
  return 0 if all(error <= bound for _, error, bound in rows) else 1


if __name__ == '__main__':
  sys.exit(main())
