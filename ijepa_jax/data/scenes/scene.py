"""The embedded data set: a toy ImageNet, ray-cast on first use.

`scenes`: one upright object of ten classes, in one of six hues, on a floor
before a wall. `crowd`: one to five simple solids. 48 x 48 RGB. An image is a
pure function of (flavour, seed, index); scenes/rendered.py draws whole sets.
"""

import colorsys
import math

import numpy as np

from ijepa_jax.data.scenes import objects, raycast
from ijepa_jax.data.scenes.solids import Ball, Cone, box
from ijepa_jax.errors import UserError, one_of

# The test images of evaluations are drawn with this seed.
TEST_SEED = 20_230_619
SIZE = raycast.SIZE
CLASS_NAMES = (
  *('table', 'chair', 'lamp', 'pine', 'tree'),
  *('house', 'car', 'snowman', 'mug', 'rocket'),
)
HUE_NAMES = ('red', 'yellow', 'green', 'cyan', 'blue', 'magenta')
# Name -> number of values, in the order of `labels`.
LABELS = {
  'scenes': {'class': len(CLASS_NAMES), 'hue': len(HUE_NAMES)},
  'crowd': {'count': 5, 'distance': 6},
}
FLAVOURS = tuple(LABELS)
VERSION = 2  # raise it if any pixel changes: the cached files are named by it


def _draws(flavour, seed, index):
  """Returns a function (low, high) -> the next uniform float of an image."""
  rng = np.random.default_rng([FLAVOURS.index(flavour), seed, index])

  def stream():
    while True:
      yield from rng.random(128).tolist()

  values = stream()
  return lambda low=0.0, high=1.0: low + (high - low) * next(values)


# ---- materials ----


def _material(draw, color, contrast, patterned, period, axes, gloss=0.0):
  """Draws a material of one color, or of two in a pattern.

  Args:
    draw: see `_draws`.
    color: RGB [3] in 0..1.
    contrast: share by which the second color is darker.
    patterned: probability of a pattern.
    period: range of the pattern's period, in units of length.
    axes: the two directions [2, 3] along which the pattern varies.
    gloss: see raycast.Material.
  """
  if draw() >= patterned:
    return raycast.Material((color,), gloss=gloss)
  pattern = ('stripes', 'checks', 'dots')[int(draw(0, 3))]
  if draw() < 0.5:
    axes = axes[::-1]
  darker = tuple(c * (1 - contrast) for c in color)
  return raycast.Material(
    (color, darker),
    pattern,
    np.asarray(axes) * (2 * math.pi / draw(*period)),
    (draw(0, 6.3), draw(0, 6.3)),
    gloss,
  )


def _surroundings(draw, along, out, floor, wall):
  """Draws pale materials of floor and wall, patterned with these chances."""
  materials = []
  for axes, chance in (((along, out), floor), ((along, (0, 1, 0)), wall)):
    color = colorsys.hsv_to_rgb(draw(), draw(0.1, 0.3), draw(0.65, 1.0))
    materials.append(_material(draw, color, 0.12, chance, (0.5, 0.9), axes))
  return materials


def _surface(draw, hue, saturation, value):
  """Draws the material of an object: a third patterned, 40% glossy."""
  color = colorsys.hsv_to_rgb(hue % 1, draw(*saturation), draw(*value))
  gloss = draw(0.35, 0.7) if draw() < 0.4 else 0.0
  # Oblique axes, so that the pattern shows on every side of a box.
  axes = ((0.7, 0.0, 0.7), (0.45, 0.8, -0.45))
  # Faint patterns: strong ones keep a tiny I-JEPA from learning shapes.
  return _material(draw, color, 0.25, 1 / 3, (0.5, 0.8), axes, gloss)


def _sun(draw):
  azimuth, elevation = draw(-math.pi, math.pi), draw(0.5, 1.2)
  flat = math.cos(elevation)
  return np.array(
    [flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)]
  )


def _turned(angle):
  """Returns a wall's direction and its normal, which is -z at angle 0."""
  c, s = math.cos(angle), math.sin(angle)
  return np.array([c, 0, s]), np.array([s, 0, -c])


# ---- the two flavours ----


