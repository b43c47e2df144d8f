"""Sources for tests of packing; a process that unpickles one imports little."""

import dataclasses
import os
import time

import numpy as np


@dataclasses.dataclass
class ImageList:
  """These images, encoded or not, without labels."""

  images: list

  def __post_init__(self):
    self.labels, self.identity = {}, 'given'

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    label = np.zeros(0, np.int32)
    return {'image': self.images[index], 'label': label, 'key': str(index)}


class BlockedList(ImageList):
  """From the tenth image on it waits for a file."""

  def __init__(self, images, path):
    super().__init__(images)
    self.path = path

  def __getitem__(self, index):
    while index >= 10 and not self.path.exists():
      time.sleep(0.01)
    return super().__getitem__(index)


class DeadlyList(ImageList):
  """Ends the process that asks for its fifth image."""

  def __getitem__(self, index):
    if index == 4:
      os._exit(3)
    return super().__getitem__(index)


def die(*_):
  """A job that ends its process."""
  os._exit(3)
