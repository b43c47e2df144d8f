"""The solids that the ray caster draws.

Each has `low` and `high`, the corners [3] of a box around it; `material`, an
index; `hit(origin, direction)`, the distance [n] at which each ray meets it
first, or inf; and `normal(p)`, unit normals [3, n] at points of its surface.
"""

import numpy as np

EPSILON = 1e-3  # a hit nearer than this is the surface that the ray leaves
_TORUS_STEPS = 24
CORNERS = np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(8, 3)


def column(values):
  return np.asarray(values, np.float32).reshape(3, 1)


def cross(a, b):
  # np.cross takes 40 us for this: a tenth of an image's time goes there.
  (a0, a1, a2), (b0, b1, b2) = a, b
  return np.array([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0])


def dot(a, b):
  return (a * b).sum(0)


class Hull:
  """Convex polyhedron: all points p with normals [P, 3] @ p <= offsets [P]."""

  def __init__(self, normals, offsets, low, high, material):
    self.normals = np.asarray(normals, np.float32)
    self.offsets = np.asarray(offsets, np.float32)[:, None]
    self.low, self.high, self.material = low, high, material

  def hit(self, origin, direction):
    rate = self.normals @ direction
    t = (self.offsets - self.normals @ origin) / rate
    enter = np.where(rate < 0, t, -np.inf).max(0)
    leave = np.where(rate > 0, t, np.inf).min(0)
    return np.where((enter < leave) & (enter > EPSILON), enter, np.inf)

  def normal(self, p):
    nearest = (self.normals @ p - self.offsets).argmax(0)
    return self.normals[nearest].T


def box(center, size, material, yaw=0.0):
  """Returns a box of `size` (x, y, z), turned about y by `yaw` radians."""
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
  """Returns a roof over a base around `center`; its ridge runs along x."""
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
    self.center, self.radius = column(center), radius
    self.low = np.asarray(center) - radius
    self.high = np.asarray(center) + radius
    self.material = material

  def hit(self, origin, direction):
    from_center = origin - self.center
    b = dot(from_center, direction)
    c = dot(from_center, from_center) - self.radius**2
    t = -b - np.sqrt(b * b - c)
    return np.where(t > EPSILON, t, np.inf)

  def normal(self, p):
    return (p - self.center) / self.radius


class Cone:
  """Cone, frustum or cylinder from `base` along `axis` (1 up, 2 along z).

  Its radius goes from `r0` at the base to `r1` at `height`.
  """

  def __init__(self, base, height, r0, r1, material, axis=1):
    self.base, self.height, self.r0, self.r1 = column(base), height, r0, r1
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
      valid = (t > EPSILON) & (level > 0) & (level < self.height)
      best = np.minimum(best, np.where(valid, t, np.inf))
    for level, r in ((0, self.r0), (self.height, self.r1)):
      if r:
        t = (level - y) / dy
        valid = (x + t * dx) ** 2 + (z + t * dz) ** 2 < r * r
        best = np.minimum(best, np.where(valid & (t > EPSILON), t, np.inf))
    return best

  def normal(self, p):
    x, y, z = (p - self.base)[self.order]
    cap = (y > self.height - EPSILON).astype(np.float32) - (y < EPSILON)
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
    self.center, self.ring, self.tube = column(center), ring, tube
    reach = np.array([ring + tube, ring + tube, tube])
    self.low, self.high = np.asarray(center) - reach, center + reach
    self.material = material

  def _distance(self, x, y, z):
    return np.hypot(np.hypot(x, y) - self.ring, z) - self.tube

  def hit(self, origin, direction):
    # Sphere tracing from the bounding ball: shorter than solving the quartic,
    # and stable in float32.
    start = origin - self.center
    b = dot(start, direction)
    c = dot(start, start) - (self.ring + self.tube) ** 2
    t = np.maximum(-b - np.sqrt(b * b - c), 2 * EPSILON)
    (x, y, z), (dx, dy, dz) = start, direction
    for _ in range(_TORUS_STEPS):
      gap = self._distance(x + t * dx, y + t * dy, z + t * dz)
      t = t + gap
    return np.where((gap < EPSILON) & (t > 0.02), t, np.inf)

  def normal(self, p):
    x, y, z = p - self.center
    flat = 1 - self.ring / np.hypot(x, y)
    return np.stack([x * flat, y * flat, z]) / self.tube
