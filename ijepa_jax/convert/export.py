"""Hands a model on: to orbax, to the released code, to Hugging Face.

Every file is written under another name, read back by the reader that anybody
would use, and compared with what it was made of, tensor by tensor and bit by
bit; only then it gets its name.
"""

import contextlib
import os
import pathlib
import tempfile
import threading

import jax
import numpy as np
import tqdm
from absl import logging

from ijepa_jax.convert import model_card, provenance, verify
from ijepa_jax.errors import UserError
from ijepa_jax.models import positions
from ijepa_jax.pretrained import anything
from ijepa_jax.pretrained.formats import huggingface, orbax, release, weights
from ijepa_jax.runtime import files, locks
from ijepa_jax.runtime.config import read_run_config

FORMATS = 'orbax', 'release', 'huggingface'
WHICH = {'target': 'target', 'context': 'encoder'}


def export(
  source,
  out,
  to: str,
  *,
  which: str | None = None,
  step: int | None = None,
  optimizer: bool = False,
  heads: int | None = None,
) -> str:
  """Writes what `source` holds as `to`, checked, with a model card.

  It needs memory of about three times the weights (benchmarks/exports.py).

  Args:
    source: see anything.read.
    out: folder, or for 'release' a file, which must not be there; an empty
      folder may be.
    to: 'orbax', a folder that every job takes as init_from; 'release', a file
      of PyTorch named as the released ones; 'huggingface', a folder of
      transformers.
    which: of 'huggingface', which holds one encoder: 'target' or 'context';
      None: the target encoder, or what there is.
    step, heads: see anything.read.
    optimizer: take AdamW's state along; 'orbax' is then a whole state, from
      which a run of the same recipe goes on.

  Returns:
    What was written, in words.

  Raises:
    UserError: something does not fit; with its name. Nothing is left at `out`.
    OSError, checkpointer.CheckpointError: reading or writing failed; the same.
  """
  if '://' in os.fspath(out):
    raise UserError(f'{out} is no place on this machine: copy it afterwards.')
  source, out = files.resolve(source), pathlib.Path(files.resolve(out))
  if to == 'orbax':
    files.check_checkpoints(out)
  if out.is_symlink() and out.is_dir():
    out = out.resolve()  # a name can be given to a folder, not to a link
  _check_asked(out, to, which, optimizer)
  loaded, config, step = _read(source, step, optimizer, heads)
  loaded = _select_parts(source, loaded, to, which, optimizer)
  if to == 'orbax' and config is None:
    name = provenance.public_name(source)
    size = weights.size_name(loaded.config)
    config = orbax.plain_config(loaded.config, name, size)
  wanted = verify.tensors_by_written_name(loaded, to)
  out.parent.mkdir(parents=True, exist_ok=True)
  with (
    locks.only_writer(out, beside=True),
    tempfile.TemporaryDirectory(dir=out.parent, prefix='.partial-') as partial,
    tqdm.tqdm(
      total=2 * len(wanted), desc='writing', unit='tensor', disable=None
    ) as bar,
  ):
    _check_asked(out, to, which, optimizer)  # another may just have ended
    made = pathlib.Path(partial) / 'made'
    with _progress_of_disk(bar, made.parent, wanted):
      _write(made, loaded, to, config, step)
    size = _bytes(made.parent)
    bar.set_description('checking')
    with _without_notes():
      back = anything.read(made, optimizer=optimizer)
    verify.verify_sizes(loaded, back)
    for _ in verify.verify_tensors(
      wanted, verify.tensors_by_written_name(back, to)
    ):
      bar.update()
    name = pathlib.Path(os.path.abspath(out)).name
    words = model_card.render(
      loaded, source=source, name=name, to=to, config=config, step=step
    )
    beside = provenance.card_path(made)
    # Names of folders may be of any bytes.
    beside.write_text(words, encoding='utf-8', errors='surrogateescape')
    if made.is_file():
      os.replace(beside, provenance.card_path(out))
    os.replace(made, out)  # Over an empty folder, if there is one.
  return _summary(out, loaded, wanted, size)


