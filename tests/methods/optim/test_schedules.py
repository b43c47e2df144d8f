"""Schedules and AdamW against hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax.methods.optim import adamw, schedules
from tests.close import FLOAT64, TRAINED, close


def test_warmup_cosine():
  lr = schedules.warmup_cosine(2e-4, 1e-3, 1e-6, 40, 300)
  close(lr(1), 2e-4 + 1 / 40 * 8e-4, FLOAT64)
  close(lr(40), 1e-3, FLOAT64)
  close(lr(170), (1e-3 + 1e-6) / 2, FLOAT64)
  close([lr(300), lr(400)], [1e-6] * 2, FLOAT64)


@pytest.mark.parametrize('warmup', [0, 10, 300])
def test_odd_warmups(warmup):
  lr = schedules.warmup_cosine(2e-4, 1e-3, 1e-6, warmup, 300)
  rounding = 1e-12
  assert all(1e-6 - rounding <= lr(s) <= 1e-3 + rounding for s in range(1, 301))


def test_cosine_and_linear_meet_at_the_ends():
  for make in schedules.BY_NAME.values():
    wd = make(0.04, 0.4, 100)
    close(wd(0), 0.04, FLOAT64)
    close(wd(50), 0.22, FLOAT64)
    close(wd(100), 0.4, FLOAT64)
  close(schedules.linear(0.04, 0.4, 100)(25), 0.13, FLOAT64)


def test_compiled_equals_python():
  lr = schedules.warmup_cosine(2e-4, 1e-3, 1e-6, 40, 300)
  steps = np.arange(1, 301)
  compiled = jax.jit(jax.vmap(lr))(jnp.asarray(steps))
  close(compiled, [lr(s) for s in steps])


def test_adamw_by_hand():
  """Two steps; kernels and the mask token decay, biases and norms do not."""
  params = {
    'fc1': {'kernel': np.array([[2.0]]), 'bias': np.array([3.0])},
    'norm': {'scale': np.array([[1.5]]), 'bias': np.array([0.5])},
    'mask_token': np.array([4.0]),
  }
  params = jax.tree.map(jnp.asarray, params)
  lr, decay = lambda s: 0.1 * s, lambda s: 0.01 * s
  tx = adamw.adamw(lr=lr, weight_decay=decay)
  state, ours = tx.init(params), params
  theirs = dict(jax.tree_util.tree_leaves_with_path(params))
  m = dict.fromkeys(theirs, 0.0)
  v = dict.fromkeys(theirs, 0.0)
  for s, g in ((1, 0.5), (2, -0.2)):
    updates, state = tx.update(
      jax.tree.map(lambda x, g=g: jnp.full_like(x, g), params), state, ours
    )
    ours = optax.apply_updates(ours, updates)
    for path, p in theirs.items():
      if path[-1].key in ('kernel', 'mask_token'):
        p = p * (1 - lr(s) * decay(s))
      m[path] = 0.9 * m[path] + 0.1 * g
      v[path] = 0.999 * v[path] + 0.001 * g * g
      m_hat, v_hat = m[path] / (1 - 0.9**s), v[path] / (1 - 0.999**s)
      theirs[path] = p - lr(s) * m_hat / (np.sqrt(v_hat) + 1e-8)
  for path, p in jax.tree_util.tree_leaves_with_path(ours):
    # 1 - 0.999 has four digits left in float32.
    close(p, theirs[path], TRAINED)


def test_first_moment_in_bfloat16():
  """It is kept in 8 bits, and a step is made with what was not yet rounded."""
  params = {'kernel': jnp.ones(3)}
  grad = {'kernel': jnp.array([0.1, -0.3, 1.7])}
  rates = dict(lr=lambda s: 0.1, weight_decay=lambda s: 0.0)
  whole, half = (adamw.adamw(**rates, mu_dtype=x) for x in adamw.MU_DTYPES)
  update, state = half.update(grad, half.init(params), params)
  expected, exact = whole.update(grad, whole.init(params), params)
  close(update['kernel'], expected['kernel'])
  get = optax.tree_utils.tree_get
  mu, nu = get(state, 'mu')['kernel'], get(state, 'nu')['kernel']
  assert (mu.dtype, nu.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_array_equal(
    mu, get(exact, 'mu')['kernel'].astype(jnp.bfloat16)
  )


def test_clipping():
  params = {'kernel': jnp.ones(4)}
  for clip, expected in ((0.0, 2.0), (1.0, 1.0)):
    tx = adamw.adamw(
      lr=lambda s: 1.0, weight_decay=lambda s: 0.0, clip_norm=clip, b1=0.0
    )
    _, state = tx.update({'kernel': jnp.ones(4)}, tx.init(params), params)
    (mu,) = [
      s.mu
      for s in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, 'mu'))
      if hasattr(s, 'mu')
    ]
    close(optax.tree.norm(mu), expected)
