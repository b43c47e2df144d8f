"""The switch between methods."""

import re

import jax
import pytest

from configs import tiny
from ijepa_jax.errors import UserError
from ijepa_jax.methods import from_config


def test_a_config_of_old_is_of_ijepa():
  config = tiny.get_config()
  expected = from_config.make_method(config)
  assert expected.name == 'ijepa'
  del config.method
  assert from_config.make_method(config) == expected


def test_an_unknown_method():
  config = tiny.get_config()
  config.method = 'ijepa2'
  with pytest.raises(UserError, match=r"method is 'ijepa2'.*mean 'ijepa'"):
    from_config.make_method(config)


@pytest.mark.parametrize('name', from_config.METHODS)
def test_products_are_those_of_the_platform(name):
  """Of bfloat16, XLA for CPUs computes them in float32 alone fast."""
  config = tiny.get_config()
  config.method, config.model.dtype = name, 'bfloat16'
  for platform, dtypes in (('cpu', {'f32'}), ('gpu', {'bf16'})):
    encoder = from_config.make_method(config, platform=platform).encoder
    image = jax.ShapeDtypeStruct((1, 48, 48, 3), 'float32')
    params = jax.eval_shape(encoder.init, jax.random.key(0), image)
    jaxpr = str(jax.make_jaxpr(encoder.apply)(params, image))
    products = re.findall(r':(\w+)\[1,36,(?:64|192)\] = dot_general', jaxpr)
    assert set(products) == dtypes


@pytest.mark.parametrize('name', from_config.METHODS)
def test_a_method_knows_its_name_and_its_batches(name):
  """The class in the table is that of the method, and steps find batches."""
  config = tiny.get_config()
  config.method = name
  method = from_config.make_method(config, 10)
  assert type(method) is from_config.method_class(config)
  assert method.name == name
  assert 'encoder' in method.parts
  for batch in method.batch_shapes(8, (48, 48, 3)):
    assert tuple(batch) == method.batch_keys
