"""Whatever holds an I-JEPA, read whole: a run, an export, somebody's file.

pretrained/load.py gives one encoder on the devices, to look through; this
gives every part that is there, on the host, to begin from or to hand on.
"""

from ijepa_jax.errors import UserError
from ijepa_jax.pretrained import load
from ijepa_jax.pretrained.formats import orbax, release, weights
from ijepa_jax.runtime import files


def read(
  path,
  *,
  step: int | None = None,
  optimizer: bool = False,
  heads: int | None = None,
) -> weights.Weights:
  """Reads all parts that are there.

  Args:
    path: of a training workdir or an export to orbax (config.json and
      checkpoints/), a released .pth.tar file (which needs torch), or a Hugging
      Face folder.
    step: of a run's checkpoint; None: the newest that can be read.
    optimizer: read AdamW's state too, where it is there; moments are as large
      as two more models.
    heads: of a .pth.tar file that does not say; None: the method's for its
      width.

  Returns:
    Loaded, float32 on the host; its `optimizer` None where there is none. Of a
    run only those tables that are not as it computes them.

  Raises:
    UserError: there is nothing of the kind, or it does not fit.
    checkpointer.CheckpointError: a run's checkpoints are damaged.
  """
  path = files.resolve(path)
  reader = kind(path)
  if reader is orbax.read:
    return orbax.read(path, step=step, optimizer=optimizer)[0]
  if step is not None:
    raise UserError(f'step is {step}: only a training run has steps.')
  if reader is release.read:
    return reader(path, heads=heads, optimizer=optimizer)
  return reader(path)


def kind(path):
  """What reads it: `read` of formats/orbax.py, of formats/release.py or of
  huggingface.py.

  Raises:
    UserError: there is nothing.
  """
  path = files.resolve(path)
  if not path.exists():
    raise UserError(f'There is nothing at {path}.')
  return load.detect_format(path) or orbax.read
