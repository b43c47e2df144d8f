"""The JobSets of launch/gke: their schema, their pods, what follows an end."""

import copy
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading

import jsonschema
import pytest

from ijepa_jax.runtime import metrics
from ijepa_jax.runtime.distributed import launchers
from tests.launch import jobsets
from tests.train import test_pretrain

SCHEMA = json.loads(
  (pathlib.Path(__file__).parent / 'jobset_schema.json').read_text()
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# Slice counts of the TPU one.
JOBSETS = [('tpu', 1), ('tpu', 3), ('gpu', 1)]
each = pytest.mark.parametrize('jobset', JOBSETS, ids=str, indirect=True)


@pytest.fixture
def jobset(request):
  return jobsets.load(*request.param)


@each
def test_schema(jobset):
  VALIDATOR.validate(jobset)


@pytest.mark.parametrize(
  ('where', 'key', 'value'),
  [
    ('', 'apiVersion', 'jobset.x-k8s.io/v1'),
    ('spec', 'failurePolicies', {}),
    ('spec.failurePolicy', 'maxRestarts', '10'),
    ('spec.failurePolicy', 'restartStrategy', 'Blocking'),
    ('spec.failurePolicy.rules.0', 'action', 'Restart'),
    ('spec.failurePolicy.rules.0', 'onJobFailureReason', ['x']),
    ('spec.failurePolicy.rules.0', 'onJobFailureReasons', ['PodFailure']),
    ('JOB', 'backofLimit', 0),
    ('JOB.podFailurePolicy.rules.0', 'onExitCode', {}),
    ('JOB.podFailurePolicy.rules.1.onPodConditions.0', 'status', True),
    ('JOB.template.spec', 'gracePeriodSeconds', 300),
    ('JOB.template.spec.nodeSelector', 'cloud.google.com/gke-spot', True),
    ('JOB.template.spec.containers.0', 'commands', []),
    ('JOB.template.spec.containers.0.command', 4, 5),
    ('JOB.template.spec.containers.0.env.0', 'value', 2),
  ],
)
def test_schema_refuses_what_kubernetes_would(where, key, value):
  """Or would drop in silence, as it does with keys that it does not know."""
  jobset = copy.deepcopy(jobsets.load('tpu'))
  place = jobset
  where = where.replace('JOB', 'spec.replicatedJobs.0.template.spec')
  for part in where.split('.') if where else ():
    place = place[int(part) if part.isdigit() else part]
  place[key] = value
  assert not VALIDATOR.is_valid(jobset)


@each
def test_numbers_agree(jobset):
  job = jobsets.job(jobset)
  assert job['parallelism'] == job['completions']
  # Only then Kubernetes takes a podFailurePolicy.
  assert job['template']['spec']['restartPolicy'] == 'Never'
  assert job['template']['spec']['terminationGracePeriodSeconds'] >= 120
  mounts = {m['name'] for m in jobsets.container(jobset)['volumeMounts']}
  assert mounts == {v['name'] for v in job['template']['spec']['volumes']}


@each
def test_command_is_one_of_this_repository(jobset):
  """Each of its keys is in the config that it names."""
  python, main, *rest = jobsets.container(jobset)['command']
  assert python == 'python' and (jobsets.ROOT / main).exists()
  arguments = dict(argument.split('=', 1) for argument in rest)
  path = jobsets.ROOT / arguments.pop('--config')
  config = runpy.run_path(str(path))['get_config']()
  assert arguments.pop('--workdir').startswith('gs://')
  for name, value in arguments.items():
    config.update_from_flattened_dict({name.removeprefix('--config.'): value})


@each
def test_pods_find_their_places(jobset):
  """By their environment alone: all different, and of one job."""
  tpu = {'TPU_ML_PLATFORM': 'JAX'}  # JAX's mark where it found chips
  pods = [
    launchers.detect_cluster(env | tpu)[1]
    for env in jobsets.environments(jobset)
  ]
  assert [p['process_id'] for p in pods] == list(range(len(pods)))
  assert {p['num_processes'] for p in pods} == {len(pods)}
  (address,) = {p['coordinator_address'] for p in pods}
  assert re.fullmatch(r'ijepa-(slice|node)-0-0\.ijepa:\d+', address)
  assert {p['cluster_detection_method'] for p in pods} == {'deactivate'}


@each
@pytest.mark.parametrize(
  ('statuses', 'disrupted', 'verdict'),
  [
    ([0, 0], (), jobsets.COMPLETE),
    ([143, 143], (), jobsets.RESTART),
    ([0, 143], (), jobsets.RESTART),
    # Killed before all was saved, since its node went away.
    ([137, 1], (0,), jobsets.RESTART),
    ([137, 1], (), jobsets.COUNTED),
    ([1, 1], (), jobsets.COUNTED),
    # Those that are left get SIGTERM.
    ([1, 143], (), jobsets.COUNTED),
    ([130, 143], (), jobsets.COUNTED),
  ],
)
def test_what_is_stopped_goes_on_and_a_mistake_ends(
  jobset, statuses, disrupted, verdict
):
  assert jobsets.what_follows(jobset, statuses, disrupted) == verdict
  assert 0 < jobset['spec']['failurePolicy']['maxRestarts'] < 100


def start(jobset, workdir, port: int, more) -> list[subprocess.Popen]:
  """Starts the command of each pod here: on the CPU, with a small config."""
  command = jobsets.container(jobset)['command']
  ours = test_pretrain.command(workdir, test_pretrain.make_config(**more))
  kept = [c for c in command[2:] if not c.startswith('--config.data.')]
  kept = [
    c for c in kept if c.partition('=')[0] not in ('--config', '--workdir')
  ]
  pods = []
  for env in jobsets.environments(jobset):
    env = {
      name: re.sub(r'ijepa-\w+-\d+-\d+\.ijepa', 'localhost', value)
      for name, value in env.items()
    }
    env['TPU_ML_PLATFORM'], env['JAX_PLATFORMS'] = 'JAX', ''
    env['JAX_COORDINATOR_PORT'] = str(port)
    if 'JAX_COORDINATOR_ADDRESS' in env:
      env['JAX_COORDINATOR_ADDRESS'] = f'localhost:{port}'
    one = ' --xla_force_host_platform_device_count=1'  # the last one counts
    env['XLA_FLAGS'] = os.environ['XLA_FLAGS'] + one
    pods.append(
      subprocess.Popen(
        [sys.executable, command[1], *kept, *ours[2:]],
        cwd=jobsets.ROOT,
        env=os.environ | env,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return pods


def wait(pods, stop: bool) -> tuple[list[int], str]:
  """Waits for all; the last is told to stop once the first has made steps."""
  words, told = [[] for _ in pods], threading.Event()

  def listen(i):
    for line in pods[i].stderr:
      words[i].append(line)
      if stop and i == 0 and 'Step ' in line and not told.is_set():
        told.set()
        pods[-1].send_signal(signal.SIGTERM)

  threads = [
    threading.Thread(target=listen, args=[i]) for i in range(len(pods))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [pod.wait(300) for pod in pods], '\n'.join(''.join(w) for w in words)


@pytest.mark.slow
@pytest.mark.parametrize(
  'jobset', [('tpu', 1), ('tpu', 2), ('gpu', 1)], ids=str, indirect=True
)
def test_story(jobset, tmp_path):
  """One pod is told to stop, all are started again, and the run is complete.

  With the environment that GKE sets, on processes of this machine.
  """
  job = jobsets.job(jobset)
  job['completions'] = job['parallelism'] = 2
  config = {
    'total_steps': 20_000,
    'checkpoint.every_steps': 20_000,
    'data.image_size': (16, 16),
    'model.width': 16,
    'model.depth': 1,
    'model.predictor_depth': 1,
    'batch_size': 4,
  }
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  pods = start(jobset, tmp_path, port, config)
  statuses, words = wait(pods, stop=True)
  last = len(pods) - 1
  assert f'Process {last} of {len(pods)} is connected' in words, words
  assert jobsets.what_follows(jobset, statuses) == jobsets.RESTART, words
  stopped = [row['step'] for row in metrics.read(tmp_path)][-1]
  # The same command, but for an end that a test can wait for.
  config['total_steps'] = stopped + 5
  statuses, words = wait(start(jobset, tmp_path, port, config), stop=False)
  assert jobsets.what_follows(jobset, statuses) == jobsets.COMPLETE, words
  steps = [row['step'] for row in metrics.read(tmp_path)]
  assert steps == list(range(1, stopped + 6))  # one run, and no step twice
