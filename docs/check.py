"""Checks that what the pages name exists: links, pictures, commands, knobs.

    python docs/check.py               # the pages
    python docs/check.py --site=site   # and what `make docs` made of them

check_commands.py looks at commands, paths, knobs and Python, check_site.py at
the pages as they are built.
"""

import argparse
import pathlib
import re
import sys
import unicodedata

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from docs import check_commands
from docs.check_commands import ROOT
from docs.check_site import site_problems
from ijepa_jax import recipes

DOCS = ROOT / 'docs'
PAGES = [
  *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
  ROOT / 'launch/README.md',
  *sorted(DOCS.glob('*.md')),
]


# ---- Markdown ----


def split(text: str):
  """Returns the fenced blocks [(language, text)], and the rest."""
  fence = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
  return fence.findall(text), fence.sub('', text)


def codes(text: str) -> list[str]:
  """Returns what stands between backticks; lines are joined."""
  paragraphs = re.split(r'\n\s*\n|\n(?=[|#-])', text)
  quoted = [c for p in paragraphs for c in re.findall('`([^`]+)`', p)]
  return [' '.join(code.split()) for code in quoted]


def included(text: str) -> str:
  """Returns the text with the files that it includes."""
  return re.sub(
    r'--8<-- "(.*?)"', lambda file: (ROOT / file[1]).read_text(), text
  )


def anchors(page: pathlib.Path) -> set[str]:
  """Returns those of its headings, where GitHub and the site agree."""
  _, text = split(included(page.read_text()))
  both = set()
  for heading in re.findall(r'^#+ (.*)$', text, re.M):
    words = re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading).lower()
    words = unicodedata.normalize('NFKD', words).encode('ascii', 'ignore')
    words = re.sub(r'[^\w\s-]', '', words.decode()).strip()
    if (github := re.sub(r'\s', '-', words)) == re.sub(r'[-\s]+', '-', words):
      both.add(github)
  return both


def check_links(page: pathlib.Path, text: str):
  text = re.sub('`[^`]+`', '', text)
  links = re.findall(r'\[[^\]]*\]\((\S+?)\)', text)
  for link in links + re.findall(r'^\[[^\]]+\]: (\S+)', text, re.M):
    if re.match(r'\w+:', link):
      continue
    path, _, anchor = link.partition('#')
    target = page.parent / path if path else page
    if not target.exists():
      yield f'the link {link} leads nowhere'
    elif page.is_relative_to(DOCS) and not target.resolve().is_relative_to(
      DOCS
    ):
      yield f'the link {link} leads out of the site: name the file as code'
    elif anchor and anchor not in anchors(target):
      yield f'the link {link} has an anchor that is not there'


# ---- Pages ----


def check_page(page: pathlib.Path, text: str):
  """Yields what is wrong with a page."""
  blocks, rest = split(text)
  _, shown = split(included(text))
  yield from check_links(page, shown)
  if page.name == 'CHANGELOG.md':
    return  # it tells of what was
  for language, block in blocks:
    if language == 'python':
      yield from check_commands.check_python(block)
    elif check_commands.is_shell(language, block):
      yield from check_commands.check_shell(block)
  for code in codes(rest):
    yield from check_commands.check_code(page, code)


def problems() -> list[str]:
  """Returns what is wrong with all pages, a sentence each."""
  sentences = [
    f'{page.relative_to(ROOT)}: {words}'
    for page in PAGES
    for words in check_page(page, page.read_text())
  ]
  listed = (DOCS / 'recipes.md').read_text()
  sentences += [
    f'docs/recipes.md: the recipe {name} is missing'
    for name in recipes.names()
    if name != 'base' and f'`{name}`' not in listed
  ]
  nav = str(yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav'])
  sentences += [
    f'mkdocs.yml: {page.name} is missing in nav'
    for page in sorted(DOCS.glob('*.md'))
    if f"'{page.name}'" not in nav
  ]
  return sentences


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--site', type=pathlib.Path, help='the built pages')
  site = parser.parse_args().site
  sentences = problems() + (site_problems(site.resolve()) if site else [])
  sys.exit('\n'.join(sentences) or None)
