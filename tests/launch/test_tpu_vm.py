"""launch/tpu_vm.sh with a gcloud that records what it is asked."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch/tpu_vm.sh'
# Answers `describe` and `ssh` by the files of a folder, a line a call, the last
# one again and again; a worker runs the command of ssh as sshd does.
GCLOUD = r"""#!{python} -IS
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
with open(folder / 'asked', 'a') as file:
  print(json.dumps(sys.argv[1:]), file=file)

def answer(name):
  lines = (folder / name).read_text().splitlines()
  (folder / name).write_text('\n'.join(lines[1:] or lines))
  return lines[0]

verb = sys.argv[4]
if verb == 'describe':
  state = answer('states')
  print('Using the zone of the flag.', file=sys.stderr)
  if state == 'ABSENT':
    sys.exit("ERROR: NOT_FOUND: Resource 'x' was not found")
  if state == 'OFFLINE':
    sys.exit('ERROR: no network')
  print(state)
elif verb == 'ssh':
  line = next(a for a in sys.argv if a.startswith('--command='))[10:]
  home = folder / 'home'
  env = os.environ | {{'HOME': str(home)}}
  subprocess.run([{shell!r}, '-c', line], cwd=home, env=env)
  if 'local.sh' in line:
    sys.exit(int(answer('statuses')))
"""
# What is on a worker.
LOCAL = """#!{python} -IS
import json, sys
with open({folder!r} + '/ran', 'a') as file:
  print(json.dumps(sys.argv[1:]), file=file)
