"""AdamW's state in .pth.tar files, against torch.optim.AdamW itself."""

import copy
import re

import jax
import numpy as np
import optax
import pytest

from benchmarks import parity
from ijepa_jax.errors import UserError
from ijepa_jax.methods.optim import adamw
from ijepa_jax.pretrained.formats import release, release_names
from tests.close import trees_close
from tests.methods.test_parity import GOLDEN
from tests.pretrained.formats.test_release import CONFIG

RATES = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
DECAY = 0.4
PARTS = 'encoder', 'predictor'


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


def networks(torch, golden, part_of='init'):
  """Parameters as in a network of the release; tables are not trained."""
  return {
    part: {
      k: torch.nn.Parameter(
        torch.from_numpy(v.copy()), requires_grad='pos_embed' not in k
      )
      for k, v in parity.subtree(golden, f'{part_of}/{part}').items()
    }
    for part in PARTS
  }


def groups(trained, *, order=None, tables=True):
  """Of each network what is decayed, then the rest; in another order too."""
  found = [
    {
      'params': [
        p
        for k, p in trained[part].items()
        if (p.ndim > 1) == decayed and (tables or 'pos_embed' not in k)
      ],
      'weight_decay': DECAY if decayed else 0.0,
    }
    for part in PARTS
    for decayed in (True, False)
  ]
  return [found[i] for i in order or range(4)]


def step(golden, trained, adamw, times=1):
  """Steps along the gradients of the golden file, a little other each time."""
  for i in range(times):
    for part, tensors in trained.items():
      for k, v in parity.subtree(golden, f'step0/grad/{part}').items():
        tensors[k].grad = tensors[k].new_tensor(v * (1 + i) + 1e-3 * i)
    adamw.step()


def tree(trained, of=lambda x: x.detach()):
  """Our tree of all parameters, of them or of something of each."""
  return {
    part: release_names.from_release(
      {
        k: of(p).numpy()
        for k, p in trained[part].items()
        if 'pos_embed' not in k
      },
      part,
    )
    for part in PARTS
  }


def moments(trained, adamw):
  return [
    tree(trained, lambda p, key=key: adamw.state[p][key])
    for key in ('exp_avg', 'exp_avg_sq')
  ]


@pytest.fixture(scope='module')
def after_three(torch, golden):
  """(networks, AdamW) after three steps."""
  trained = networks(torch, golden)
  adamw = torch.optim.AdamW(groups(trained), **RATES)
  step(golden, trained, adamw, 3)
  return trained, adamw


@pytest.fixture
def save(torch, tmp_path):
  def write(trained, opt, **changes):
    path = tmp_path / 'a.pth.tar'
    file = {
      part: {f'module.{k}': p.detach() for k, p in trained[part].items()}
      for part in PARTS
    }
    torch.save(file | {'opt': opt, 'epoch': 3} | changes, path)
    return path

  return write


def read(path):
  return release.read(path, heads=4, optimizer=True)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def continued(golden, params, optimizer):
  """One more step, of optax."""
  grad = parity.parameters(golden, 'step0/grad', *PARTS)
  tx = adamw.adamw(lr=lambda _: RATES['lr'], weight_decay=lambda _: DECAY)
  state = optax.tree_utils.tree_set(
    tx.init(params),
    count=np.int32(optimizer.step),
    mu=optimizer.mu,
    nu=optimizer.nu,
  )
  updates, _ = jax.jit(tx.update)(grad, state, params)
  return optax.apply_updates(params, updates)


def test_moments_of_torch(torch, golden, after_three, save):
  trained, adamw = copy.deepcopy(after_three)
  loaded = read(save(trained, adamw.state_dict()))
  assert loaded.optimizer.step == 3
  mu, nu = moments(trained, adamw)
  equal(loaded.optimizer.mu, mu)
  equal(loaded.optimizer.nu, nu)
  assert 'Passed over: epoch.' in loaded.notes
  assert not any('optimizer' in note for note in loaded.notes)
  # The next step is the same here and there.
  ours = continued(golden, loaded.params, loaded.optimizer)
  step(golden, trained, adamw)
  trees_close(ours, tree(trained))


@pytest.mark.parametrize('order', [(0, 2, 1, 3), (3, 2, 1, 0)])
@pytest.mark.parametrize('tables', [True, False])
def test_other_layouts(torch, golden, save, order, tables):
  """Groups in any order, with the position tables and without."""
  trained = networks(torch, golden)
  adamw = torch.optim.AdamW(groups(trained, order=order, tables=tables))
  step(golden, trained, adamw, 2)
  optimizer = read(save(trained, adamw.state_dict())).optimizer
  assert optimizer.step == 2
  equal([optimizer.mu, optimizer.nu], moments(trained, adamw))


