"""Prints where the time of a run went, over all its starts.

    python -m ijepa_jax.goodput runs/vit_l16 [--json]

Goodput is the share of the time since the first start that went into steps that
counted. The last ten seconds of a start that was killed (on a bucket the last
minute) may be missing: they count as time between two starts.
"""

import json
import sys

from absl import app, flags

from ijepa_jax.runtime import cli
from ijepa_jax.runtime.timing import summary

flags.DEFINE_bool('json', False, 'Print one line, an object.')


@cli.one_sentence()
def main(argv):
  if len(argv) != 2:
    sys.exit('Say which run: python -m ijepa_jax.goodput <workdir> [--json]')
  starts = summary.read(argv[1])
  if flags.FLAGS.json:
    print(json.dumps({**summary.total(starts), 'each': starts}))
  else:
    print(summary.table(starts))


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse)
