"""Shows runs while they train, on a page that renews itself.

    python -m ijepa_jax.watch runs/a runs/b

Curves, health in words, probes, and pictures of masks and tokens; several runs
side by side in a table that sorts by any metric. It reads the workdirs and
writes nothing. Of a run on a server: start it there, and on your own machine

    ssh -N -L 6060:localhost:6060 server
"""

import sys

from absl import app, flags

from ijepa_jax.runtime import cli

flags.DEFINE_integer('port', 6060, 'Of http://localhost; 0: any that is free.')
flags.DEFINE_string('host', 'localhost', 'Address to listen at; 0.0.0.0: any.')


@cli.one_sentence()
def main(argv):
  if len(argv) < 2:
    sys.exit('Say which runs: python -m ijepa_jax.watch <workdir> [<workdir>]')
  from ijepa_jax.watch import runs, server

  opened = runs.open_runs(argv[1:])
  with server.make_server(
    opened, flags.FLAGS.host, flags.FLAGS.port
  ) as serving:
    port = serving.server_address[1]
    print(f'http://{flags.FLAGS.host}:{port} (Ctrl-C ends it)', flush=True)
    try:
      serving.serve_forever()
    except KeyboardInterrupt:
      print()


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse)
