"""Linear probes of the embedded pictures' raw pixels, at several resolutions.

    python benchmarks/pixel_probe.py [8 16 24 48]

Says what resolution `online_probe.PIXEL_GRID` should have: the one at which
pixels are the strongest baseline. 48 is every pixel, and takes minutes.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # configs/

from configs import tiny
from ijepa_jax.train import monitors
from ijepa_jax.train.run import make_run


def main(grids):
  config = tiny.get_config()
  run = make_run(config)
  probe = monitors.make_probe(run)
  for grid in grids:
    began = time.monotonic()
    scores = probe.pixels(grid)
    words = ', '.join(f'{k} {100 * v:.1f}' for k, v in scores.items())
    print(f'{grid} x {grid}: {words}, {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
  main([int(a) for a in sys.argv[1:]] or [8, 16, 24])
