"""A ray-caster in numpy: upright solids on a floor before a wall, one sun.

Everything is float32, one ray a pixel. Arrays of rays and points are [3, n];
one origin for many rays is [3, 1], and so is one direction for many origins:
broadcasting then does only the work that varies.
"""

import dataclasses

import numpy as np

SIZE = 48  # pixels, rows and columns
HALF_FOV = 0.40  # radians
_EPSILON = 1e-3  # hits nearer than this are the surface that a ray leaves
_TORUS_STEPS = 24


def _camera_rays():
  steps = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
  x, y = np.meshgrid(steps, -steps)
  rays = np.stack([x, y, np.full_like(x, 1 / np.tan(HALF_FOV))])
  rays /= np.linalg.norm(rays, axis=0)
  return rays.astype(np.float32)


_RAYS = _camera_rays()  # [3, SIZE, SIZE]: right, up, forward
_CORNERS = np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(8, 3)


def _column(values):
  return np.asarray(values, np.float32).reshape(3, 1)


def _cross(a, b):
  # np.cross takes 40 us for this: a tenth of an image's time goes there.
  (a0, a1, a2), (b0, b1, b2) = a, b
  return np.array([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0])


def _dot(a, b):
  return (a * b).sum(0)


class Hull:
  """Convex polyhedron: the points p with normals [P,3] @ p <= offsets [P]."""

  def __init__(self, normals, offsets, low, high, material):
    self.normals = np.asarray(normals, np.float32)
    self.offsets = np.asarray(offsets, np.float32)[:, None]
    self.low, self.high, self.material = low, high, material

  def hit(self, origin, direction):
    rate = self.normals @ direction
    t = (self.offsets - self.normals @ origin) / rate
    enter = np.where(rate < 0, t, -np.inf).max(0)
    leave = np.where(rate > 0, t, np.inf).min(0)
    return np.where((enter < leave) & (enter > _EPSILON), enter, np.inf)

  def normal(self, p):
    nearest = (self.normals @ p - self.offsets).argmax(0)
    return self.normals[nearest].T


def box(center, size, material, yaw=0.0):
  """Box of full `size` (x, y, z) turned about the vertical by `yaw` rad."""
  c, s = np.cos(yaw), np.sin(yaw)
  axes = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
  center, half = np.asarray(center), np.asarray(size) / 2
  along = axes @ center
  reach = np.abs(axes.T) @ half
  return Hull(
    np.concatenate([axes, -axes]),
    np.concatenate([half + along, half - along]),
    center - reach,
    center + reach,
    material,
  )


def gable(center, size, material):
  """Roof over a base centred at `center`: the ridge runs along x."""
  x, y, z = center
  length, height, width = size
  slope = np.hypot(height, width / 2)
  up, side = width / 2 / slope, height / slope
  top = up * (y + height)
  return Hull(
    [[1, 0, 0], [-1, 0, 0], [0, -1, 0], [0, up, side], [0, up, -side]],
    [length / 2 + x, length / 2 - x, -y, top + side * z, top - side * z],
    np.array([x - length / 2, y, z - width / 2]),
    np.array([x + length / 2, y + height, z + width / 2]),
    material,
  )


class Ball:
  """Sphere."""

  def __init__(self, center, radius, material):
    self.center, self.radius = _column(center), radius
    self.low = np.asarray(center) - radius
    self.high = np.asarray(center) + radius
    self.material = material

  def hit(self, origin, direction):
    from_center = origin - self.center
    b = _dot(from_center, direction)
    c = _dot(from_center, from_center) - self.radius**2
    t = -b - np.sqrt(b * b - c)
    return np.where(t > _EPSILON, t, np.inf)

  def normal(self, p):
    return (p - self.center) / self.radius


