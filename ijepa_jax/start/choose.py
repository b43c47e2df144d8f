"""What to train on a folder of images: changes to configs/photos.py, and why.

docs/small_data.md has the measurements behind the numbers.
"""

import dataclasses
from typing import Any

import numpy as np

from ijepa_jax.start.survey import Survey

FEW = 200  # images, below which little can be learned
MAX_EPOCHS = 1000  # a bound that was not reached: 200 of 480 images still gain
MIN_STEPS = 1000  # fewer teach next to nothing, however many the images
LEAST_SIDE = 56  # pixels of the shorter side, below which 32 are taken
FEWEST_A_CLASS = 5  # for a probe
# Images that are decoded slower than this share of the speed of training are
# packed small first, if they are seen so many times.
SLOW_SHARE, PACKED_SIDE, PACKED_EPOCHS = 0.5, 128, 3


@dataclasses.dataclass
class Choice:
  """Changes of the recipe, in the order in which they are written.

  Attributes:
    changes: knob -> its value.
    reasons: knob -> words on it, for some.
    images: that are trained on.
  """

  changes: dict[str, Any]
  reasons: dict[str, str]
  images: int

  def set(self, knob: str, value, reason: str = '') -> None:
    self.changes[knob] = value
    if reason:
      self.reasons[knob] = reason

  @property
  def batch_size(self) -> int:
    return self.changes['batch_size']

  def epochs(self, steps: int) -> float:
    return steps * self.batch_size / self.images


def can_be_probed(survey: Survey) -> bool:
  """Whether there are classes from which a probe can follow."""
  if len(survey.classes) < 2:
    return False
  labels = survey.source.every_label()[:, 0]
  counts = np.bincount(labels, minlength=len(survey.classes))
  return counts.min() >= FEWEST_A_CLASS


def choose(survey: Survey, *, devices: int, cores: int) -> Choice:
  """What depends on the images and on the machine, without the steps.

  Args:
    survey: of the images.
    devices: that share a batch.
    cores: of the CPU, for the workers that decode.
  """
  choice = Choice({}, {}, len(survey))
  batch = 64
  while batch > 2 and 4 * batch > len(survey):
    batch //= 2
  words = '' if batch == 64 else f'{len(survey)} images are few'
  choice.set('batch_size', -(-batch // devices) * devices, words)
  if survey.side < LEAST_SIDE:
    reason = f'the shorter sides are about {survey.side:.0f} pixels'
    choice.set('data.image_size', (32, 32), reason)
    choice.set('model.patch_size', 4)
  channels = survey.channels or (1 if survey.grey else 3)
  if channels != 3:
    reason = 'all images are grey' if survey.grey else ''
    choice.set('data.channels', channels, reason)
    choice.set('data.mean', (0.5,) * channels)
    choice.set('data.std', (0.25,) * channels)
  choice.set('data.workers', min(8, max(cores - 1, 0)))
  if survey.bad_share:
    share = round(min(1.0, 2 * survey.bad_share + 0.01), 3)
    reason = f'{survey.bad_share:.1%} of those opened cannot be read'
    choice.set('data.max_bad_share', share, reason)
  return choice


def choose_probe(choice: Choice, survey: Survey, held_out: str) -> None:
  """Where the probe and the signals of health have their images from.

  Args:
    choice: is changed.
    survey: of the training images.
    held_out: name of the other split; '': there is none.
  """
  if held_out:
    choice.set('health.split', held_out)
  if held_out and can_be_probed(survey):
    choice.set('probe.split', held_out)
    choice.set('probe.every_steps', 1)


def choose_steps(choice: Choice, seconds: float, minutes: float) -> str:
  """Sets the steps, and all that follows from their number.

  Args:
    choice: is changed.
    seconds: of one step.
    minutes: that the training may take.

  Returns:
    Why there are so many, in words.
  """
  by_time = int(60 * minutes / seconds)
  by_epochs = int(MAX_EPOCHS * choice.images / choice.batch_size)
  steps = max(min(by_time, by_epochs), MIN_STEPS)
  steps = steps // 100 * 100
  reason = f'as many as {minutes:g} minutes have'
  if steps > by_epochs or steps > by_time:
    reason = 'fewer would teach next to nothing'
  elif by_epochs < by_time:
    reason = 'more would only repeat the same images'
  choice.set('total_steps', steps, f'{choice.epochs(steps):.3g} epochs')
  choice.set('optim.warmup_steps', steps // 20)
  if 'probe.every_steps' in choice.changes:
    choice.set('probe.every_steps', steps // 5)
  choice.set('health.every_steps', steps // 20)
  choice.set('checkpoint.every_steps', steps // 5)
  return reason


def wants_packing(survey: Survey, share: float, epochs: float) -> bool:
  """Whether decoding is what a training would wait for.

  Args:
    survey: of the images.
    share: of the time that the steps wait for images.
    epochs: of the training.
  """
  large = not survey.channels and survey.side > 1.5 * PACKED_SIDE
  return large and share > SLOW_SHARE and epochs > PACKED_EPOCHS
