"""What is left on the disk: links to the images, and a config."""

import os
import pathlib

import numpy as np

from ijepa_jax.errors import UserError
from ijepa_jax.runtime import files
from ijepa_jax.start.choose import Choice, can_be_probed
from ijepa_jax.start.survey import Survey

_SHARE, _MOST = 0.15, 5000  # images of a class, and of all, that are held out


def hold_out(survey: Survey) -> np.ndarray:
  """Which images are not to be trained on: bool [N], as many of each class."""
  labels = survey.source.every_label()[:, 0]
  share = min(_SHARE, _MOST / len(labels))
  rng, held_out = np.random.default_rng(0), np.zeros(len(labels), bool)
  for label in range(len(survey.classes)):
    rows = rng.permutation(np.flatnonzero(labels == label))
    held_out[rows[: max(1, round(share * len(rows)))]] = True
  return held_out


def needs_links(survey: Survey) -> bool:
  """Whether the images are to be arranged: none is held out, or some are bad.

  Without classes no image needs to be held out.
  """
  unsplit = can_be_probed(survey) and not survey.held_out
  return unsplit or bool(survey.unreadable)


def link(survey: Survey, folder: pathlib.Path) -> dict[str, int]:
  """Links the images of a split into folder/train, and folder/val.

  Nothing is copied or moved. Images that can't be read are left out; without a
  split of their own, some of each class are held out in val.

  Returns:
    Split -> its number of images.

  Raises:
    UserError: the disk has no links, or something else is in the way.
  """
  held_out = np.zeros(len(survey), bool)
  if can_be_probed(survey) and not survey.held_out:
    held_out = hold_out(survey)
  parts = {'train': ~held_out, 'val': held_out}
  return {
    split: link_all(survey, folder / split, chosen)
    for split, chosen in parts.items()
    if chosen.any()
  }


def link_all(survey: Survey, folder: pathlib.Path, chosen=True) -> int:
  """Links the images that can be read, of those that are chosen: bool [N].

  Returns:
    Their number.
  """
  names = survey.files()
  bad = np.isin(survey.source.keys(), list(survey.unreadable))
  rows = np.flatnonzero(chosen & ~bad)
  links = {names[row]: os.path.join(survey.root, names[row]) for row in rows}
  _make_links(folder, links)
  return len(links)


def _make_links(folder: pathlib.Path, links: dict[str, str]) -> None:
  """Makes exactly these links in a folder; those of an earlier time go."""
  folder.mkdir(parents=True, exist_ok=True)
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      if not os.path.islink(path):
        raise UserError(f'{path} is in the way: take another --workdir.')
      os.unlink(path)
  for parent in {os.path.dirname(name) for name in links}:
    (folder / parent).mkdir(parents=True, exist_ok=True)
  try:
    for name, target in links.items():
      os.symlink(target, folder / name)
  except OSError as error:
    raise UserError(
      f'{folder} takes no links ({error.strerror}): arrange the images in '
      'folders train/<class> and val/<class>, or take another --workdir.'
    ) from error


def recipe(choice: Choice, command: str, base: str) -> str:
  """The text of a config file that changes a recipe.

  Args:
    choice: of the changes.
    command: that trains with it.
    base: name of the recipe.
  """
  lines = []
  for knob, value in choice.changes.items():
    reason = choice.reasons.get(knob, '')
    comment = f'  # {reason}' if reason else ''
    lines.append(f'  c.{knob} = {value!r}{comment}')
  body = '\n'.join(lines)
  # A folder may have any name, and the docstring has it.
  command = command.replace('\\', r'\\').replace('"', r'\"')
  return (
    f'"""What python -m ijepa_jax.start chose; change what you like.\n\n'
    f'    {command}\n"""\n\n'
    f'from ijepa_jax.configs import {base}\n\n\n'
    f'def get_config():\n  c = {base}.get_config()\n{body}\n  return c\n'
  )


def write_recipe(path: pathlib.Path, text: str) -> None:
  """Writes the config whole or not at all."""
  files.atomic_write_text(files.resolve(path), text)