class Cone:
  """Cone, frustum or cylinder from `base` along `axis` (1 up, 2 along z).

  Its radius goes from `r0` at the base to `r1` at `height`.
  """

  def __init__(self, base, height, r0, r1, material, axis=1):
    self.base, self.height, self.r0, self.r1 = _column(base), height, r0, r1
    self.slope = (r1 - r0) / height
    self.order = [0, axis, 3 - axis]
    self.axis, self.material = axis, material
    reach = np.full(3, max(r0, r1))
    reach[axis] = 0
    self.low, self.high = base - reach, base + reach
    self.high[axis] += height

  def hit(self, origin, direction):
    x, y, z = (origin - self.base)[self.order]
    dx, dy, dz = direction[self.order]
    k = self.slope
    radius = self.r0 + k * y
    a = dx * dx + dz * dz - (k * dy) ** 2
    b = x * dx + z * dz - k * radius * dy
    c = x * x + z * z - radius * radius
    root = np.sqrt(b * b - a * c)
    best = np.inf
    for t in ((-b - root) / a, (-b + root) / a):
      level = y + t * dy
      valid = (t > _EPSILON) & (level > 0) & (level < self.height)
      best = np.minimum(best, np.where(valid, t, np.inf))
    for level, r in ((0, self.r0), (self.height, self.r1)):
      if r:
        t = (level - y) / dy
        inside = (x + t * dx) ** 2 + (z + t * dz) ** 2 < r * r
        best = np.minimum(best, np.where(inside & (t > _EPSILON), t, np.inf))
    return best

  def normal(self, p):
    x, y, z = (p - self.base)[self.order]
    cap = (y > self.height - _EPSILON).astype(np.float32) - (y < _EPSILON)
    scale = np.where(cap == 0, 1 / np.hypot(1, self.slope), 0)
    scale /= np.hypot(x, z)
    normal = np.empty_like(p)
    normal[0] = x * scale
    normal[3 - self.axis] = z * scale
    normal[self.axis] = np.where(
      cap == 0, -self.slope / np.hypot(1, self.slope), cap
    )
    return normal


class Torus:
  """Ring of radius `ring` in the x-y plane, tube of radius `tube`."""

  def __init__(self, center, ring, tube, material):
    self.center, self.ring, self.tube = _column(center), ring, tube
    reach = np.array([ring + tube, ring + tube, tube])
    self.low, self.high = np.asarray(center) - reach, center + reach
    self.material = material

  def _distance(self, x, y, z):
    return np.hypot(np.hypot(x, y) - self.ring, z) - self.tube

  def hit(self, origin, direction):
    # Sphere tracing from the bounding ball: shorter than solving the quartic,
    # and stable in float32.
    start = origin - self.center
    b = _dot(start, direction)
    c = _dot(start, start) - (self.ring + self.tube) ** 2
    t = np.maximum(-b - np.sqrt(b * b - c), 2 * _EPSILON)
    (x, y, z), (dx, dy, dz) = start, direction
    for _ in range(_TORUS_STEPS):
      gap = self._distance(x + t * dx, y + t * dy, z + t * dz)
      t = t + gap
    return np.where((gap < _EPSILON) & (t > 0.02), t, np.inf)

  def normal(self, p):
    x, y, z = p - self.center
    flat = 1 - self.ring / np.hypot(x, y)
    return np.stack([x * flat, y * flat, z]) / self.tube


@dataclasses.dataclass
class Material:
  """Two colours [3] in 0..1 mixed by a pattern over (u, v) = uv [2,3] @ p."""

  colors: tuple
  pattern: str = 'plain'  # plain, stripes, checks, dots
  uv: np.ndarray | None = None  # radians a unit of length
  phase: tuple = (0.0, 0.0)
  gloss: float = 0.0

  def mix(self, p):
    """Share of the second colour at points p [3,n] -> [n] in 0..1."""
    u, v = np.sin(
      np.asarray(self.uv, np.float32) @ p
      + np.asarray(self.phase, np.float32)[:, None]
    )
    # The ramps are a third of a period wide: a hard edge would alias at one
    # ray a pixel, and become noise that nobody can predict.
    if self.pattern == 'stripes':
      level = 0.8 * u
    elif self.pattern == 'checks':
      level = 1.4 * u * v
    else:
      level = 1.1 * (u + v) - 0.9
    return np.clip(0.5 + level, 0, 1)


@dataclasses.dataclass
class Room:
  """What surrounds the solids. The floor is y = 0; vectors are [3]."""

  eye: np.ndarray
  aim: np.ndarray
  wall_normal: np.ndarray  # towards the camera
  wall_offset: float  # wall_normal @ p of the wall's points
  sun: np.ndarray  # unit vector towards it


def _look(eye, aim):
  """Rows: right, up, forward."""
  forward = (aim - eye) / np.linalg.norm(aim - eye)
  right = np.array([forward[2], 0, -forward[0]])
  right /= np.linalg.norm(right)
  return np.stack([right, _cross(forward, right), forward])


