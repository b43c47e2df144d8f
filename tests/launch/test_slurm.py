"""launch/slurm.sh with SLURM's programs as they would answer."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ARGUMENTS = ['--config=configs/vit_h14.py', '--workdir=/shared/my runs/h14']


def run(
  folder, status, submitted_in=ROOT, boots=('2001-02-03T04:05:06',), restarts=0
):
  """-> what ran, what srun was given, what scontrol was asked to do.

  Args:
    boots: when each node of the job was booted.
    restarts: how often the job was queued again.
  """
  nodes = '; '.join(
    f'echo "  BootTime={boot} SlurmdStartTime=x"' for boot in boots
  )
  for name, line in (
    ('srun', f'printf "%s\\n" "$@" > {folder}/given; exit {status}'),
    (
      'scontrol',
      f'if [ "$*" = "show nodes n[1-2]" ]; then {nodes}; '
      f'else echo "$@" > {folder}/asked; fi',
    ),
  ):
    (folder / name).write_text(f'#!/bin/sh\n{line}\n')
    (folder / name).chmod(0o755)
  env = os.environ | {
    'PATH': f'{folder}:{os.environ["PATH"]}',
    'SLURM_JOB_ID': '17',
    'SLURM_JOB_NODELIST': 'n[1-2]',
    'SLURM_CPUS_PER_TASK': '48',
    'SLURM_RESTART_COUNT': str(restarts),
    'SLURM_SUBMIT_DIR': str(submitted_in),
  }
  done = subprocess.run(
    [ROOT / 'launch/slurm.sh', *ARGUMENTS],
    env=env,
    capture_output=True,
    text=True,
  )
  given, asked = (
    (folder / name).read_text().splitlines() if (folder / name).exists() else []
    for name in ('given', 'asked')
  )
  return done, given, asked


@pytest.mark.parametrize('restarts', [0, 9, 10])
@pytest.mark.parametrize('status', [0, 1, 75, 130, 134, 137, 143])
def test_queues_again_what_was_stopped(status, restarts, tmp_path):
  """Without end what saved; ten times what was killed, or lost another."""
  done, given, asked = run(tmp_path, status, restarts=restarts)
  assert done.returncode == status
  again = status == 143 or (status in (75, 134, 137) and restarts < 10)
  assert asked == (['requeue 17'] if again else [])
  assert given[-3:] == ['launch/local.sh', *ARGUMENTS]
  assert {'--cpus-per-task=48', '--kill-on-bad-exit=0'} <= set(given)


@pytest.mark.parametrize(
  ('status', 'boot', 'again'),
  [
    (1, '9999', True),
    (0, '9999', False),
    (1, None, False),
  ],
)
def test_queues_again_what_lost_a_node(status, boot, again, tmp_path):
  boots = '2001-02-03T04:05:06', boot and f'{boot}-02-03T04:05:06'
  done, _, asked = run(tmp_path, status, boots=boots)
  assert done.returncode == status
  assert asked == (['requeue 17'] if again else [])


def test_submitted_elsewhere(tmp_path):
  done, given, _ = run(tmp_path, 0, submitted_in=tmp_path)
  assert done.returncode == 1 and not given
  assert done.stderr == (
    f'{tmp_path} is not the root of the repository: run sbatch there.\n'
  )
