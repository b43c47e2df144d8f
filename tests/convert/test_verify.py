"""Damage to an export is seen before it gets its name."""

import jax
import numpy as np
import pytest

from ijepa_jax.convert import export, verify
from ijepa_jax.errors import UserError
from ijepa_jax.models import positions
from ijepa_jax.pretrained.formats import huggingface, orbax


def test_damage_is_seen(trained, tmp_path, monkeypatch):
  """A bit, a tensor, a size: told by name, and nothing is left."""
  _, run, _ = trained
  write = huggingface.write

  def altered(change):
    def wrong(path, params, config, **options):
      tree = jax.tree.map(np.array, params['target'])
      table = positions.sincos_table((6, 6), 64)
      config = dict(config)
      change(tree, table, config)
      options |= {'table': table}
      write(path, {'target': tree}, config, **options)

    return wrong

  def bit(tree, table, config):
    tree['blocks']['fc1']['kernel'].view(np.uint32)[1, 2, 3] ^= 1

  def zero(tree, table, config):
    table[:] = 0

  def heads(tree, table, config):
    config['heads'] = 4

  def blocks(tree, table, config):
    config['depth'] = 1
    tree['blocks'] = jax.tree.map(lambda x: x[:1], tree['blocks'])

  for change, words in (
    (bit, r'encoder.layer.1.intermediate.dense.weight differ'),
    (zero, 'embeddings.position_embeddings differ'),
    (heads, 'says heads = 4, and what was read 2'),
    (blocks, 'says depth = 1'),
  ):
    monkeypatch.setattr(huggingface, 'write', altered(change))
    with pytest.raises(UserError, match=words):
      export.export(run, tmp_path / 'out', 'huggingface')
    assert not list(tmp_path.iterdir())


def test_a_missing_tensor_is_named(trained, tmp_path, monkeypatch):
  _, run, _ = trained
  write = orbax.write

  def without(path, loaded, config, step):
    params = {k: v for k, v in loaded.params.items() if k != 'predictor'}
    write(path, loaded._replace(params=params), config, step)

  monkeypatch.setattr(orbax, 'write', without)
  with pytest.raises(UserError, match='predictor_width'):
    export.export(run, tmp_path / 'out', 'orbax')
  monkeypatch.setattr(verify, 'verify_sizes', lambda *_: None)
  with pytest.raises(
    UserError, match=r'What was written .* lacks params/predictor/.* more'
  ):
    export.export(run, tmp_path / 'out', 'orbax')
  assert not list(tmp_path.iterdir())