def _draw_scene(draw):
  label, hue = int(draw(0, 10)), int(draw(0, 6))
  scale, yaw = draw(1.1, 1.4), draw(-math.pi, math.pi)
  center = np.array([draw(-0.5, 0.5), 0, draw(-0.3, 0.5)])
  eye = np.array([0, draw(1.2, 2.6), -draw(3.0, 3.6)])
  aim = np.array([0, draw(0.7, 0.95), 0])
  along, normal = _turned(draw(-0.5, 0.5))
  behind = draw(1.8, 3.5)
  sun = _sun(draw)
  solids = objects.OBJECTS[label](lambda mean: scale * mean * draw(0.85, 1.15))
  # The room is turned instead of the object, whose solids stay along the axes
  # and need no rotation of their own.
  c, s = math.cos(yaw), math.sin(yaw)
  turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
  eye, aim = turn @ (eye - center), turn @ (aim - center)
  along, normal, sun = turn @ along, turn @ normal, turn @ sun
  room = raycast.Room(eye, aim, normal, -behind, sun)
  materials = _surroundings(draw, along, normal, 3 / 8, 2 / 9)
  materials += [
    _surface(draw, hue / 6 + draw(-0.05, 0.05), (0.6, 0.9), (0.75, 1.0)),
    _surface(draw, draw(), (0.6, 0.9), (0.75, 1.0)),
  ]
  return raycast.render(room, solids, materials), (label, hue)


def _place(draw, count, nearest):
  """Draws `count` (x, depth, radius), none inside or hidden by another."""
  # Each in a sector of the view of its own: placed anywhere, some would hide
  # others.
  sectors = sorted(range(count), key=lambda _: draw())
  placed, shrink = [], 1.0
  while len(placed) < count:
    depth = nearest + (draw(0.1, 1.4) if placed else 0)
    share = (sectors[len(placed)] + draw(0.15, 0.85)) / count
    radius, angle = shrink * draw(0.24, 0.36), 0.66 * share - 0.33
    x, z = depth * math.sin(angle), depth * math.cos(angle)
    free = all(
      math.hypot(x - px, z - pz) > radius + pr
      and abs(x / z - px / pz) > 0.7 * (radius / z + pr / pz)
      for px, pz, pr in placed
    )
    if free:
      placed.append((x, z, radius))
    shrink *= 1 if free else 0.98  # until there is room for all
  return placed


def _draw_crowd(draw):
  count, distance = int(draw(0, 5)), draw(0, 6)
  nearest = 1.9 + 0.3 * distance  # 1.9 to 3.7 along the floor
  eye = np.array([0, draw(1.0, 1.5), 0])
  aim = np.array([0, draw(0.1, 0.3), draw(2.6, 3.2)])
  along, normal = _turned(draw(-0.3, 0.3))
  wall = np.array([0, 0, draw(6.2, 7.2)])
  sun = _sun(draw)
  solids = []
  for material, (x, z, r) in enumerate(_place(draw, count + 1, nearest)):
    shape, height = int(draw(0, 4)), r * draw(1.4, 2.2)
    if shape == 0:
      size = (1.5 * r, height, 1.5 * r)
      solid = box((x, height / 2, z), size, material, draw(0, 1.6))
    elif shape == 1:
      solid = Ball((x, r, z), r, material)
    else:
      top = r if shape == 2 else 0.0
      solid = Cone((x, 0, z), height, r, top, material)
    solids.append(solid)
  room = raycast.Room(eye, aim, normal, float(normal @ wall), sun)
  materials = _surroundings(draw, along, normal, 1, 1)
  materials += [_surface(draw, draw(), (0.4, 0.95), (0.5, 1.0)) for _ in solids]
  return raycast.render(room, solids, materials), (count, int(distance))


_DRAW = {'scenes': _draw_scene, 'crowd': _draw_crowd}


def check(flavour, **numbers):
  """Raises UserError for an unknown flavour or a number that is too small."""
  one_of('flavour', flavour, FLAVOURS)
  for name, value in numbers.items():
    minimum = 1 if name in ('count', 'processes') else 0
    if not isinstance(value, int | np.integer) or value < minimum:
      raise UserError(
        f'{name} is {value!r}: it must be a whole number of at least {minimum}.'
      )


def render(flavour, seed, index):
  """Draws one image, a pure function of its arguments.

  Returns:
    image uint8 [48,48,3] and labels int32 [2], in the order of
    `LABELS[flavour]`: class and hue, or count - 1 and the sixth of the range
    1.9 to 3.7 in which the nearest solid's distance along the floor falls.

  Raises:
    UserError: an unknown flavour, or a negative seed or index.
  """
  check(flavour, seed=seed, index=index)
  image, labels = _DRAW[flavour](_draws(flavour, seed, index))
  return image, np.array(labels, np.int32)
