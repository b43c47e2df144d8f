"""The model card's origin and licence."""

import pytest

from ijepa_jax.convert import provenance
from ijepa_jax.errors import UserError
from ijepa_jax.pretrained.formats import orbax, weights
from ijepa_jax.runtime.config import write_config
from tests.convert.test_model_card import (
  CONFIG,
  SCRATCH,
  card_of,
  config,
  front,
)


def test_a_file(tmp_path):
  """Whose it is can't be known: the paper's licence is told."""
  path = tmp_path / 'secret' / 'IN1K-vit.h.14.pth.tar'
  text = card_of(path)
  assert front(text)['license_name'] == 'as-the-source'
  assert 'Converted from `IN1K-vit.h.14.pth.tar`.' in text
  assert 'CC BY-NC 4.0' in text
  assert 'secret' not in text
  assert '## Training' not in text
  # The same by way of orbax, though its card was lost.
  size = weights.size_name(CONFIG)
  plain = orbax.plain_config(CONFIG, provenance.public_name(path), size)
  text = card_of(tmp_path, config=plain)
  assert 'Converted from `IN1K-vit.h.14.pth.tar`.' in text
  assert 'CC BY-NC 4.0' in text


def test_begun_from_weights(tmp_path):
  """Theirs is carried as far as it can be found, and no file is forgotten."""
  first = tmp_path / 'first'
  begun = config(init_from=str(first))
  for gone in begun, config(init_from='/gone/first'):
    text = card_of(tmp_path, config=gone)
    assert 'beginning with the weights of `first`' in text
    assert 'CC BY-NC 4.0' in text
    assert SCRATCH not in text
    assert front(text)['license_name'] == 'as-the-source'
  write_config(first, config().to_json_best_effort())
  text = card_of(tmp_path, config=begun)
  assert SCRATCH in text
  assert 'CC BY-NC 4.0' not in text
  # One that began from itself.
  write_config(first, begun.to_json_best_effort())
  assert 'CC BY-NC 4.0' in card_of(tmp_path, config=begun)
  (first / 'README.md').write_text('---\nlicense: cc-by-nc-4.0\n---\nWeights.')
  text = card_of(tmp_path, config=begun)
  assert front(text)['license'] == 'cc-by-nc-4.0'
  assert '`first`, whose card says: licence cc-by-nc-4.0' in text


def test_a_licence_is_chosen_for_ones_own_alone(tmp_path):
  options = dict(step=300, chosen_license='apache-2.0')
  text = card_of(tmp_path, config=config(), **options)
  assert front(text)['license'] == 'apache-2.0'
  assert 'license_name' not in front(text) and SCRATCH not in text
  others = config(init_from='jepa.pth.tar')
  with pytest.raises(UserError, match='Leave --license away'):
    card_of(tmp_path, config=others, **options)
  (tmp_path / 'README.md').write_text('---\nlicense: mit\n---\nWeights.')
  with pytest.raises(UserError, match='is carried over'):
    card_of(tmp_path, config=config(), **options)


def test_a_cards_licence_is_carried_over(tmp_path):
  card_before = tmp_path / 'README.md'
  card_before.write_text(
    '---\n'
    'language: en\n'
    'license: other\n'
    "license_name: 'ours-1.0'\n"
    'license_link: https://a.org/x\n'
    '---\nA model.\nlicense: mit\n'
  )
  text = card_of(tmp_path)
  found = front(text)
  assert found['license'] == 'other'
  assert found['license_name'] == 'ours-1.0'
  assert found['license_link'] == 'https://a.org/x'
  # From there on our own cards tell it, however often it is converted.
  file = tmp_path / 'a.pth.tar'
  provenance.card_path(file).write_text(text)
  again = card_of(file)
  assert front(again) == found
  assert again.endswith(
    text.split(provenance.HEADING)[1] + '\nConverted from `a.pth.tar`.\n'
  )


@pytest.mark.parametrize(
  'before',
  [
    'license: mit\n',
    '---\nlicense: mit\n',
    '---\nlicense: [a, b]\n---\n',
    '---\nlicense:\n  - mit\n---\n',
    '---\nlicense_name: x\n---\n',
    '---\nlicense: !!python/object/apply:os.getcwd []\n---\n',
    '---\nlicense: {mit: }\n---\n',
    '---\nlicense: [mit\n---\n',
    '---\n' + '[' * 10**4 + '\n---\n',
    '---\nmit\n---\n',
    '',
  ],
)
def test_no_licence_is_found(before, tmp_path):
  (tmp_path / 'README.md').write_text(before)
  assert front(card_of(tmp_path))['license_name'] == 'as-the-source'


def test_a_word_of_yaml_stays_a_word(tmp_path):
  (tmp_path / 'README.md').write_text('---\nlicense: no\n---\n')
  assert "\nlicense: 'no'\n" in card_of(tmp_path)
