"""Linear probes of the embedded pictures' raw pixels, at several resolutions.

    python benchmarks/pixel_probe.py [8 16 24 48]

Says what resolution `scenes_probe.PIXEL_GRID` should have: the one at which
pixels are the strongest baseline. 48 is every pixel, and takes minutes.
"""

import sys
import time

from ijepa_jax import ijepa, sharding, vit
from ijepa_jax.evals import scenes_probe


def main(grids):
  encoder, predictor = vit.make_models(
    size='tiny', patch_size=6, predictor_depth=1
  )
  probe = scenes_probe.ScenesProbe(
    ijepa.IJEPA(encoder, predictor), sharding.make_mesh()
  )
  for grid in grids:
    began = time.monotonic()
    scores = probe.pixels(grid)
    words = ', '.join(
      f'{k.removeprefix("probe/")} {100 * v:.1f}' for k, v in scores.items()
    )
    print(f'{grid} x {grid}: {words}, {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
  main([int(a) for a in sys.argv[1:]] or [8, 16, 24])
