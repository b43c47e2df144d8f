"""The model card beside every export, with Hugging Face's front matter.

README.md in a folder, <name>.md beside a file; where it came from and under
which licence stands in convert/provenance.py.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping

import jax
from absl import logging
from etils import epath

from ijepa_jax.convert import provenance
from ijepa_jax.data.transforms import crop
from ijepa_jax.pretrained.formats import orbax, weights

PAPER = 'https://arxiv.org/abs/2301.08243'
_LIBRARY = {
  'orbax': 'ijepa_jax',
  'release': 'ijepa_jax',
  'huggingface': 'transformers',
}
_COLORS = 'jitter', 'grey', 'blur'
_SIZES = {
  'width': 'width',
  'depth': 'blocks',
  'heads': 'heads',
  'mlp_dim': 'width of the MLP',
}


def render(
  loaded: weights.Weights,
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
    config: of the run, or `orbax.plain_config`, or None.
    step: that the run had finished.
  """
  config = config.to_dict() if config else {}
  trained = 'total_steps' in config
  rights, told = provenance.provenance(source, config)
  front = {**rights, 'library_name': _LIBRARY[to]}
  tags = 'ijepa', 'i-jepa', 'self-supervised-learning', 'jax'
  parts = [
    _front(front, tags),
    f'# {provenance.public_name(name)}',
    _sentence(loaded),
    _architecture(loaded),
    _pictures(loaded),
    '\n'.join(f'- {note}' for note in loaded.notes),
    _training(config, step) if trained else '',
    _evaluation(source),
    _how_to_load(loaded, to, name),
    f'{provenance.HEADING}\n\n{told}',
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
  held = ', '.join(
    f'the {orbax.WORDS[k]} ({n:.3g} M)' for k, n in count.items()
  )
  words = (
    f'I-JEPA ([Assran et al., CVPR 2023]({PAPER})), '
    f'{weights.size_name(c) or "a size of its own"}, patches of {p} '
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


def _pictures(loaded) -> str:
  """From a picture to features, as `ImageEncoder` and evaluations do it."""
  c = loaded.config
  (h, w), side = (
    c['image_size'],
    crop.evaluation_crop(c['image_size']).resize,
  )
  known = 'mean' in c and 'std' in c
  if c['channels'] in (1, 3):
    cut = (
      f'A picture is turned upright, its shorter side is brought to {side} '
      f'pixels (bicubic, antialiased) and its middle, {h} x {w}, is cut out.'
    )
  else:
    cut = f'Arrays of {h} x {w} pixels and {c["channels"]} channels go in.'
  scale = (
    'Pixels are divided by 255; the mean above is taken off, and they are '
    'divided by the standard deviation.'
    if known
    else 'The file does not say by which mean and standard deviation pixels '
    "are normalized: ijepa_jax takes ImageNet's where there are 3 channels."
  )
  return (
    f'## From a picture to features\n\n{cut} {scale} The features are the mean '
    "of the last layer's tokens."
  )


def _training(c: Mapping, step: int) -> str:
  d, mask, o, ema = c['data'], c['mask'], c['optim'], c['ema']
  if d['source'] == 'scenes':
    data = f'{d["count"]} embedded pictures ({d["flavour"]})'
  else:
    data = f'{d["source"]} `{provenance.public_name(d["path"])}`, {d["split"]}'
  if d.get('list_file'):
    data += f', those listed in `{provenance.public_name(d["list_file"])}`'
  colors = ', '.join(f'{k} {d[k]:g}' for k in _COLORS if d.get(k))
  longer = o.get('schedule_scale', 1)
  rows = {
    'data': data,
    'crops': f'{_range(d["crop_scale"])} of the area'
    + (', mirrored at random' if d['flip'] else '')
    + (f'; {colors}' if colors else ''),
    'steps': f'{step} of {c["total_steps"]}'
    + (f', of schedules {longer:g} times as long' if longer != 1 else ''),
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
  # Not by a glob, which would take the folder's own name for a pattern.
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.suffix == '.json':
      rows += _readable(path, _of_an_evaluation)
  tables = []
  if rows:
    head = [['task', 'what', 'encoder', 'ours', 'paper']]
    tables.append('Accuracy in %.\n\n' + _table(head + rows))
  if (source / 'report.json').exists():
    rows = _readable(source / 'report.json', _report_rows)
    if rows:
      tables.append(
        'At the end of training, on the middle of held-out images, without '
        "the evaluations' margin; accuracies in %.\n\n" + _table(rows)
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
  encoder = re.sub(r'^.*, (?=step \d+, )', '', found['checkpoint'], flags=re.S)
  for what, ours in found['accuracy'].items():
    paper = found['paper'].get(what)
    few = found.get('training_examples')
    images = found.get('config', {}).get('data', {}).get('path', '')
    tried = _tried(found, what)
    yield [
      found['task']
      + (f' ({provenance.public_name(images)})' if images else ''),
      what
      + (f', {few} labels' if few else '')
      + (f', best of {tried} on the test images' if tried > 1 else ''),
      encoder,
      f'{100 * ours:.1f}',
      '-' if paper is None else f'{100 * paper:.1f}',
    ]


def _tried(found, what: str) -> int:
  """Of how many results this one is the best on the test images."""
  if 'sweep' in found:  # of kNN: one for each k and temperature
    return len(found['sweep'])
  layers = what.removeprefix('linear_')
  heads = found.get('heads', {})
  return sum(what == 'linear' or head.split()[0] == layers for head in heads)


def _report_rows(found) -> Iterator[list]:
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
  c, quoted = loaded.config, repr(name).replace('`', '\\x60')
  shape = f'# float32 [2, {c["width"]}]'
  ours = [
    'import ijepa_jax',
    f'encoder = ijepa_jax.load_encoder({quoted}{which})',
    f"features = encoder.features(['a.jpg', 'b.jpg'])  {shape}",
  ]
  mode = {1: 'L', 3: 'RGB'}.get(c['channels'])
  theirs = {
    'huggingface': [
      'import torch',
      'from PIL import Image, ImageOps',
      'from transformers import AutoImageProcessor, IJepaModel',
      f'processor = AutoImageProcessor.from_pretrained({quoted})',
      f'model = IJepaModel.from_pretrained({quoted})',
      "images = [Image.open('a.jpg'), Image.open('b.jpg')]",
      'images = [ImageOps.exif_transpose(image) for image in images]',
      f"images = [image.convert('{mode}') for image in images]",
      "pixels = processor(images, return_tensors='pt')",
      'with torch.inference_mode():',
      '  tokens = model(**pixels).last_hidden_state',
      f'features = tokens.mean(1)  {shape}',
    ],
    'release': [
      'import torch  # encoder, predictor, target_encoder: names and tensors',
      f'networks = torch.load({quoted}, weights_only=True)',
    ],
    'orbax': [],
  }[to]
  if to == 'huggingface' and not (mode and 'mean' in c and 'std' in c):
    # There is no processor, or none that reads a picture.
    theirs = [
      'from transformers import IJepaModel',
      f'model = IJepaModel.from_pretrained({quoted})',
    ]
  blocks = [
    '\n'.join(['```python', *lines, '```']) for lines in (ours, theirs) if lines
  ]
  if to == 'huggingface' and len(theirs) > 2:
    blocks.append(
      'The processor, a CLIPImageProcessor, makes the pixels that evaluations '
      'see where they cut out the middle, and the mean over the tokens is what '
      'they judge. A pooler, which IJepaModel can have, would be untrained.'
    )
  place = shlex.quote(name).replace('`', '_')
  if loaded.optimizer and to == 'orbax':
    blocks.append(
      'A run of the same recipe goes on from it: `python main.py '
      f'--config=... --workdir={place}`.'
    )
  blocks.append(
    f'Training and evaluations begin with it by `--config.init_from={place}`.'
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