def _trace(room, solids, corners):
  """-> rays [3,n], distance [n], which [n]: 0 floor, 1 wall, 2 + solid."""
  frame = _look(room.eye, room.aim)
  rays = (frame.T.astype(np.float32) @ _RAYS.reshape(3, -1)).reshape(
    3, SIZE, SIZE
  )
  eye = _column(room.eye)
  normal = room.wall_normal.astype(np.float32)
  gap = float(room.wall_offset - room.wall_normal @ room.eye)
  floor = np.where(rays[1] < 0, -eye[1, 0] / rays[1], np.inf)
  wall = gap / np.tensordot(normal, rays, 1)
  which = (wall < floor).astype(np.uint8)
  distance = np.minimum(wall, floor)
  # Each solid meets only the rays in the frame of its projected corners.
  right, up, forward = np.moveaxis((corners - room.eye) @ frame.T, -1, 0)
  scale = SIZE / 2 / np.tan(HALF_FOV) / np.maximum(forward, 0.1)
  columns, rows = SIZE / 2 + right * scale, SIZE / 2 - up * scale
  bounds = np.stack([rows.min(1), rows.max(1), columns.min(1), columns.max(1)])
  bounds = np.clip(np.rint(bounds), 0, SIZE).astype(int).T.tolist()
  for index, (solid, (top, bottom, left, end)) in enumerate(
    zip(solids, bounds, strict=True)
  ):
    if top == bottom or left == end:
      continue
    window = np.s_[top:bottom, left:end]
    t = solid.hit(eye, rays[:, *window].reshape(3, -1))
    t = t.reshape(bottom - top, end - left)
    closer = t < distance[window]
    np.copyto(distance[window], t, where=closer)
    np.copyto(which[window], 2 + index, where=closer)
  return rays.reshape(3, -1), distance.ravel(), which.ravel()


def _shadow(points, sun, solids, corners):
  """Which points [3,n] the solids hide from the sun -> bool [n]."""
  hidden = np.zeros(points.shape[1], bool)
  across = _cross(sun, [0, 1, 0])
  plane = np.stack([across, _cross(sun, across)])
  flat = plane.astype(np.float32) @ points
  corners = corners @ plane.T  # [S, 8, 2]
  low, high = corners.min(1), corners.max(1)
  toward = _column(sun)

  def inside(where, low, high):
    (a, b), (a0, b0), (a1, b1) = where, low.tolist(), high.tolist()
    return np.flatnonzero((a > a0) & (a < a1) & (b > b0) & (b < b1))

  near = inside(flat, low.min(0), high.max(0))
  flat, points = flat[:, near], points[:, near]
  for index, solid in enumerate(solids):
    chosen = inside(flat, low[index], high[index])
    if chosen.size:
      met = solid.hit(points[:, chosen], toward) < np.inf
      hidden[near[chosen[met]]] = True
  return hidden


def render(room, solids, materials):
  """-> image uint8 [SIZE,SIZE,3].

  Args:
    room: a `Room`.
    solids: list of Hull, Ball, Cone, Torus.
    materials: list of `Material`: floor, wall, then those of the solids (a
      solid's `material` counts from there).
  """
  with np.errstate(all='ignore'):  # rays that miss end in inf and nan
    low = np.array([s.low for s in solids])[:, None]
    high = np.array([s.high for s in solids])[:, None]
    corners = np.where(_CORNERS, high, low)  # [S, 8, 3]
    rays, distance, which = _trace(room, solids, corners)
    points = _column(room.eye) + rays * distance
    normals = np.zeros_like(points)
    normals[1] = which == 0
    wall = which == 1
    normals[0][wall], _, normals[2][wall] = room.wall_normal
    for index, solid in enumerate(solids):
      seen = np.flatnonzero(which == index + 2)
      if seen.size:
        normals[:, seen] = solid.normal(points[:, seen])

    sun = room.sun.astype(np.float32)
    light = np.maximum(sun @ normals, 0)
    facing = np.flatnonzero(light)
    start = points[:, facing] + 2 * _EPSILON * normals[:, facing]
    light[facing[_shadow(start, room.sun, solids, corners)]] = 0

    owner = np.array([0, 1] + [s.material + 2 for s in solids])[which]
    colors = np.array([m.colors[0] for m in materials], np.float32).T
    color = colors[:, owner]
    shine = np.zeros_like(light)
    for index, material in enumerate(materials):
      if material.pattern == 'plain' and not material.gloss:
        continue
      mine = np.flatnonzero(owner == index)
      if material.pattern != 'plain':
        step = _column(np.subtract(material.colors[1], material.colors[0]))
        color[:, mine] += step * material.mix(points[:, mine])
      if material.gloss:
        half = _column(room.sun) - rays[:, mine]
        half /= np.sqrt(_dot(half, half))
        glint = np.maximum(_dot(normals[:, mine], half), 0) ** 32
        shine[mine] = material.gloss * glint * (light[mine] > 0)
    color *= 0.36 + 0.10 * normals[1] + 0.62 * light
    color += shine
  image = np.clip(color * 255 + 0.5, 0, 255).astype(np.uint8)
  return np.ascontiguousarray(image.T).reshape(SIZE, SIZE, 3)
