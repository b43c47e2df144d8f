"""Converts a model: to orbax, to the released code's form, to Hugging Face's.

Every file is written under another name, read back by the reader that anybody
would use, and compared with its source, tensor by tensor and bit by bit; only
then it gets its name.
"""

import contextlib
import os
import pathlib
import tempfile
import threading

import jax
import numpy as np
import tqdm

from ijepa_jax.convert import model_card, provenance, verify
from ijepa_jax.errors import UserError, one_of
from ijepa_jax.methods import from_config
from ijepa_jax.models import positions
from ijepa_jax.pretrained import load, shipped
from ijepa_jax.pretrained.formats import huggingface, orbax, release, weights
from ijepa_jax.runtime import files, locks

FORMATS = load.FORMATS


def export(
  source,
  out,
  to: str,
  *,
  which: str | None = None,
  step: int | None = None,
  optimizer: bool = False,
  heads: int | None = None,
  license: str | None = None,
) -> str:
  """Writes the weights of `source` as `to`, checked, with a model card.

  It needs memory of about three times the weights (benchmarks/exports.py).

  Args:
    source: see load.read_weights.
    out: folder, or for 'release' a file, which must not be there; an empty
      folder may be.
    to: 'orbax', a folder that every job takes as init_from; 'release', a file
      of PyTorch named as the released ones; 'huggingface', a folder of
      transformers.
    which: of 'huggingface', which holds one encoder: 'target' or 'context';
      None: the target encoder, or the one that there is.
    step, heads: see load.read_weights.
    optimizer: take AdamW's state along; 'orbax' is then a whole state, from
      which a run of the same recipe goes on.
    license: of a model of one's own, for the card, such as 'apache-2.0'.

  Returns:
    A sentence on what was written.

  Raises:
    UserError: something does not fit; with its name. Nothing is left at `out`.
    OSError, checkpointer.CheckpointError: reading or writing failed; the same.
  """
  source, out = shipped.locate(source), _resolve_local(out, to)
  _check_arguments(out, to, which, optimizer)
  loaded = load.read_weights(
    source, step=step, optimizer=optimizer, heads=heads
  )
  loaded.log_notes(source)
  loaded = _select_parts(source, loaded, to, which, optimizer)
  card = _card(out, loaded, source, to, license)
  expected = verify.tensors_by_written_name(loaded, to)
  out.parent.mkdir(parents=True, exist_ok=True)
  with (
    locks.only_writer(out, beside=True),
    tempfile.TemporaryDirectory(dir=out.parent, prefix='.partial-') as partial,
    tqdm.tqdm(
      total=2 * len(expected), desc='writing', unit='tensor', disable=None
    ) as bar,
  ):
    _check_arguments(out, to, which, optimizer)  # another may just have ended
    written = pathlib.Path(partial) / 'written'
    with _progress_of_disk(bar, written.parent, expected):
      _write(written, loaded, to)
    size = _bytes(written.parent)
    _verify(written, loaded, to, expected, bar)
    _publish(written, out, card)
  return _summary(out, loaded, len(expected), size)


def _resolve_local(out, to: str) -> pathlib.Path:
  if files.is_url(out):
    raise UserError(f'{out} is no place on this machine: copy it afterwards.')
  out = pathlib.Path(files.resolve(out))
  if to == 'orbax':
    files.check_checkpoints(out)
  # A name can be given to a folder, not to a link.
  return out.resolve() if out.is_symlink() and out.is_dir() else out


def _check_arguments(out, to, encoder, optimizer) -> None:
  """Refuses arguments before anything is read."""
  one_of('to', to, FORMATS)
  empty = out.is_dir() and not any(out.iterdir()) and to != 'release'
  taken = [] if empty else [out]
  if to == 'release':
    taken.append(provenance.card_path(out))
  if taken := [path for path in taken if os.path.lexists(path)]:
    raise UserError(f'{taken[0]} is there already: take another name.')
  if encoder and (to != 'huggingface' or encoder not in weights.ENCODERS):
    raise UserError(
      f'which is {encoder!r}: for huggingface, which holds one encoder, it is '
      'target or context; the others hold all that there is.'
    )
  if optimizer and to == 'huggingface':
    raise UserError(
      'A Hugging Face folder has no place for an optimizer: leave --optimizer '
      'away, or take --to=orbax or release.'
    )


