"""Serves the page on this machine: read only, by the standard library."""

import http.server
import threading
import urllib.parse

from absl import logging

from ijepa_jax.errors import UserError
from ijepa_jax.watch import page
from ijepa_jax.watch.runs import Run

# Nothing of elsewhere is loaded, and nothing is sent.
_POLICY = (
  "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'; connect-src 'self'"
)
_LOCAL = 'localhost', '127.0.0.1', '[::1]'


def make_server(runs: list[Run], host: str, port: int):
  """Returns an http.server.ThreadingHTTPServer; `serve_forever` serves.

  Args:
    runs: that are shown.
    host: address that is listened at.
    port: 0: any that is free.

  Raises:
    UserError: the port is taken.
  """
  lock = threading.Lock()  # Matplotlib draws in one thread at a time

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      url = urllib.parse.urlsplit(self.path)
      # A page of elsewhere that has this machine's address by a name of its
      # own is not answered.
      name = self.headers.get('Host', '').rpartition(':')[0]
      if host in _LOCAL and name not in _LOCAL:
        self.send_error(403)
        return
      with lock:
        answer = respond(runs, url.path, urllib.parse.parse_qs(url.query))
      if answer is None:
        self.send_error(404)
        return
      kind, content = answer
      self.send_response(200)
      for key, value in (
        ('Content-Type', kind),
        ('Content-Length', str(len(content))),
        ('Content-Security-Policy', _POLICY),
        ('Cache-Control', 'no-store'),
      ):
        self.send_header(key, value)
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, words, *values):
      logging.debug(words, *values)

  try:
    return http.server.ThreadingHTTPServer((host, port), Handler)
  except OSError as error:
    raise UserError(
      f'{host}:{port} cannot be listened at ({error.strerror}): take another '
      '--port.'
    ) from error


def respond(
  runs: list[Run], path: str, query: dict
) -> tuple[str, bytes] | None:
  """Content type and content of a path; None: there is nothing."""
  if path == '/':
    for run in runs:
      run.refresh()
    by = query.get('sort', [''])[0]
    descending = query.get('down', ['0'])[0] == '1'
    text = page.page(runs, by, descending)
    return 'text/html; charset=utf-8', text.encode()
  kind, _, index = path.strip('/').partition('/')
  if not (index.isdecimal() and int(index) < len(runs)):
    return None
  run = runs[int(index)]
  run.refresh()
  if kind == 'curves' and run.rows:
    return 'image/png', run.curves()
  if kind == 'picture' and run.picture().exists():
    return 'image/png', run.picture().read_bytes()
  return None
