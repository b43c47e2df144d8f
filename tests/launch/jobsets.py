"""What Kubernetes and GKE make of the JobSets of launch/gke.

Their pods, with the environment that each gets, and what follows when pods end.
"""

import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).parents[2]
RESTART, COUNTED, COMPLETE = 'restart', 'counted restart', 'complete'


def load(name: str, slices: int = 1) -> dict:
  """Returns launch/gke/<name>.yaml with that many jobs."""
  jobset = yaml.safe_load((ROOT / 'launch/gke' / f'{name}.yaml').read_text())
  jobset['spec']['replicatedJobs'][0]['replicas'] = slices
  return jobset


def job(jobset) -> dict:
  """Returns the spec of its jobs, which are alike."""
  (replicated,) = jobset['spec']['replicatedJobs']
  return replicated['template']['spec']


def container(jobset) -> dict:
  (only,) = job(jobset)['template']['spec']['containers']
  return only


def environments(jobset) -> list[dict]:
  """Returns the environment of each pod, job by job."""
  (replicated,) = jobset['spec']['replicatedJobs']
  slices, hosts = replicated['replicas'], job(jobset)['completions']
  name = jobset['metadata']['name']
  names = [
    [f'{name}-{replicated["name"]}-{s}-{i}.{name}' for i in range(hosts)]
    for s in range(slices)
  ]
  pods = []
  for s in range(slices):
    for i in range(hosts):
      annotations = {'batch.kubernetes.io/job-completion-index': str(i)}
      if 'coordinator' in jobset['spec']:
        annotations['jobset.sigs.k8s.io/coordinator'] = names[0][0]
      env = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}
      env['JOB_COMPLETION_INDEX'] = str(i)
      if 'google.com/tpu' in container(jobset)['resources']['limits']:
        env['TPU_WORKER_ID'] = str(i)
        env['TPU_WORKER_HOSTNAMES'] = ','.join(names[s])
        if slices > 1:
          env['MEGASCALE_NUM_SLICES'] = str(slices)
          env['MEGASCALE_SLICE_ID'] = str(s)
          env['MEGASCALE_COORDINATOR_ADDRESS'] = names[0][0]
      for entry in container(jobset)['env']:
        env[entry['name']] = _value(entry, env, annotations)
      pods.append(env)
  return pods


def _value(entry, env, annotations) -> str:
  if 'value' in entry:
    return re.sub(r'\$\((\w+)\)', lambda m: env[m[1]], entry['value'])
  path = entry['valueFrom']['fieldRef']['fieldPath']
  return annotations[re.fullmatch(r"metadata\.annotations\['(.+)'\]", path)[1]]


def what_follows(jobset, statuses, disrupted=()) -> str:
  """Returns what the JobSet does when its pods have ended in that order.

  Args:
    statuses: exit status of each pod, as they end; of one job.
    disrupted: those of them whose node was taken away, by their place.
  """
  failed = [i for i, status in enumerate(statuses) if status]
  if not failed:
    return COMPLETE
  first = failed[0]
  assert job(jobset)['backoffLimit'] == 0  # the first that fails ends all
  reason = 'BackoffLimitExceeded'
  for rule in job(jobset)['podFailurePolicy']['rules']:
    codes = rule.get('onExitCodes')
    if codes:
      assert codes['operator'] == 'In'
      assert codes['containerName'] == container(jobset)['name']
      matches = statuses[first] in codes['values']
    else:
      (condition,) = rule['onPodConditions']
      assert condition == {'type': 'DisruptionTarget', 'status': 'True'}
      matches = first in disrupted
    if matches:
      assert rule['action'] == 'FailJob'
      reason = 'PodFailurePolicy'
      break
  for rule in jobset['spec']['failurePolicy']['rules']:
    if reason in rule['onJobFailureReasons']:
      assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
      return RESTART
  return COUNTED
