"""A ray caster in NumPy: upright solids on a floor before a wall, one sun.

Everything is float32, one ray a pixel. Arrays of rays and points are [3, n].
One origin for many rays is [3, 1], and so is one direction for many origins:
broadcasting then computes only what varies.
"""

import dataclasses

import numpy as np

from ijepa_jax.data.scenes.solids import CORNERS, EPSILON, column, cross, dot

SIZE = 48  # pixels, rows and columns
HALF_FOV = 0.40  # radians


def _camera_rays():
  steps = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
  x, y = np.meshgrid(steps, -steps)
  rays = np.stack([x, y, np.full_like(x, 1 / np.tan(HALF_FOV))])
  rays /= np.linalg.norm(rays, axis=0)
  return rays.astype(np.float32)


_RAYS = _camera_rays()  # [3, SIZE, SIZE]: right, up, forward


@dataclasses.dataclass
class Material:
  """Two colors [3] in 0..1, mixed by a pattern over (u, v) = uv [2, 3] @ p."""

  colors: tuple
  pattern: str = 'plain'  # plain, stripes, checks, dots
  uv: np.ndarray | None = None  # radians a unit of length
  phase: tuple = (0.0, 0.0)
  gloss: float = 0.0

  def mix(self, p):
    """Returns the share [n] in 0..1 of the second color at points p [3, n]."""
    u, v = np.sin(
      np.asarray(self.uv, np.float32) @ p
      + np.asarray(self.phase, np.float32)[:, None]
    )
    # The ramps are a third of a period wide: at one ray a pixel a hard edge
    # would alias, and become noise that no model can predict.
    if self.pattern == 'stripes':
      level = 0.8 * u
    elif self.pattern == 'checks':
      level = 1.4 * u * v
    else:
      level = 1.1 * (u + v) - 0.9
    return np.clip(0.5 + level, 0, 1)


@dataclasses.dataclass
class Room:
  """Camera, floor, wall and sun. The floor is y = 0; vectors are [3]."""

  eye: np.ndarray
  aim: np.ndarray
  wall_normal: np.ndarray  # towards the camera
  wall_offset: float  # wall_normal @ p for every point p of the wall
  sun: np.ndarray  # unit vector towards the sun


def _camera_frame(eye, aim):
  """Returns a matrix of rows right, up, forward."""
  forward = (aim - eye) / np.linalg.norm(aim - eye)
  right = np.array([forward[2], 0, -forward[0]])
  right /= np.linalg.norm(right)
  return np.stack([right, cross(forward, right), forward])


def _trace(room, solids, corners):
  """Finds what each ray of the camera hits first.

  Args:
    corners: [S, 8, 3], of a box around each solid.

  Returns:
    Rays [3, n]; distances [n]; surfaces uint8 [n]: 0 floor, 1 wall, 2 + solid.
  """
  frame = _camera_frame(room.eye, room.aim)
  rays = (frame.T.astype(np.float32) @ _RAYS.reshape(3, -1)).reshape(
    3, SIZE, SIZE
  )
  eye = column(room.eye)
  normal = room.wall_normal.astype(np.float32)
  gap = float(room.wall_offset - room.wall_normal @ room.eye)
  floor = np.where(rays[1] < 0, -eye[1, 0] / rays[1], np.inf)
  wall = gap / np.tensordot(normal, rays, 1)
  surface = (wall < floor).astype(np.uint8)
  distance = np.minimum(wall, floor)
  # Each solid is tried with the rays in the window of its projected corners.
  right, up, forward = np.moveaxis((corners - room.eye) @ frame.T, -1, 0)
  scale = SIZE / 2 / np.tan(HALF_FOV) / np.maximum(forward, 0.1)
  columns, rows = SIZE / 2 + right * scale, SIZE / 2 - up * scale
  bounds = np.stack([rows.min(1), rows.max(1), columns.min(1), columns.max(1)])
  bounds = np.clip(np.rint(bounds), 0, SIZE).astype(int).T.tolist()
  for index, (solid, (top, bottom, start, stop)) in enumerate(
    zip(solids, bounds, strict=True)
  ):
    if top == bottom or start == stop:
      continue
    window = np.s_[top:bottom, start:stop]
    t = solid.hit(eye, rays[:, *window].reshape(3, -1))
    t = t.reshape(bottom - top, stop - start)
    closer = t < distance[window]
    np.copyto(distance[window], t, where=closer)
    np.copyto(surface[window], 2 + index, where=closer)
  return rays.reshape(3, -1), distance.ravel(), surface.ravel()


