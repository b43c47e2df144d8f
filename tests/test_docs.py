"""The pages: what they name exists, and what does not is told."""

import pytest

from docs import check, check_site, run_commands


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


@pytest.mark.slow
def test_the_commands_run(tmp_path):
  """Of all pages, in an empty folder, with few steps."""
  assert run_commands.run_pages(check.PAGES, tmp_path) == []


def test_what_is_run_of_a_page(tmp_path):
  page = tmp_path / 'a.md'
  page.write_text(
    '```sh\nlaunch/local.sh \\\n    --config=configs/tiny.py  # here\n'
    'python -m ijepa_jax --config=evals/knn --config.init_from=runs/a\n'
    'sbatch launch/slurm.sh\n```\n```python\nimport ijepa_jax\n'
    "e = ijepa_jax.load_encoder('runs/b')\n```\n"
  )
  train, judge, submit, python = run_commands.commands_of(page)
  assert train == ('launch/local.sh', '--config=configs/tiny.py')
  assert '--config.total_steps=4' in run_commands.shortened(train)
  assert '--config.total_steps=4' not in run_commands.shortened(judge)
  assert run_commands.missing(judge, tmp_path) == ['runs/a']
  assert run_commands.missing(python, tmp_path) == ['runs/b']
  assert 'cluster' in run_commands.reason_not_to_run(submit)
  assert not any(map(run_commands.reason_not_to_run, (train, judge, python)))
