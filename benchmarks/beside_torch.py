"""Our step beside the same step in plain PyTorch, taking turns.

    python benchmarks/beside_torch.py --config=configs/tiny.py
    python benchmarks/beside_torch.py --config=configs/vit_s16.py \
        --config.batch_size=16 --config.model.dtype=float32

Each is a process of its own on the same batch, which is in memory: PyTorch
eagerly, with attention written out and as scaled_dot_product_attention, by
torch.compile, and ours. Prints the images/s of each, and of how many times the
speed of eager PyTorch it is: the median of the turns, the least and the most.
The batch has the shape of masks that is drawn most often. With
--config.model.dtype=bfloat16 PyTorch computes under torch.autocast.
"""

import pathlib
import statistics
import sys

import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from benchmarks import turns
from benchmarks.random_batch import make_batch
from ijepa_jax.errors import UserError
from ijepa_jax.models import positions, vit
from ijepa_jax.plan import plan
from ijepa_jax.train import run as run_lib

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
flags.DEFINE_integer('count', 10, 'Steps of a turn.')
flags.DEFINE_integer('turns', 8, 'Turns of each.')
flags.DEFINE_list('only', [], 'Of WORKERS, beside torch; empty: all.')
flags.DEFINE_string('worker', '', 'To be this one, in a process of its own.')


def serve_torch(run, batch, *, fused: bool, compiled: bool = False) -> None:
  import torch

  from benchmarks import torch_ijepa

  torch.manual_seed(0)
  method = run.method
  e, p, grid = method.encoder, method.predictor, method.grid(batch['image'])

  def table(width):
    return torch.tensor(positions.sincos_table(grid, width))

  encoder = torch_ijepa.Encoder(
    table(e.width),
    channels=run.image_shape[-1],
    fused=fused,
    **{k: getattr(e, k) for k in ('patch_size', 'depth', 'heads', 'mlp_dim')},
  )
  predictor = torch_ijepa.Predictor(
    table(p.width), e.width, p.depth, p.heads, fused
  )
  trainer = torch_ijepa.Trainer(encoder, predictor)
  if compiled:
    trainer.compile()
  image = np.asarray(vit.normalize(batch['image'], method.mean, method.std))
  batch = {
    'image': torch.tensor(image.transpose(0, 3, 1, 2)).contiguous(),
    'context': torch.tensor(batch['context']).long(),
    'targets': torch.tensor(batch['targets']).long(),
  }

  def work(count):
    half = e.dtype.name == 'bfloat16'
    for _ in range(count):
      # Anew for each step: within one it keeps the weights that it has rounded.
      with torch.autocast('cpu', torch.bfloat16, enabled=half):
        trainer.step(batch, lr=1e-4, weight_decay=0.04, momentum=0.996)

  turns.serve(work)


EAGER = 'torch'
WORKERS = {
  EAGER: lambda *args: serve_torch(*args, fused=False),
  'torch, fused attention': lambda *args: serve_torch(*args, fused=True),
  'torch.compile': lambda *args: serve_torch(*args, fused=True, compiled=True),
  'ours': turns.serve_steps,
}


def main(_):
  run = run_lib.make_run(FLAGS.config, open_images=False)
  if run.method.name != 'ijepa':
    raise UserError(
      f'method is {run.method.name}: the step in PyTorch is that of I-JEPA.'
    )
  drawn = plan.shapes_as_drawn(run)
  _, shapes = max(drawn, key=lambda share_and_shapes: share_and_shapes[0])
  batch = make_batch(run, shapes)
  if FLAGS.worker:
    WORKERS[FLAGS.worker](run, batch)
    return
  names = [EAGER, *FLAGS.only] if FLAGS.only else WORKERS
  workers = {
    name: turns.Worker([sys.executable, *sys.argv, f'--worker={name}'])
    for name in names
  }
  seconds = turns.take(workers, FLAGS.count, FLAGS.turns)
  for worker in workers.values():
    worker.close()
  for name, (median, least, most) in turns.ratios(seconds, EAGER).items():
    speed = run.batch_size / statistics.median(seconds[name])
    print(
      f'{name:24}{speed:10.1f} images/s, {median:.2f} of eager '
      f'({least:.2f} to {most:.2f})'
    )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
