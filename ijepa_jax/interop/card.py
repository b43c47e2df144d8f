"""The model card beside every export, with Hugging Face's front matter.

README.md in a folder, <name>.md beside a file; where it came from and under
which licence stands in licence.py.
"""

import json
from collections.abc import Iterator, Mapping

import jax
from absl import logging
from etils import epath

from ijepa_jax.interop import architecture, licence, runs

PAPER = 'https://arxiv.org/abs/2301.08243'
_LIBRARY = {
  'orbax': 'ijepa_jax',
  'release': 'ijepa_jax',
  'huggingface': 'transformers',
}
_SIZES = {
  'width': 'width',
  'depth': 'blocks',
  'heads': 'heads',
  'mlp_dim': 'width of the MLP',
}


def text(
  loaded: architecture.Loaded,
  *,
  source,
  name: str,
  to: str,
  config=None,
  step: int = 0,
) -> str:
  """The card.

  Args:
    loaded: what is handed on.
    source: path that it was read from.
    name: of what was written.
    to: 'orbax', 'release' or 'huggingface'.
    config: of the run, or `runs.plain_config`, or None.
    step: that the run had finished.
  """
  config = config.to_dict() if config else {}
  trained = 'total_steps' in config
  rights, told = licence.origin(source, config)
  front = {**rights, 'library_name': _LIBRARY[to]}
  tags = 'ijepa', 'i-jepa', 'self-supervised-learning', 'jax'
  parts = [
    _front(front, tags),
    f'# {licence.shown(name)}',
    _sentence(loaded),
    _architecture(loaded),
    '\n'.join(f'- {note}' for note in loaded.notes),
    _training(config, step) if trained else '',
    _evaluation(source),
    _how_to_load(loaded, to, licence.shown(name)),
    f'{licence.HEADING}\n\n{told}',
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _front(front: Mapping, tags) -> str:
  lines = [f'{k}: {v}' for k, v in front.items()]
  lines += ['pipeline_tag: image-feature-extraction', 'tags:']
  return '\n'.join(['---', *lines, *(f'- {tag}' for tag in tags), '---'])


def _sentence(loaded) -> str:
  c, params = loaded.config, loaded.params
  (h, w), p = c['image_size'], c['patch_size']
  count = {
    part: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    for part, tree in params.items()
  }
  held = ', '.join(f'the {runs.WORDS[k]} ({n:.3g} M)' for k, n in count.items())
  words = (
    f'I-JEPA ([Assran et al., CVPR 2023]({PAPER})), '
    f'{architecture.size_name(c) or "a size of its own"}, patches of {p} '
    f'pixels, images of {h} x {w}. It holds, with its millions of '
    f'parameters: {held}'
  )
  if loaded.optimizer:
    words += f"; and AdamW's state after step {loaded.optimizer.step}"
  if 'target' in params:
    return (
      f'{words}. The target encoder, the moving average of the other one, is '
      'what the paper evaluates.'
    )
  return (
    f'{words}. Of the two encoders it holds the context encoder alone; the '
    'paper evaluates the other.'
  )


def _architecture(loaded) -> str:
  c = loaded.config
  (h, w), p = c['image_size'], c['patch_size']
  predictor = 'predictor_width' in c
  rows = [['', 'encoder'] + ['predictor'] * predictor]
  full = {**c, 'predictor_mlp_dim': 4 * c.get('predictor_width', 0)}
  for key, words in _SIZES.items():
    rows.append([words, full[key]] + [full.get(f'predictor_{key}')] * predictor)
  pixels = {
    'patch': f'{p} x {p} pixels',
    'images': f'{h} x {w} pixels, {c["channels"]} channels',
    'patches': f'{h // p} x {w // p}',
    'mean of the pixels in [0, 1]': _numbers(c.get('mean')),
    'standard deviation': _numbers(c.get('std')),
  }
  rows += [[k, v] + [''] * predictor for k, v in pixels.items()]
  return '## Architecture\n\n' + _table(rows)


def _training(c: Mapping, step: int) -> str:
  d, mask, o, ema = c['data'], c['mask'], c['optim'], c['ema']
  if d['source'] == 'scenes':
    data = f'{d["count"]} embedded pictures ({d["flavour"]})'
  else:
    data = f'{d["source"]} `{licence.shown(d["path"])}`, {d["split"]}'
  if d.get('list_file'):
    data += f', those listed in `{licence.shown(d["list_file"])}`'
  rows = {
    'data': data,
    'crops': f'{_range(d["crop_scale"])} of the area'
    + (', mirrored at random' if d['flip'] else ''),
    'steps': f'{step} of {c["total_steps"]}',
    'batch size': f'{c["batch_size"]} images',
    'AdamW': f'betas {o["b1"]:g} and {o["b2"]:g}'
    + (f', gradients clipped to {o["clip_norm"]:g}' if o['clip_norm'] else ''),
    'learning rate': f'{o["start_lr"]:g} to {o["peak_lr"]:g} in '
    f'{o["warmup_steps"]} steps, then to {o["final_lr"]:g}',
    'weight decay': f'{o["weight_decay"]:g} to {o["final_weight_decay"]:g}, '
    f'{o["weight_decay_schedule"]}',
    'momentum of the target encoder': _range((ema['first'], ema['last'])),
    'masks': mask['sampler'],
    'targets': f'{mask["num_targets"]} of scale {_range(mask["target_scale"])} '
    f'and aspect {_range(mask["target_aspect"])}',
    'contexts': f'{mask["num_contexts"]} of scale '
    f'{_range(mask["context_scale"])}',
    'loss': c['loss']['kind'],
    'computed in': c['model']['dtype'],
    'seed': c['seed'],
  }
  return '## Training\n\n' + _table([('', ''), *rows.items()])


def _evaluation(source) -> str:
  """What the jobs left: <workdir>/report.json and <workdir>/evals/*.json."""
  source = epath.Path(source)
  rows = []
  folder = source / 'evals'
  for path in sorted(folder.glob('*.json')) if folder.exists() else ():
    rows += _readable(path, _of_an_evaluation)
  tables = []
  if rows:
    head = [['task', 'what', 'encoder', 'ours', 'paper']]
    tables.append('Accuracy in %.\n\n' + _table(head + rows))
  if (source / 'report.json').exists():
    rows = _readable(source / 'report.json', _of_a_report)
    if rows:
      tables.append(
        'At the end of training, on held-out images; accuracies in %.\n\n'
        + _table(rows)
      )
  return '## Evaluation\n\n' + '\n\n'.join(tables) if tables else ''


def _readable(path, rows) -> list:
  try:
    return list(rows(json.loads(path.read_text())))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    logging.warning('%s is left out of the card: %r.', path, error)
    return []


def _of_an_evaluation(found) -> Iterator[list]:
  # 'run, step 300, target encoder': the run is in the card's title.
  encoder = found['checkpoint'].split(', ', 1)[-1]
  for what, ours in found['accuracy'].items():
    paper = found['paper'].get(what)
    few = found.get('training_examples')
    images = found.get('config', {}).get('data', {}).get('path', '')
    yield [
      found['task'] + (f' ({epath.Path(images).name})' if images else ''),
      f'{what}, {few} labels' if few else what,
      encoder,
      f'{100 * ours:.1f}',
      '-' if paper is None else f'{100 * paper:.1f}',
    ]


def _of_a_report(found) -> Iterator[list]:
  rows = {k: v for k, v in found.items() if isinstance(v, dict)}
  columns = list(dict.fromkeys(k for row in rows.values() for k in row))
  yield ['', *(c.removeprefix('probe/').replace('/', ' ') for c in columns)]
  for name, row in rows.items():
    percent = [100 if c.startswith(('probe/', 'knn/')) else 1 for c in columns]
    yield [
      name,
      *(
        f'{n * row[c]:.1f}' if c in row else '-'
        for n, c in zip(percent, columns, strict=True)
      ),
    ]


def _how_to_load(loaded, to: str, name: str) -> str:
  which = '' if 'target' in loaded.params else ", which='context'"
  ours = [
    'import ijepa_jax',
    f"encoder = ijepa_jax.load_encoder('{name}'{which})",
    "features = encoder.features(['a.jpg', 'b.jpg'])  # float32 "
    f'[2, {loaded.config["width"]}]',
  ]
  theirs = {
    'huggingface': [
      'from transformers import IJepaModel',
      f"model = IJepaModel.from_pretrained('{name}')",
    ],
    'release': [
      'import torch  # encoder, predictor, target_encoder: names and tensors',
      f"networks = torch.load('{name}', weights_only=True)",
    ],
    'orbax': [],
  }[to]
  blocks = [
    '\n'.join(['```python', *lines, '```']) for lines in (ours, theirs) if lines
  ]
  if loaded.optimizer and to == 'orbax':
    blocks.append(
      'A run of the same recipe goes on from it: `python main.py '
      f'--config=... --workdir={name}`.'
    )
  blocks.append(
    f'Training and evaluations begin with it by `--config.init_from={name}`.'
  )
  return '\n\n'.join(['## How to load it', *blocks])


def _range(ends) -> str:
  first, last = (f'{x:g}' for x in ends)
  return first if first == last else f'{first} to {last}'


def _numbers(values) -> str:
  return ', '.join(f'{x:g}' for x in values) if values else 'not known'


def _table(rows) -> str:
  """Markdown; the first row is the head."""
  lines = [
    '| ' + ' | '.join(str(x).replace('|', '/') for x in row) + ' |'
    for row in rows
  ]
  lines.insert(1, '|' + '---|' * len(rows[0]))
  return '\n'.join(lines)