def _select_parts(source, loaded, to, encoder, optimizer) -> weights.Weights:
  """Returns the parts that the format has a place for, and what it needs.

  Raises:
    UserError: the source lacks something, before anything is written.
  """
  params, tables = loaded.params, loaded.tables
  method = from_config.method_class(loaded.run_config or {})
  if to == 'release' and 'target' not in method.parts:
    raise UserError(
      f'{source} is of the method {method.name}, and the form of the released '
      "code has I-JEPA's networks: take --to=orbax or huggingface."
    )
  if optimizer and loaded.optimizer is None:
    raise UserError(
      f'{source} holds no state of AdamW that can be taken: leave --optimizer '
      'away.'
    )
  if to == 'huggingface':
    part = weights.ENCODERS[encoder or 'target']
    if part not in params:
      if encoder:
        raise UserError(f'{source} has no {encoder} encoder: take the other.')
      part = 'encoder'
    params, tables = (
      {k: v for k, v in x.items() if k == part} for x in (params, tables)
    )
  if to == 'orbax':
    tables = _tables_to_keep(source, loaded)
    missing = [k for k in weights.PARTS if k not in params]
    if loaded.optimizer and missing:
      raise UserError(
        f'{source} has no {weights.PARTS[missing[0]].words}, without which no '
        'run goes on: leave --optimizer away.'
      )
    if loaded.run_config is None:
      plain = orbax.plain_config(
        loaded.config,
        provenance.public_name(source),
        weights.size_name(loaded.config),
      )
      loaded = loaded._replace(run_config=plain)
  config = weights.complete_config(loaded.config, params)
  return loaded._replace(config=config, params=params, tables=tables)


def _tables_to_keep(source, loaded) -> dict[str, np.ndarray]:
  """Returns the tables that differ, if only in a bit, from the computed ones.

  Those of released target encoders may: they were averaged with the rest.
  """
  tables = {}
  for part, table in loaded.tables.items():
    error = np.abs(table - weights.computed_table(loaded.config, part)).max()
    # More than half precision would have rounded away: it was trained.
    if error > positions.tolerance_of('bfloat16'):
      raise UserError(
        f"{source}: the {weights.PARTS[part].words}'s position table is not "
        'the sin-cos table, which whatever reads orbax computes: its outputs '
        'would be others; take --to=release or huggingface, which keep the '
        'table.'
      )
    if error:
      tables[part] = table
  return tables


def _write(path, loaded: weights.Weights, to: str) -> None:
  params, config = loaded.params, loaded.config
  if to == 'release':
    release.write(
      path, params, config, tables=loaded.tables, optimizer=loaded.optimizer
    )
  elif to == 'huggingface':
    (part,) = params
    table = loaded.tables.get(part)
    huggingface.write(path, params, config, part=part, table=table)
  else:
    orbax.write(path, loaded, loaded.run_config, loaded.step)


def _verify(written, loaded, to, expected, bar) -> None:
  """Reads back what was written and compares it; advances the bar."""
  bar.set_description('checking')
  back = load.read_weights(written, optimizer=loaded.optimizer is not None)
  verify.verify_sizes(loaded, back)
  actual = verify.tensors_by_written_name(back, to)
  for _ in verify.verify_tensors(expected, actual):
    bar.update()


def _card(out, loaded, source, to, license) -> str:
  return model_card.render(
    loaded,
    source=source,
    name=pathlib.Path(os.path.abspath(out)).name,
    to=to,
    config=loaded.run_config,
    step=loaded.step,
    chosen_license=license,
  )


def _publish(written, out, card: str) -> None:
  """Writes the model card, and gives both their names."""
  beside = provenance.card_path(written)
  # Names of folders may be of any bytes.
  beside.write_text(card, encoding='utf-8', errors='surrogateescape')
  if written.is_file():
    os.replace(beside, provenance.card_path(out))
  os.replace(written, out)  # Over an empty folder, if there is one.


@contextlib.contextmanager
def _progress_of_disk(bar, folder, expected):
  """Advances the first half of the bar with the bytes in `folder`."""
  done, total = threading.Event(), sum(x.nbytes for x in expected.values())

  def follow():
    while not done.wait(0.5):
      with contextlib.suppress(OSError):  # A file may just get its name.
        share = min(_bytes(folder) / total, 1)
        bar.update(round(share * len(expected)) - bar.n)

  thread = threading.Thread(target=follow)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
  bar.update(len(expected) - bar.n)


def _bytes(folder) -> int:
  return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())


def _summary(out, loaded, count: int, size: int) -> str:
  names = [f'the {weights.PARTS[part].words}' for part in loaded.params]
  if loaded.optimizer:
    names.append(f"AdamW's state after step {loaded.optimizer.step}")
  *first, last = names
  names = f'{", ".join(first)} and {last}' if first else last
  parameters = sum(x.size for x in jax.tree.leaves(loaded.params))
  return (
    f'{out} holds {names}: {count} tensors, {parameters / 1e6:.1f} million '
    f'parameters, {size:,} bytes; all {count} tensors read back bit-equal. Its '
    f'model card is {provenance.card_path(out)}.'
  )