def _shadow(points, sun, solids, corners):
  """Returns bool [n]: whether a solid hides the sun from points [3, n]."""
  hidden = np.zeros(points.shape[1], bool)
  across = cross(sun, [0, 1, 0])
  plane = np.stack([across, cross(sun, across)])
  projected = plane.astype(np.float32) @ points
  corners = corners @ plane.T  # [S, 8, 2]
  low, high = corners.min(1), corners.max(1)
  toward = column(sun)

  def indices_within(coordinates, low, high):
    (a, b), (a0, b0), (a1, b1) = coordinates, low.tolist(), high.tolist()
    return np.flatnonzero((a > a0) & (a < a1) & (b > b0) & (b < b1))

  candidates = indices_within(projected, low.min(0), high.max(0))
  projected, points = projected[:, candidates], points[:, candidates]
  for index, solid in enumerate(solids):
    chosen = indices_within(projected, low[index], high[index])
    if chosen.size:
      met = solid.hit(points[:, chosen], toward) < np.inf
      hidden[candidates[chosen[met]]] = True
  return hidden


def render(room, solids, materials):
  """Draws an image: uint8 [SIZE, SIZE, 3].

  Args:
    room: a `Room`.
    solids: list of Hull, Ball, Cone, Torus.
    materials: list of `Material`: floor, wall, then those of the solids (a
      solid's `material` counts from there).
  """
  with np.errstate(all='ignore'):  # rays that miss end in inf and nan
    low = np.array([s.low for s in solids])[:, None]
    high = np.array([s.high for s in solids])[:, None]
    corners = np.where(CORNERS, high, low)  # [S, 8, 3]
    rays, distance, surface = _trace(room, solids, corners)
    points = column(room.eye) + rays * distance
    normals = np.zeros_like(points)
    normals[1] = surface == 0
    wall = surface == 1
    normals[0][wall], _, normals[2][wall] = room.wall_normal
    for index, solid in enumerate(solids):
      visible = np.flatnonzero(surface == index + 2)
      if visible.size:
        normals[:, visible] = solid.normal(points[:, visible])

    sun = room.sun.astype(np.float32)
    light = np.maximum(sun @ normals, 0)
    facing = np.flatnonzero(light)
    start = points[:, facing] + 2 * EPSILON * normals[:, facing]
    light[facing[_shadow(start, room.sun, solids, corners)]] = 0

    owner = np.array([0, 1] + [s.material + 2 for s in solids])[surface]
    colors = np.array([m.colors[0] for m in materials], np.float32).T
    color = colors[:, owner]
    shine = np.zeros_like(light)
    for index, material in enumerate(materials):
      if material.pattern == 'plain' and not material.gloss:
        continue
      pixels = np.flatnonzero(owner == index)
      if material.pattern != 'plain':
        step = column(np.subtract(material.colors[1], material.colors[0]))
        color[:, pixels] += step * material.mix(points[:, pixels])
      if material.gloss:
        half = column(room.sun) - rays[:, pixels]
        half /= np.sqrt(dot(half, half))
        glint = np.maximum(dot(normals[:, pixels], half), 0) ** 32
        shine[pixels] = material.gloss * glint * (light[pixels] > 0)
    color *= 0.36 + 0.10 * normals[1] + 0.62 * light
    color += shine
  image = np.clip(color * 255 + 0.5, 0, 255).astype(np.uint8)
  return np.ascontiguousarray(image.T).reshape(SIZE, SIZE, 3)
