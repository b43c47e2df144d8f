"""The model card beside every export, with Hugging Face's front matter.

README.md in a folder, <name>.md beside a file. convert/provenance.py has its
origin and licence, convert/results.py its accuracies.
"""

import shlex
from collections.abc import Mapping

import jax
import yaml

from ijepa_jax.convert import provenance, results
from ijepa_jax.data.transforms import crop
from ijepa_jax.methods import from_config
from ijepa_jax.pretrained.formats import weights

PAPER = 'https://arxiv.org/abs/2301.08243'
_LIBRARY = {
  'orbax': 'ijepa_jax',
  'release': 'ijepa_jax',
  'huggingface': 'transformers',
}
_COLORS = 'jitter', 'grey', 'blur'
_TAGS = {'ijepa': ['ijepa', 'i-jepa']}
_TAGS_OF_ALL = 'self-supervised-learning', 'jax'
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
  chosen_license: str | None = None,
) -> str:
  """Returns the text of the card.

  Args:
    loaded: the weights that were converted.
    source: path that they were read from.
    name: of the folder or file that was written.
    to: its format, 'orbax', 'release' or 'huggingface'.
    config: of the run, or `orbax.plain_config`, or None.
    step: steps that the run had finished.
    chosen_license: see provenance.provenance.
  """
  config = config.to_dict() if config else {}
  method = from_config.method_class(config)
  licence, origin = provenance.provenance(source, config, chosen_license)
  front = {
    **licence,
    'library_name': _LIBRARY[to],
    'pipeline_tag': 'image-feature-extraction',
    'tags': [*_TAGS.get(method.name, [method.name]), *_TAGS_OF_ALL],
  }
  parts = [
    f'---\n{yaml.safe_dump(front, sort_keys=False)}---',
    f'# {provenance.public_name(name)}',
    _summary(loaded, method),
    _architecture(loaded),
    _pictures(loaded),
    '\n'.join(f'- {note}' for note in loaded.notes),
    _training(config, step, method) if 'total_steps' in config else '',
    results.render(source),
    _how_to_load(loaded, to, name, method),
    f'{provenance.HEADING}\n\n{origin}',
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _summary(loaded, method) -> str:
  c, params = loaded.config, loaded.params
  (h, w), p = c['image_size'], c['patch_size']
  count = {
    part: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    for part, tree in params.items()
  }
  has_target = 'target' in method.parts
  names = {k: weights.PARTS[k].words for k in params}
  content = ', '.join(
    f'the {names[k] if has_target else method.judged} ({n:.3g} M)'
    for k, n in count.items()
  )
  origin = f'I-JEPA ([Assran et al., CVPR 2023]({PAPER}))'
  if not has_target:
    origin = f'Trained by the method `{method.name}` of ijepa_jax'
  words = (
    f'{origin}, '
    f'{weights.size_name(c) or "a size of its own"}, patches of {p} '
    f'pixels, images of {h} x {w}. It holds, with its millions of '
    f'parameters: {content}'
  )
  if loaded.optimizer:
    words += f"; and AdamW's state after step {loaded.optimizer.step}"
  if not has_target:
    return f'{words}.'
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
  rows = [['', 'encoder', 'predictor']]
  sizes = {**c, 'predictor_mlp_dim': 4 * c.get('predictor_width', 0)}
  for key, words in _SIZES.items():
    rows.append([words, sizes[key], sizes.get(f'predictor_{key}')])
  pixels = {
    'patch': f'{p} x {p} pixels',
    'images': f'{h} x {w} pixels, {c["channels"]} channels',
    'patches': f'{h // p} x {w // p}',
    'mean of the pixels in [0, 1]': _numbers(c.get('mean')),
    'standard deviation': _numbers(c.get('std')),
  }
  rows += [[k, v, ''] for k, v in pixels.items()]
  columns = 3 if 'predictor_width' in c else 2
  table = results.markdown_table([row[:columns] for row in rows])
  return f'## Architecture\n\n{table}'


def _pictures(loaded) -> str:
  """Says how `ImageEncoder` and evaluations turn a picture into features."""
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


def _training(c: Mapping, step: int, method) -> str:
  d, o = c['data'], c['optim']
  if d['source'] == 'scenes':
    data = f'{d["count"]} embedded pictures ({d["flavour"]})'
  else:
    data = f'{d["source"]} `{provenance.public_name(d["path"])}`, {d["split"]}'
  if d.get('list_file'):
    data += f', those listed in `{provenance.public_name(d["list_file"])}`'
  colors = ', '.join(f'{k} {d[k]:g}' for k in _COLORS if d.get(k))
  scale = o.get('schedule_scale', 1)
  rows = {
    'data': data,
    'crops': f'{_range(d["crop_scale"])} of the area'
    + (', mirrored at random' if d['flip'] else '')
    + (f'; {colors}' if colors else ''),
    'steps': f'{step} of {c["total_steps"]}'
    + (f', of schedules {scale:g} times as long' if scale != 1 else ''),
    'batch size': f'{c["batch_size"]} images',
    'AdamW': f'betas {o["b1"]:g} and {o["b2"]:g}'
    + (f', gradients clipped to {o["clip_norm"]:g}' if o['clip_norm'] else '')
    + (', first moment in bfloat16' if o.get('mu_dtype') == 'bfloat16' else ''),
    'learning rate': f'{o["start_lr"]:g} to {o["peak_lr"]:g} in '
    f'{o["warmup_steps"]} steps, then to {o["final_lr"]:g}',
    'weight decay': f'{o["weight_decay"]:g} to {o["final_weight_decay"]:g}, '
    f'{o["weight_decay_schedule"]}',
    **_of_method(c, method),
    'computed in': c['model']['dtype'],
    'seed': c['seed'],
  }
  if 'views' in rows:
    del rows['crops']
  table = results.markdown_table([('', ''), *rows.items()])
  return f'## Training\n\n{table}'


def _of_method(c: Mapping, method) -> dict[str, str]:
  if method.name == 'vicreg':
    v = c['vicreg']
    return {
      'views': f'{v["num_views"]} of {_range(v["crop_scale"])} of the area',
      'loss': v['regularizer'],
    }
  if method.name == 'mae':
    m = c['mae']
    return {
      'masks': f'{m["mask_ratio"]:.0%} of the patches hidden, at random',
      'decoder': f'{m["decoder_depth"]} blocks of width {m["decoder_width"]}',
      'loss': 'l2, of the hidden pixels',
    }
  mask, ema = c['mask'], c['ema']
  rows = {}
  if 'target' in method.parts:
    rows['momentum of the target encoder'] = _range((ema['first'], ema['last']))
  return rows | {
    'masks': mask['sampler'],
    'targets': f'{mask["num_targets"]} of scale {_range(mask["target_scale"])} '
    f'and aspect {_range(mask["target_aspect"])}',
    'contexts': f'{mask["num_contexts"]} of scale '
    f'{_range(mask["context_scale"])}',
    'loss': 'l2, of pixels' if method.name == 'pixels' else c['loss']['kind'],
  }


def _how_to_load(loaded, to: str, name: str, method) -> str:
  alone = 'target' in method.parts and 'target' not in loaded.params
  option = ", which='context'" if alone else ''
  quoted = repr(name).replace('`', '\\x60')
  shape = f'# float32 [2, {loaded.config["width"]}]'
  lines = [
    'import ijepa_jax',
    f'encoder = ijepa_jax.load_encoder({quoted}{option})',
    f"features = encoder.features(['a.jpg', 'b.jpg'])  {shape}",
  ]
  blocks = [_code(lines)]
  if to == 'release':
    lines = [
      'import torch  # encoder, predictor, target_encoder: names and tensors',
      f'networks = torch.load({quoted}, weights_only=True)',
    ]
    blocks.append(_code(lines))
  elif to == 'huggingface':
    blocks += _with_transformers(loaded.config, quoted, shape)
  path = shlex.quote(name).replace('`', '_')
  if loaded.optimizer and to == 'orbax':
    blocks.append(
      'A run of the same recipe goes on from it: `python main.py '
      f'--config=... --workdir={path}`.'
    )
  blocks.append(
    f'Training and evaluations begin with it by `--config.init_from={path}`.'
  )
  return '\n\n'.join(['## How to load it', *blocks])


def _with_transformers(config, quoted: str, shape: str) -> list[str]:
  mode = {1: 'L', 3: 'RGB'}.get(config['channels'])
  if not (mode and 'mean' in config and 'std' in config):
    # There is no processor, or none that reads a picture.
    lines = [
      'from transformers import IJepaModel',
      f'model = IJepaModel.from_pretrained({quoted})',
    ]
    return [_code(lines)]
  lines = [
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
  ]
  return [
    _code(lines),
    'The processor, a CLIPImageProcessor, makes the pixels that evaluations '
    'see where they cut out the middle, and the mean over the tokens is what '
    'they judge. A pooler, which IJepaModel can have, would be untrained.',
  ]


def _code(lines: list[str]) -> str:
  return '\n'.join(['```python', *lines, '```'])


def _range(ends) -> str:
  first, last = (f'{x:g}' for x in ends)
  return first if first == last else f'{first} to {last}'


def _numbers(values) -> str:
  return ', '.join(f'{x:g}' for x in values) if values else 'not known'
