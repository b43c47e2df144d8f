"""The source of the embedded pictures."""

import functools
import hashlib

from ijepa_jax.data.scenes import rendered, scene
from ijepa_jax.data.sources.base import ReopenedAfterPickling


class Scenes(ReopenedAfterPickling):
  """The embedded pictures; drawn at first use, then kept on disk."""

  class_names = ()

  def __init__(self, flavour: str, seed: int, count: int):
    self._key = flavour, seed, count
    # Here rather than in every worker, if they have to be drawn.
    self._data  # noqa: B018
    self.labels = dict(scene.LABELS[flavour])
    self.identity = f'scenes {scene.VERSION} {flavour} {seed} {count}'
    self.listing = hashlib.sha256(self.identity.encode()).hexdigest()

  @functools.cached_property
  def _data(self):
    return rendered.rendered_images(*self._key)

  def __len__(self):
    return self._key[2]

  def keys(self) -> list[str]:
    flavour, seed, count = self._key
    return [f'{flavour}/{seed}/{index}' for index in range(count)]

  def every_label(self):
    """Returns int32 [N, L] of all pictures."""
    return self._data[1]

  def __getitem__(self, index):
    images, labels = self._data
    flavour, seed, _ = self._key
    return {
      'image': images[index],
      'label': labels[index],
      'key': f'{flavour}/{seed}/{index}',
    }