"""
ARGUMENTS = [
  '--config=configs/vit_l16.py',
  '--workdir=gs://bucket/my runs/l16',
  '--config.data.path=/it\'s a "path" with $HOME, `id` & (more); *',
  '--config.optim.betas=(0.9, 0.95)',
  '--config.init_from=',
]
QUEUED = {
  'TPU': 'run',
  'ZONE': 'z',
  'TYPE': 'v6e-64',
  'VERSION': 'v2-alpha-tpuv6e',
  'SETUP': 'mkdir -p ijepa_jax && echo "set up" >> setups',
  'POLL': '0',
}
QR = ['compute', 'tpus', 'queued-resources']


class Cloud:
  def __init__(self, folder, shell='bash'):
    self.folder = folder
    launch = folder / 'home/ijepa_jax/launch'
    launch.mkdir(parents=True)
    values = {'python': sys.executable, 'folder': str(folder), 'shell': shell}
    for path, text in (
      (folder / 'gcloud', GCLOUD),
      (launch / 'local.sh', LOCAL),
    ):
      path.write_text(text.format(**values))
      path.chmod(0o755)
    self.script([], [0])

  def script(self, states, statuses):
    for name, values in (('states', states), ('statuses', statuses)):
      (self.folder / name).write_text('\n'.join(map(str, values)))

  def start(self, *arguments, **env):
    path = f'{self.folder}:{os.environ["PATH"]}'
    return subprocess.Popen(
      [SCRIPT, *arguments],
      env=os.environ | {'PATH': path} | env,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *arguments, **env):
    run = self.start(*arguments, **env)
    _, words = run.communicate(timeout=60)
    return run.returncode, words

  def read(self, name) -> list:
    path = self.folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]

  def asked(self) -> tuple[list[str], list[list[str]]]:
    """The verbs, but for `describe`; and the lists of arguments."""
    calls = [c for c in self.read('asked') if c[3] != 'describe']
    assert all('--zone=z' in c for c in calls)
    return [c[3] for c in calls], calls


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


@pytest.mark.parametrize('shell', ['bash', 'sh'])
def test_arguments_survive(shell, tmp_path):
  cloud = Cloud(tmp_path, shell)
  assert cloud.run(*ARGUMENTS, TPU='old', ZONE='z')[0] == 0
  assert cloud.read('ran') == [ARGUMENTS]
  (call,) = cloud.asked()[1]
  assert call[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'old']
  assert '--worker=all' in call and '--batch-size=all' in call


def test_a_tpu_vm_that_is_there_is_tried_once(cloud):
  cloud.script([], [143])
  assert cloud.run(*ARGUMENTS, TPU='old', ZONE='z')[0] == 143
  assert cloud.asked()[0] == ['ssh']


@pytest.mark.parametrize(
  ('env', 'flags'),
  [
    ({}, ['--node-id=run']),
    ({'SPOT': '1'}, ['--spot', '--node-id=run']),
    ({'SLICES': '3'}, ['--node-count=3', '--node-prefix=run']),
    (
      {'FLAGS': '--network=n --service-account=a@b'},
      ['--node-id=run', '--network=n', '--service-account=a@b'],
    ),
  ],
)
def test_queued_run_and_deleted(cloud, env, flags):
  cloud.script(['ABSENT', 'WAITING_FOR_RESOURCES', 'ACTIVE'], [0])
  assert cloud.run(*ARGUMENTS, **QUEUED | env)[0] == 0
  verbs, (create, ssh, delete) = cloud.asked()
  assert verbs == ['create', 'ssh', 'delete']
  assert create[:5] == [*QR, 'create', 'run']
  assert [c for c in create[5:] if c != '--quiet'] == [
    '--zone=z',
    '--accelerator-type=v6e-64',
    '--runtime-version=v2-alpha-tpuv6e',
    *flags,
  ]
  assert ssh[:5] == [*QR, 'ssh', 'run']
  assert {'--node=all', '--worker=all', '--batch-size=all'} <= set(ssh)
  assert delete[:5] == [*QR, 'delete', 'run'] and '--force' in delete
  assert cloud.read('ran') == [ARGUMENTS]


def test_a_preempted_one_is_queued_again_and_the_same_line_goes_on(cloud):
  """Its workers are new, and the second time they are set up already."""
  cloud.script(
    [
      *('ABSENT', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'ABSENT'),
      *('PROVISIONING', 'ACTIVE'),
    ],
    [255, 143, 0],
  )
  assert cloud.run(*ARGUMENTS, **QUEUED)[0] == 0
  verbs, calls = cloud.asked()
  assert verbs == ['create', 'ssh', 'delete', 'create', 'ssh', 'ssh', 'delete']
  assert calls[0] == calls[3] and calls[1] == calls[4] == calls[5]
  assert cloud.read('ran') == [ARGUMENTS] * 3
  assert (cloud.folder / 'home/setups').read_text() == 'set up\n'


def test_what_a_broken_connection_left_ends_first(cloud):
  """That, and nothing that has its number by chance."""
  left, other = (
    subprocess.Popen(
      [sys.executable, '-c', f'import time; time.sleep(50) # {x}']
    )
    for x in ('main.py', '')
  )
  pid = cloud.folder / 'home/.ijepa_pid'
  for process in (other, left):
    pid.write_text(f'{process.pid}\n')
    threading.Thread(target=process.wait).start()  # or it stays a zombie
    assert cloud.run(*ARGUMENTS, TPU='old', ZONE='z')[0] == 0
  assert left.returncode == -signal.SIGTERM and other.poll() is None
  other.kill()
  assert cloud.read('ran') == [ARGUMENTS] * 2


def test_a_broken_connection_is_tried_again(cloud):
  cloud.script(['ACTIVE'], [255, 0])
  assert cloud.run(*ARGUMENTS, **QUEUED)[0] == 0
  verbs, calls = cloud.asked()
  assert verbs == ['ssh', 'ssh', 'delete'] and calls[0] == calls[1]


def test_a_mistake_ends(cloud):
  cloud.script(['ACTIVE'], [1])
  assert cloud.run(*ARGUMENTS, **QUEUED, TRIES='3')[0] == 1
  assert len(cloud.read('ran')) == 3
  assert 'delete' not in cloud.asked()[0]


@pytest.mark.parametrize(
  ('states', 'words'),
  [(['FAILED'], 'Refused: .* describe run'), (['OFFLINE'], 'no network')],
)
def test_a_queue_that_refuses_ends(cloud, states, words):
  cloud.script(states, [0])
  status, said = cloud.run(*ARGUMENTS, **QUEUED, TRIES='2')
  assert status == 1
  assert re.search(words, said)
  assert cloud.asked()[0] == []


@pytest.mark.parametrize(
  ('missing', 'env'),
  [
    ('TPU', {'ZONE': 'z'}),
    ('ZONE', {'TPU': 'x'}),
    ('VERSION', {k: v for k, v in QUEUED.items() if k != 'VERSION'}),
    ('SETUP', {k: v for k, v in QUEUED.items() if k != 'SETUP'}),
  ],
)
def test_what_must_be_set(cloud, missing, env):
  status, words = cloud.run(*ARGUMENTS, **env)
  assert status != 0 and f'{missing}: set it to' in words
  assert not cloud.read('asked')


@pytest.mark.parametrize(
  ('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_stopping_it_stops_the_workers(cloud, number, status):
  """A worker that ends when it is told, as main.py does."""
  checkout = cloud.folder / 'home/ijepa_jax'
  (checkout / 'main.py').write_text(
    'import signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
    "open('began', 'w').close()\n"
    'time.sleep(50)\n'
  )
  (checkout / 'launch/local.sh').write_text(
    f'#!/bin/sh\nexec {sys.executable} main.py\n'
  )
  cloud.script(['ACTIVE'], [143])
  run = cloud.start(*ARGUMENTS, **QUEUED)
  while not (cloud.folder / 'home/ijepa_jax/began').exists():
    time.sleep(0.05)
  run.send_signal(number)
  _, words = run.communicate(timeout=30)
  assert run.returncode == status
  assert 'All workers save and end.' in words
  assert 'delete' not in cloud.asked()[0]
