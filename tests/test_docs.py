"""The pages: what they name exists, and what does not is told."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from docs import check, check_site


def test_the_pages():
  assert check.problems() == []


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('[a](nowhere.md)', 'the link nowhere.md leads nowhere'),
    ('![a](nowhere.png)', 'the link nowhere.png leads nowhere'),
    ('[a](data.md#no-such)', 'data.md#no-such has an anchor'),
    ('[a](../README.md)', 'leads out of the site'),
    ('`python -m ijepa_jax.nothing a`', 'ijepa_jax.nothing is not there'),
    ('`python benchmarks/no.py --x=1`', 'benchmarks/no.py is not there'),
    ('`python benchmarks/parity.py --x=1`', 'has no flag --x'),
    ('`make nothing`', 'make has no target nothing'),
    ('`configs/no.py`', 'configs/no.py is not there'),
    ('`data.pth`', 'data.pth is no knob'),
    ('`--config.data.pth=x`', 'data.pth is no knob'),
    ("```\npip install '.[no]'\n```", 'setup.py has no extra no'),
    ('```\nmake train\nfoo x\n```', 'foo is no program'),
    ('```sh\npython -m ijepa_jax --config=tniy\n```', "Did you mean 'tiny'"),
    (
      '```\npython main.py --config=configs/tiny.py \\\n'
      '    --workdir=x --config.seed=a\n```',
      'config.seed',
    ),
    (
      '```\nA=1 python -m ijepa_jax --config=vit_s16 --config.data.pth=/x\n```',
      'Did you mean "path"',
    ),
    ('```\nlaunch/local.sh --wrkdir=x\n```', 'has no flag --wrkdir'),
    ('```python\nimport (\n```', 'no Python'),
    ('```python\nfrom ijepa_jax.configs import no\n```', 'configs.no is not'),
    ('```python\nijepa_jax.load(1)\n```', 'ijepa_jax.load is not there'),
  ],
)
def test_what_is_wrong_is_told(text, words):
  page = check.ROOT / 'docs/index.md'
  (sentence,) = check.check_page(page, f'A text\n\n{text}\n\nand more.\n')
  assert words in sentence


def test_the_site(tmp_path):
  (tmp_path / 'a.html').write_text(
    '<p id="here"><a href="b.html#there">b</a><a href="#here">a</a>'
    '<a href="no.html">c</a><img src="no.png">'
    '<script src="https://elsewhere/x.js"></script>'
  )
  (tmp_path / 'b.html').write_text('<p id="other"><a href="https://x/">x</a>')
  assert check_site.site_problems(tmp_path) == [
    'a.html: b.html#there has an anchor that is not there',
    'a.html: https://elsewhere/x.js is loaded from elsewhere',
    'a.html: no.html leads nowhere',
    'a.html: no.png leads nowhere',
  ]


SHORT = {
  'tiny': 'total_steps=4 data.count=64 probe.every_steps=4 '
  'probe.train_count=64 probe.test_count=32',
  'visualize': 'generator.total_steps=0 visualize.images=24',
}


@pytest.mark.slow
def test_the_first_hour(tmp_path, monkeypatch):
  """Its blocks, one after the other, in an empty folder, with few steps."""
  for name in 'a.jpg', 'b.jpg':
    PIL.Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / name)
  monkeypatch.setenv('PYTHONPATH', str(check.ROOT))
  monkeypatch.setenv('IJEPA_JAX_CACHE', str(tmp_path))
  page = check.ROOT / 'docs/first_hour.md'
  _, text = page.read_text().split('## Train a toy')
  blocks, _ = check.split(text)
  assert [language for language, _ in blocks] == ['sh', 'sh', 'python']
  for language, block in blocks:
    command = [sys.executable, '-c', block]
    if language == 'sh':
      command = block.split()
      recipe = command[3].removeprefix('--config=')
      command[0] = sys.executable
      command += [f'--config.{knob}' for knob in SHORT[recipe].split()]
    subprocess.run(command, cwd=tmp_path, check=True)
  assert (tmp_path / 'runs/tiny/curves.png').exists()
  assert (tmp_path / 'runs/tiny/visualize/index.html').exists()
