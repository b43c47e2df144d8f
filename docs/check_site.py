"""Checks the pages as they are built."""

import html.parser
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


class Page(html.parser.HTMLParser):
  """The ids of a page, its links, and what it loads."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.ids, self.links, self.loads = set(), set(), set()
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    a = dict(attributes)
    self.ids |= {a.get('id'), a.get('name')} - {None}
    if tag == 'a' and a.get('href'):
      self.links.add(a['href'])
    loaded = a.get('src') or (tag == 'link' and a.get('href'))
    if loaded and a.get('rel') not in ('canonical', 'next', 'prev'):
      self.loads.add(loaded)


def site_problems(site: pathlib.Path) -> list[str]:
  """Returns what is wrong with the pages as they were built."""
  pages = {path: Page(path) for path in sorted(site.rglob('*.html'))}
  problems = [] if pages else [f'{site}: there are no pages']
  for path, page in pages.items():
    name = path.relative_to(site)
    for link in sorted(page.links | page.loads):
      if re.match(r'(\w+:)?//', link):
        if link in page.loads:
          problems.append(f'{name}: {link} is loaded from elsewhere')
        continue
      if link.startswith('data:') or name.name == '404.html':
        continue
      file, _, anchor = link.partition('#')
      target = (
        (path.parent / file.partition('?')[0]).resolve() if file else path
      )
      target = target / 'index.html' if target.is_dir() else target
      if not target.exists():
        problems.append(f'{name}: {link} leads nowhere')
      elif anchor and target in pages and anchor not in pages[target].ids:
        problems.append(f'{name}: {link} has an anchor that is not there')
  objects = re.findall(r'^::: (\S+)', (ROOT / 'docs/api.md').read_text(), re.M)
  api = site / 'api.html'
  if api.exists():
    problems += [
      f'api.html: {name} is missing'
      for name in objects
      if name not in pages[api].ids
    ]
  return problems
