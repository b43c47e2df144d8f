"""Floating point operations of a step."""

import dataclasses
import math

import jax
from jax.interpreters import partial_eval

from ijepa_jax.train.run import Run


def model_flops(run: Run, batch) -> float:
  """Operations of the matrix products of one step over all devices.

  Forward and backward, by every product in the loss and its gradient; without
  what remat computes again, which is no work of the model's.

  Args:
    run: of any method.
    batch: of jax.ShapeDtypeStruct, from `Method.batch_shapes`.
  """
  method = _in_products(run.method)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(
    lambda key: method.init_params(key, run.image_shape), key
  )
  target = jax.eval_shape(method.init_target, params)
  jaxpr = jax.make_jaxpr(jax.value_and_grad(method.loss, has_aux=True))(
    params, target, batch, key
  )
  # Without the gradient of the images, which functions.linear names and no one
  # computes.
  outputs = [True] * len(jaxpr.jaxpr.outvars)
  used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, outputs)
  return product_flops(used)


def _in_products(x):
  """A method whose modules compute nothing again, and fuse no product."""
  if hasattr(x, 'remat'):
    return x.clone(remat='none', attention='xla')
  if not dataclasses.is_dataclass(x) or hasattr(x, 'clone'):
    return x
  fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
  changed = {k: _in_products(v) for k, v in fields.items()}
  changed = {k: v for k, v in changed.items() if v is not fields[k]}
  return dataclasses.replace(x, **changed) if changed else x


def product_flops(jaxpr) -> float:
  """Of all products of a jaxpr, those of loops as often as they run."""
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      lhs, out = equation.invars[0].aval, equation.outvars[0].aval
      total += 2 * out.size * math.prod(lhs.shape[i] for i in contracted)
    elif name == 'conv_general_dilated':
      kernel, out = equation.invars[1].aval, equation.outvars[0].aval
      features = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
      total += 2 * out.size * kernel.size / features
    inner = [product_flops(j) for j in _inner(params)]
    if name == 'cond':
      total += max(inner, default=0)
    else:
      total += params.get('length', 1) * sum(inner)
  return total


def _inner(params):
  """The jaxprs in the parameters of an equation."""
  for value in params.values():
    for x in value if isinstance(value, (tuple, list)) else (value,):
      x = getattr(x, 'jaxpr', x)
      if hasattr(x, 'eqns'):
        yield x