def test_there_and_back(torch, golden, after_three, save, tmp_path):
  trained, adamw = copy.deepcopy(after_three)
  loaded = read(save(trained, adamw.state_dict()))
  path = tmp_path / 'ours.pth.tar'
  release.write(
    path,
    loaded.params,
    CONFIG,
    tables=loaded.tables,
    optimizer=loaded.optimizer,
  )
  again = release.read(path, optimizer=True)
  equal(again.optimizer, loaded.optimizer)
  equal(again.params, loaded.params)
  # PyTorch takes it: the same groups, moments and next step.
  file = torch.load(path, weights_only=True)
  assert file.keys() == {'ijepa_jax', *PARTS, 'opt'}
  for part in PARTS:
    assert list(file[part]) == [f'module.{k}' for k in trained[part]]
  other = networks(torch, golden, 'final')
  with torch.no_grad():
    for part in PARTS:
      for k, p in other[part].items():
        p.copy_(file[part][f'module.{k}'])
  back = torch.optim.AdamW(groups(other))
  back.load_state_dict(file['opt'])
  equal(moments(other, back), moments(trained, adamw))
  assert [g['weight_decay'] for g in back.param_groups] == [0.01, 0, 0.01, 0]
  for group, theirs in zip(back.param_groups, adamw.param_groups, strict=True):
    group.update({k: theirs[k] for k in ('lr', 'weight_decay')})
  for networks_, optimizer in (trained, adamw), (other, back):
    step(golden, networks_, optimizer)
  trees_close(tree(other), tree(trained))


def entry(key, change, number=4):
  """Alters one entry of the state of a parameter."""

  def alter(opt):
    old = opt['state'][number]
    opt['state'][number] = old | {key: change(old.get(key))}

  return alter


def without_last_group(opt):
  for i in opt['param_groups'].pop()['params']:
    del opt['state'][i]


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (entry('exp_avg', lambda x: x / 0), 'exp_avg of .* not finite'),
    (entry('exp_avg_sq', lambda x: -x), 'exp_avg_sq of .* below 0'),
    (entry('exp_avg', lambda x: x[:5]), 'parameter 4 differ in shape'),
    (entry('exp_avg', lambda x: x.int()), 'parameter 4 is of whole numbers'),
    (entry('exp_avg', lambda _: 3), 'no plain tensor'),
    (
      entry('exp_avg', lambda x: x[:1].clone().expand(x.shape)),
      'larger than what is stored',
    ),
    (entry('max_exp_avg_sq', lambda _: 0), "parameter 4 is not AdamW's"),
    (entry('step', lambda _: 7), 'same number of steps'),
    (entry('step', lambda _: 1.5), 'no whole number'),
    (entry('step', lambda _: None), 'no whole number'),
    (lambda opt: opt['state'].update({1: 3}), "1 is not AdamW's"),
    (lambda opt: opt['state'].pop(2), 'its group 0, of 10 parameters, has not'),
    (lambda opt: opt['param_groups'][0]['params'].reverse(), 'its group 0'),
    (without_last_group, 'no group of the predictor, not decayed'),
    (lambda opt: opt['param_groups'].pop(), 'not count the same'),
    (lambda opt: opt['param_groups'].append(opt['param_groups'][0]), 'once'),
    (lambda opt: opt['param_groups'][1].pop('params'), 'has no params'),
    (lambda opt: opt['param_groups'][1]['params'].append({}), 'once'),
    (lambda opt: opt.pop('state'), 'has no state'),
    (lambda opt: opt.update(state={99: {}}), 'once'),
  ],
)
def test_what_does_not_fit_is_told(torch, after_three, save, change, words):
  """The weights are there all the same."""
  trained, adamw = after_three
  opt = copy.deepcopy(adamw.state_dict())
  change(opt)
  loaded = read(save(trained, opt))
  assert loaded.optimizer is None
  assert loaded.params.keys() == set(PARTS)
  (note,) = [n for n in loaded.notes if "optimizer's state is not taken" in n]
  assert re.search(words, note), note


def test_absent(torch, after_three, save):
  trained, adamw = after_three
  path = save(trained, adamw.state_dict())
  assert release.read(path, heads=4).optimizer is None  # not asked for
  for opt in None, 'adam', torch.zeros(3):
    assert 'is not taken' in ' '.join(read(save(trained, opt)).notes)
  file = save(trained, adamw.state_dict(), predictor=None)
  assert 'the file has no predictor' in ' '.join(read(file).notes)


def test_writing_refused(torch, after_three, save, tmp_path):
  trained, adamw = after_three
  loaded = read(save(trained, adamw.state_dict()))
  out = tmp_path / 'out.pth.tar'
  alone = {'encoder': loaded.params['encoder']}
  small = jax.tree.map(lambda x: x[..., :3], loaded.optimizer.mu)
  for params, optimizer, words in (
    (alone, loaded.optimizer, 'networks have no predictor'),
    (loaded.params, loaded.optimizer._replace(nu=alone), 'moments have no'),
    (loaded.params, loaded.optimizer._replace(mu=small), 'does not fit'),
  ):
    with pytest.raises(UserError, match=words):
      release.write(out, params, CONFIG, optimizer=optimizer)
  assert not out.exists()


def test_older_steps_and_types(torch, after_three, save):
  """Steps as numbers, moments in half precision."""
  trained, adamw = after_three
  opt = copy.deepcopy(adamw.state_dict())
  for state in opt['state'].values():
    state['step'] = 3
    for key in 'exp_avg', 'exp_avg_sq':
      state[key] = state[key].bfloat16()
  optimizer = read(save(trained, opt)).optimizer
  assert optimizer.step == 3
  kinds = {x.dtype for x in jax.tree.leaves((optimizer.mu, optimizer.nu))}
  assert kinds == {np.dtype('float32')}
