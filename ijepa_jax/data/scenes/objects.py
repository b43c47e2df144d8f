"""The ten objects of the embedded pictures."""

from ijepa_jax.data.scenes import solids

# Each function returns solids of material 0 (main) and 1 (second). j(mean) is
# a length, drawn anew at each call.


def _legs(w, d, height, thick, material):
  x, z = (w - thick) / 2, (d - thick) / 2
  return [
    solids.box((i * x, height / 2, j * z), (thick, height, thick), material)
    for i in (-1, 1)
    for j in (-1, 1)
  ]


def _table(j):
  w, d, h, top, leg = j(1.9), j(1.25), j(1.15), j(0.15), j(0.16)
  slab = solids.box((0, h - top / 2, 0), (w, top, d), 0)
  return [slab, *_legs(0.92 * w, 0.92 * d, h - top, leg, 1)]


def _chair(j):
  w, h, top, leg, back = j(1.1), j(0.85), j(0.15), j(0.14), j(0.95)
  seat = solids.box((0, h - top / 2, 0), (w, top, w), 0)
  support = solids.box((0, h + back / 2, (top - w) / 2), (w, back, top), 0)
  return [seat, support, *_legs(w, w, h - top, leg, 1)]


def _lamp(j):
  pole = j(1.0)
  return [
    solids.Cone((0, pole, 0), j(0.75), j(0.7), j(0.35), 0),
    solids.Cone((0, 0, 0), pole, *[j(0.08)] * 2, 1),
    solids.Cone((0, 0, 0), j(0.12), *[j(0.45)] * 2, 1),
  ]


def _pine(j):
  trunk, tall = j(0.38), j(0.9)
  return [
    solids.Cone((0, trunk, 0), tall, j(0.85), 0.0, 0),
    solids.Cone((0, trunk + 0.62 * tall, 0), j(0.8), j(0.58), 0.0, 0),
    solids.Cone((0, 0, 0), trunk, *[j(0.18)] * 2, 1),
  ]


def _tree(j):
  radius, trunk = j(0.66), j(0.7)
  return [
    solids.Ball((0, trunk + 0.85 * radius, 0), radius, 0),
    solids.Cone((0, 0, 0), trunk, *[j(0.17)] * 2, 1),
  ]


def _house(j):
  w, h, d = j(1.5), j(0.9), j(1.15)
  return [
    solids.box((0, h / 2, 0), (w, h, d), 0),
    solids.gable((0, h, 0), (1.1 * w, j(0.7), 1.2 * d), 1),
  ]


def _car(j):
  w, h, d, wheel, wide = j(2.0), j(0.47), j(0.95), j(0.29), j(0.2)
  roof, shift, floor = j(0.46), 0.6 * (j(1.0) - j(1.0)), 0.8 * wheel
  cabin = (shift, floor + h + roof / 2, 0)
  return [
    solids.box((0, floor + h / 2, 0), (w, h, d), 0),
    solids.box(cabin, (j(1.05), roof, 0.85 * d), 0),
    *(
      solids.Cone((x, wheel, z - wide / 2), wide, wheel, wheel, 1, axis=2)
      for x in (-0.3 * w, 0.3 * w)
      for z in (0.06 - d / 2, d / 2 - 0.06)
    ),
  ]


def _snowman(j):
  a, b, c = j(0.52), j(0.38), j(0.27)
  waist = a + 0.8 * (a + b)
  return [
    solids.Ball((0, a, 0), a, 0),
    solids.Ball((0, waist, 0), b, 0),
    solids.Ball((0, waist + 0.8 * (b + c), 0), c, 1),
  ]


def _mug(j):
  r, h = j(0.6), j(1.3)
  return [
    solids.Cone((0, 0, 0), h, r, r, 0),
    solids.Cone((0, h, 0), 0.01, *[0.84 * r] * 2, 1),  # the drink
    solids.Torus((r + 0.05, h / 2, 0), j(0.38), j(0.1), 0),
  ]


def _rocket(j):
  r, low, tall = j(0.42), j(0.16), j(1.05)
  fin, high, thick = j(1.5), j(0.6), j(0.1)
  return [
    solids.Cone((0, low, 0), tall, r, r, 0),
    solids.Cone((0, low + tall, 0), j(0.65), r, 0.0, 1),
    solids.box((0, high / 2, 0), (fin, high, thick), 1),
    solids.box((0, high / 2, 0), (thick, high, fin), 1),
  ]


OBJECTS = (
  *(_table, _chair, _lamp, _pine, _tree),
  *(_house, _car, _snowman, _mug, _rocket),
)