def _check_asked(out, to, which, optimizer) -> None:
  """Before anything is read."""
  if to not in FORMATS:
    raise UserError(f'to is {to!r}: take one of {", ".join(FORMATS)}.')
  empty = out.is_dir() and not any(out.iterdir()) and to != 'release'
  taken = [] if empty else [out]
  if to == 'release':
    taken.append(provenance.card_path(out))
  if taken := [path for path in taken if os.path.lexists(path)]:
    raise UserError(f'{taken[0]} is there already: take another name.')
  if which and (to != 'huggingface' or which not in WHICH):
    raise UserError(
      f'which is {which!r}: for huggingface, which holds one encoder, it is '
      'target or context; the others hold all that there is.'
    )
  if optimizer and to == 'huggingface':
    raise UserError(
      'A Hugging Face folder has no place for an optimiser: leave --optimizer '
      'away, or take --to=orbax or release.'
    )


def _read(source, step, optimizer, heads):
  """What there is, the run's config or None, and its step or 0."""
  if anything.kind(source) is orbax.read:
    loaded, step = orbax.read(source, step=step, optimizer=optimizer)
    return loaded, read_run_config(source), step
  loaded = anything.read(source, step=step, optimizer=optimizer, heads=heads)
  return loaded, None, loaded.optimizer.step if loaded.optimizer else 0


def _select_parts(source, loaded, to, which, optimizer) -> weights.Weights:
  """What of it has a place there; or a refusal, before anything is written."""
  params, tables = loaded.params, loaded.tables
  if optimizer and loaded.optimizer is None:
    raise UserError(
      f'{source} holds no state of AdamW that can be taken: leave --optimizer '
      'away.'
    )
  if to == 'huggingface':
    part = WHICH[which or 'target']
    if part not in params:
      if which:
        raise UserError(f'{source} has no {which} encoder: take the other.')
      part = 'encoder'
    params, tables = (
      {k: v for k, v in x.items() if k == part} for x in (params, tables)
    )
  if to == 'orbax':
    tables = _tables_to_keep(source, loaded)
    missing = [k for k in weights.PARTS if k not in params]
    if loaded.optimizer and missing:
      raise UserError(
        f'{source} has no {orbax.WORDS[missing[0]]}, without which no run goes '
        'on: leave --optimizer away.'
      )
  config = weights.complete_config(loaded.config, params)
  return loaded._replace(config=config, params=params, tables=tables)


def _tables_to_keep(source, loaded) -> dict[str, np.ndarray]:
  """Those that differ, if only in a bit, from what is computed.

  Those of released target encoders may: they were averaged with the rest.
  """
  found = {}
  for part, table in loaded.tables.items():
    error = np.abs(table - verify.table(loaded, part)).max()
    # More than half precision would have rounded away: it was trained.
    if error > positions.tolerance_of('bfloat16'):
      raise UserError(
        f"{source}: the {orbax.WORDS[part]}'s position table is not the "
        'sin-cos table, which whatever reads orbax computes: its outputs would '
        'be others; take --to=release or huggingface, which keep the table.'
      )
    if error:
      found[part] = table
  return found


def _write(path, loaded, to, config, step) -> None:
  params, c = loaded.params, loaded.config
  if to == 'release':
    release.write(
      path, params, c, tables=loaded.tables, optimizer=loaded.optimizer
    )
  elif to == 'huggingface':
    (part,) = params
    table = loaded.tables.get(part)
    huggingface.write(path, params, c, which=part, table=table)
  else:
    orbax.write(path, loaded, config, step)


@contextlib.contextmanager
def _progress_of_disk(bar, folder, wanted):
  """Lets the bar follow, to its half, what is written to `folder`."""
  done, whole = threading.Event(), sum(x.nbytes for x in wanted.values())

  def follow():
    while not done.wait(0.5):
      with contextlib.suppress(OSError):  # A file may just get its name.
        share = min(_bytes(folder) / whole, 1)
        bar.update(round(share * len(wanted)) - bar.n)

  thread = threading.Thread(target=follow)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
  bar.update(len(wanted) - bar.n)


def _bytes(folder) -> int:
  return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


@contextlib.contextmanager
def _without_notes():
  """What is to know of the weights was said when they were read."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def _summary(out, loaded, wanted, size) -> str:
  parts = [f'the {orbax.WORDS[part]}' for part in loaded.params]
  if loaded.optimizer:
    parts.append(f"AdamW's state after step {loaded.optimizer.step}")
  *some, last = parts
  parts = f'{", ".join(some)} and {last}' if some else last
  count = sum(x.size for x in jax.tree.leaves(loaded.params))
  return (
    f'{out} holds {parts}: {len(wanted)} tensors, {count / 1e6:.1f} million '
    f'parameters, {size:,} bytes; all {len(wanted)} tensors read back '
    f'bit-equal. Its model card is {provenance.card_path(out)}.'
  )
