"""A self-contained HTML file with embedded style and pictures."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

STYLE = """
body {
  font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px;
  margin: 2em auto; padding: 0 1em;
}
h1 { font-size: 1.6em; margin-bottom: 0; }
h2 { font-size: 1.2em; margin: 2em 0 .3em; border-bottom: 1px solid #ddd; }
p { margin: .4em 0; max-width: 75em; }
.small { color: #666; font-size: .9em; }
figure { display: inline-block; vertical-align: top; margin: .6em 1.2em .6em 0; max-width: 100%; }
img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9em; }
table { border-collapse: collapse; margin: .6em 0; }
td, th { padding: .2em .9em; text-align: right; border-bottom: 1px solid #eee; }
td:first-child, th:first-child { text-align: left; }
tr:nth-child(2) { font-weight: bold; }
"""


class Picture(NamedTuple):
    """A PNG with the name of its file and a plain-text caption."""

    name: str
    caption: str
    png: bytes


class Section(NamedTuple):
    """A part of the page: plain text, a table (the first row is its head), pictures."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = ()


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Make the whole page."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="small">{html.escape(subtitle)}</p>\n'
        f"{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.text)}</p>"]
    if section.table:
        head, *rows = section.table
        lines = [_row("th", head), *(_row("td", row) for row in rows)]
        parts.append("<table>\n" + "\n".join(lines) + "\n</table>")
    parts += [_figure(picture) for picture in section.pictures]
    return "\n".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _figure(picture: Picture) -> str:
    caption, data = html.escape(picture.caption), base64.b64encode(picture.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(picture.caption)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
