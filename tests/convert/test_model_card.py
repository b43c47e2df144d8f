"""The model card: what it says, and what it keeps to itself."""

import json

import pytest

from configs import base
from ijepa_jax.convert import model_card, provenance
from ijepa_jax.pretrained.formats import weights
from ijepa_jax.runtime.files import atomic_write_text

CONFIG = {
  **dict(width=768, depth=12, heads=12, mlp_dim=3072, patch_size=16),
  **dict(predictor_width=384, predictor_depth=6, predictor_heads=12),
  **dict(image_size=(224, 224), channels=3),
  **dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
SCRATCH = "the licence of the weights is the trainer's to choose"


def loaded(parts=weights.PARTS, notes=()):
  """Without its weights: of those only the sizes are told."""
  params = {part: weights.shapes(CONFIG, part) for part in parts}
  sizes = weights.complete_config(CONFIG, parts)
  return weights.Weights(sizes, params, {}, list(notes))


def config(**changes):
  c = base.get_config()
  c.data.source, c.data.path = 'folder', '/home/me/secret/photos'
  c.data.list_file = '/home/me/secret/few.txt'
  c.update_from_flattened_dict(changes)
  return c


def card_of(source, of=None, to='orbax', name='vit_b16', **options):
  return model_card.render(
    of or loaded(), source=source, name=name, to=to, **options
  )


def front(text):
  start, lines, *_ = text.split('---\n')
  assert start == ''
  return dict(line.split(': ') for line in lines.splitlines() if ': ' in line)


def test_a_run_from_scratch(tmp_path):
  text = card_of(tmp_path, config=config(), step=300)
  assert front(text) == {
    'license': 'other',
    'license_name': 'not-chosen-yet',
    'library_name': 'ijepa_jax',
    'pipeline_tag': 'image-feature-extraction',
  }
  for line in (
    '# vit_b16',
    '| width | 768 | 384 |',
    '| blocks | 12 | 6 |',
    '| width of the MLP | 3072 | 1536 |',
    '| images | 224 x 224 pixels, 3 channels |  |',
    '| mean of the pixels in [0, 1] | 0.485, 0.456, 0.406 |  |',
    '| data | folder `photos`, train, those listed in `few.txt` |',
    '| steps | 300 of 187500 |',
    '| batch size | 2048 images |',
    '| learning rate | 0.0002 to 0.001 in 25000 steps, then to 1e-06 |',
    '| weight decay | 0.04 to 0.4, cosine |',
    '| targets | 4 of scale 0.15 to 0.2 and aspect 0.75 to 1.5 |',
    '| momentum of the target encoder | 0.996 to 1 |',
    "encoder = ijepa_jax.load_encoder('vit_b16')",
    "features = encoder.features(['a.jpg', 'b.jpg'])  # float32 [2, 768]",
  ):
    assert line in text.splitlines()
  assert 'base, patches of 16 pixels' in text
  assert 'the target encoder (85.6 M)' in text
  assert SCRATCH in text
  assert 'secret' not in text
  assert 'BY-NC' not in text
  assert '## Evaluation' not in text


def test_one_encoder(tmp_path):
  text = card_of(tmp_path, loaded(['encoder'], ['A note.']), 'huggingface')
  assert 'the context encoder alone' in text
  assert "load_encoder('vit_b16', which='context')" in text
  assert "IJepaModel.from_pretrained('vit_b16')" in text
  assert front(text)['library_name'] == 'transformers'
  assert '- A note.' in text.splitlines()
  assert 'predictor' not in text
  text = card_of(tmp_path, to='release', name='a.pth.tar')
  assert "torch.load('a.pth.tar', weights_only=True)" in text


def test_evaluations(tmp_path, caplog):
  """Ours beside the paper's; what can't be read is left out."""
  files = {
    'evals/imagenet-linear.json': {
      'task': 'imagenet',
      'job': 'linear',
      'checkpoint': 'vit_b16, step 300, target encoder',
      'accuracy': {'linear': 0.7291, 'linear_last': 0.7},
      'paper': {'linear': 0.729},
    },
    'evals/other.json': {'task': 'imagenet'},
    'report.json': {
      'raw pixels': {'probe/class': 0.495},
      'target encoder, trained': {
        'probe/class': 0.685,
        'rankme': 26.3,
        'health/token_cosine': 0.853,
      },
      'seconds': 259.0,
    },
  }
  for name, content in files.items():
    atomic_write_text(tmp_path / name, json.dumps(content))
  (tmp_path / 'evals/broken.json').write_text('{')
  lines = card_of(tmp_path, config=config(), step=300).splitlines()
  for line in (
    '| task | what | encoder | ours | paper |',
    '| imagenet | linear | step 300, target encoder | 72.9 | 72.9 |',
    '| imagenet | linear_last | step 300, target encoder | 70.0 | - |',
    '|  | class | rankme | token cosine |',
    '| raw pixels | 49.5 | - | - |',
    '| target encoder, trained | 68.5 | 26.3 | 0.85 |',
  ):
    assert line in lines
  assert caplog.text.count('left out of the card') == 2


def test_names(tmp_path):
  """A name can't become markup, and a folder is none of anybody's business."""
  assert provenance.public_name('/a/b`|<x>\n.tar') == 'b___x__.tar'
  assert provenance.public_name('gs://bucket/runs/vit_l16') == 'vit_l16'
  assert provenance.card_path(tmp_path) == tmp_path / 'README.md'
  assert provenance.card_path(tmp_path / 'a.tar') == tmp_path / 'a.tar.md'


def test_what_was_chosen_on_the_test_images_is_said(tmp_path):
  files = {
    'knn': {
      'accuracy': {'knn': 0.5},
      'sweep': {'k=10, T=0.07': 0.5, 'k=20, T=0.07': 0.4},
    },
    'linear': {
      'accuracy': {'linear': 0.6, 'linear_last': 0.6, 'linear_last4': 0.5},
      'heads': {'last bn lr=0.1 wd=0': 0.6, 'last lr=0.1 wd=0': 0.5}
      | {'last4 lr=0.1 wd=0': 0.5},
    },
    'logistic': {'accuracy': {'logistic': 0.4}, 'training_examples': 13},
  }
  for job, found in files.items():
    found |= {'task': 'folder', 'paper': {}, 'job': job}
    found['checkpoint'] = 'my, run, step 300, target encoder'
    atomic_write_text(tmp_path / f'evals/folder-{job}.json', json.dumps(found))
  rows = [
    line.split(' | ')[1:3]
    for line in card_of(tmp_path, config=config(), step=300).splitlines()
    if line.startswith('| folder |')
  ]
  assert rows == [
    ['knn, best of 2 on the test images', 'step 300, target encoder'],
    ['linear, best of 3 on the test images', 'step 300, target encoder'],
    ['linear_last, best of 2 on the test images', 'step 300, target encoder'],
    ['linear_last4', 'step 300, target encoder'],
    ['logistic, 13 labels', 'step 300, target encoder'],
  ]


def test_evaluations_below_any_name(tmp_path):
  run = tmp_path / 'lr[1e-3]'
  found = {'task': 'imagenet', 'accuracy': {'knn': 0.5}, 'paper': {}}
  found['checkpoint'] = 'lr[1e-3], step 3, target encoder'
  atomic_write_text(run / 'evals/imagenet-knn.json', json.dumps(found))
  text = card_of(run, config=config(), step=3, name='lr[1e-3] hf')
  assert '| imagenet | knn | step 3, target encoder | 50.0 | - |' in text
  assert "load_encoder('lr[1e-3] hf')" in text
  assert "`--config.init_from='lr[1e-3] hf'`" in text


@pytest.mark.parametrize(
  'changes, words',
  [
    ({}, 'its shorter side is brought to 256 pixels'),
    ({'mean': None, 'std': None}, 'does not say by which mean'),
    (
      {'channels': 5, 'mean': [0.5] * 5, 'std': [1] * 5},
      'Arrays of 224 x 224 pixels and 5 channels go in.',
    ),
  ],
)
def test_from_a_picture_to_features(tmp_path, changes, words):
  of = loaded(['target'])
  kept = {k: v for k, v in (of.config | changes).items() if v is not None}
  text = card_of(tmp_path, of._replace(config=kept), 'huggingface')
  assert words in text
  assert ('AutoImageProcessor' in text) == (not changes)


def test_schedules_longer_than_the_run(tmp_path):
  c = config(**{'optim.schedule_scale': 1.25, 'data.jitter': 0.5})
  text = card_of(tmp_path, config=c, step=300)
  assert '| 300 of 187500, of schedules 1.25 times as long |' in text
  assert '; jitter 0.5 |' in text
