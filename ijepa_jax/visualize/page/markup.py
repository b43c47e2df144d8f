"""One HTML file that opens anywhere: pictures inside, no network."""

import base64
import html
import io
import json

import numpy as np
from PIL import Image

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1b1f;--dim:#5a5a66;
--line:#d5d5dd;--mark:#c2410c}
@media(prefers-color-scheme:dark){:root{--bg:#141418;--fg:#ececf1;--dim:#a5a5b2;
--line:#3a3a45;--mark:#fb923c}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .3rem}
p{max-width:46rem}.dim,figcaption{color:var(--dim);font-size:.875rem}
figcaption{max-width:18rem}table{border-collapse:collapse}
th,td{padding:.2rem .8rem .2rem 0;text-align:left;
border-bottom:1px solid var(--line)}td.n{text-align:right;
font-variant-numeric:tabular-nums}
.row{display:flex;flex-wrap:wrap;gap:.75rem;margin:.5rem 0}figure{margin:0}
img{display:block;image-rendering:pixelated;background:#888}
.map{position:relative;display:inline-block}
.map .cells{position:absolute;inset:0;display:grid}
.map button{all:unset;cursor:pointer}
.map button:focus-visible,.map button[aria-pressed=true]{outline:2px solid
var(--mark);outline-offset:-2px}
.banner{border-left:.4rem solid;padding:.4rem 1rem;margin:1rem 0}
.banner p{margin:.3rem 0}.good{border-color:#15803d}.poor{border-color:#ca8a04}
.bad{border-color:#dc2626}.banner strong{font-size:1.1rem}
.wide{width:100%;height:auto;image-rendering:auto}
.scroll{overflow-x:auto}
.over{position:absolute;inset:0;display:grid;pointer-events:none}
"""

_SCRIPT = """
for(const box of document.querySelectorAll('.explore')){
const d=JSON.parse(box.querySelector('script').textContent);
const bytes=s=>Uint8Array.from(atob(s),c=>c.charCodeAt(0));
const maps=d.maps.map(bytes),cells=[...box.querySelectorAll('button')];
const n=d.rows*d.columns,says=box.querySelector('output');
const show=i=>{cells.forEach((c,j)=>{c.setAttribute('aria-pressed',j==i);
c.tabIndex=j==i?0:-1});
box.querySelectorAll('.over').forEach((o,k)=>{[...o.children].forEach((s,j)=>{
const v=maps[k]?maps[k][i*n+j]:0,a=d.has[k]&&!d.has[k][i]?null:v/255;
const none='repeating-linear-gradient(45deg,#8886 0 3px,#0000 3px 6px)';
s.style.background=a===null?none:
`rgba(${a>.5?'255,140,0':'30,90,255'},${Math.abs(a-.5)*1.7})`})});
says.textContent=`Patch ${Math.floor(i/d.columns)+1}, ${i%d.columns+1}`+
(d.has[1]?(d.has[1][i]?': predicted':': in no target block'):'')};
cells.forEach((c,i)=>{c.onclick=()=>show(i);c.onkeydown=e=>{
const m={ArrowRight:1,ArrowLeft:-1,ArrowDown:d.columns,
ArrowUp:-d.columns}[e.key];
if(m===undefined)return;const j=i+m;if(j<0||j>=n)return;e.preventDefault();
show(j);cells[j].focus()}});show(d.start)}
"""


def png(image_HWC: np.ndarray, least: int = 144) -> str:
  """An <img> with the picture inside, enlarged to at least so many pixels."""
  x = np.asarray(image_HWC)
  # Of more than three channels the first three, of two the first.
  x = x[..., :3] if x.shape[-1] >= 3 else x[..., :1].repeat(3, -1)
  scale = max(1, -(-least // x.shape[1]))
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(x)).save(file, 'PNG')
  data = base64.b64encode(file.getvalue()).decode()
  h, w = (n * scale for n in x.shape[:2])
  return (
    f'<img alt="" width="{w}" height="{h}" src="data:image/png;base64,{data}">'
  )


def figure(picture: str, caption: str = '') -> str:
  """A picture with plain words below it."""
  words = f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''
  return f'<figure>{picture}{words}</figure>'


def row(figures) -> str:
  """Figures side by side."""
  return f'<div class="row">{"".join(figures)}</div>'


_GRADES = {
  'good': 'It holds what is hidden.',
  'poor': 'It holds little.',
  'bad': 'Nothing is held, or the run is not healthy.',
}


def banner(grade: str, sentences: list[str]) -> str:
  """What it all comes to, at a glance; '' without sentences.

  Args:
    grade: 'good', 'poor' or 'bad'.
    sentences: the reasons.
  """
  if not sentences:
    return ''
  words = ''.join(f'<p>{html.escape(sentence)}</p>' for sentence in sentences)
  return (
    f'<div class="banner {grade}" role="note">'
    f'<strong>{_GRADES[grade]}</strong>{words}</div>'
  )


def embedded(png_bytes: bytes, words: str) -> str:
  """An <img> of a PNG at the width of the page; `words` stand for it."""
  data = base64.b64encode(png_bytes).decode()
  return (
    f'<div class="scroll"><img class="wide" alt="{html.escape(words)}" '
    f'src="data:image/png;base64,{data}"></div>'
  )


def section(title: str, words: str, *parts: str) -> str:
  """A heading, a sentence on how to read it, and what there is to see."""
  return (
    f'<section><h2>{html.escape(title)}</h2><p>{html.escape(words)}</p>'
    f'{"".join(parts)}</section>'
  )


def table(header, rows) -> str:
  """A table; the first column is words, the others numbers."""
  head = ''.join(f'<th scope="col">{html.escape(str(x))}</th>' for x in header)
  body = ''.join(
    '<tr>'
    + f'<th scope="row">{html.escape(str(first))}</th>'
    + ''.join(f'<td class="n">{html.escape(str(x))}</td>' for x in rest)
    + '</tr>'
    for first, *rest in rows
  )
  return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def explorer(
  image_HWC: np.ndarray,
  grid: tuple[int, int],
  maps: list[np.ndarray],
  captions: list[str],
  has: list[np.ndarray | None],
  start: int,
) -> str:
  """An image whose patches can be clicked: each shows its cosines.

  Args:
    image_HWC: uint8.
    grid: rows and columns of patches.
    maps: [N, N] cosines in [-1, 1], row: of the patch that is clicked.
    captions: of each map.
    has: bool [N], the patches that have a row; None: all.
    start: the patch that is shown first.
  """
  rows, columns = grid
  n = rows * columns
  style = f'grid-template:repeat({rows},1fr)/repeat({columns},1fr)'
  cells = ''.join(
    f'<button aria-label="patch {i // columns + 1}, {i % columns + 1}" '
    'aria-pressed="false" tabindex="-1"></button>'
    for i in range(n)
  )
  picture = png(image_HWC, 216)
  layers = ''.join(
    figure(
      f'<div class="map">{picture}<div class="over" style="{style}">'
      + '<span></span>' * n
      + '</div>'
      + (f'<div class="cells" style="{style}">{cells}</div>' if k == 0 else '')
      + '</div>',
      caption,
    )
    for k, caption in enumerate(captions)
  )
  data = {
    'rows': rows,
    'columns': columns,
    'start': int(start),
    'maps': [
      base64.b64encode(
        np.clip((m + 1) * 127.5, 0, 255).round().astype(np.uint8).tobytes()
      ).decode()
      for m in maps
    ],
    'has': [None if h is None else [bool(x) for x in h] for h in has],
  }
  return (
    f'<div class="explore"><div class="row">{layers}</div>'
    '<output class="dim"></output>'
    f'<script type="application/json">{json.dumps(data)}</script></div>'
  )


def document(title: str, *sections: str) -> str:
  """The whole file."""
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>'
    f'<main><h1>{html.escape(title)}</h1>{"".join(sections)}</main>'
    f'<script>{_SCRIPT}</script></body></html>'
  )
