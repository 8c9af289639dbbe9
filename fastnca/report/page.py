"""One HTML page that needs nothing but itself: no script, no request, pictures inside.

Every text is escaped, and a content security policy forbids what the page does not use.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2126; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d7dce0; }
p { margin: .4rem 0; max-width: 46rem; }
figure { margin: .8rem 0; }
figcaption { color: #57606a; font-size: .9rem; }
img { max-width: 100%; height: auto; image-rendering: pixelated; border: 1px solid #e4e8eb; }
img.smooth { image-rendering: auto; border: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: right; padding: .25rem .9rem; border-bottom: 1px solid #e4e8eb; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; vertical-align: bottom; }
h1, p, dd { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; }
dt { color: #57606a; }
dd { margin: 0; }
@media (max-width: 32rem) {
  th, td { padding: .25rem .35rem; font-size: .9rem; }
  dl { gap: .1rem .6rem; }
}
"""


@dataclass(frozen=True)
class Picture:
    """A PNG picture.

    Attributes:
        png: content of the file.
        text: what it shows, for those who cannot see it and as caption.
        smooth: False keeps the cells of a grid sharp when it is scaled.
    """

    png: bytes
    text: str
    smooth: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: names of the columns.
        rows: texts.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        text: a paragraph under it; empty for none.
        parts: pictures and tables, in order.
    """

    title: str
    text: str = ""
    parts: Sequence[Picture | Table] = field(default_factory=list)


def write_page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Write the page.

    Args:
        title: its heading.
        facts: names and values that stand under it.
        sections: its parts.

    Returns:
        HTML.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'"
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    body = "\n".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<dl>{listed}</dl>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>\n" if section.text else ""
    parts = "\n".join(
        _picture(part) if isinstance(part, Picture) else _table(part) for part in section.parts
    )
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}{parts}\n</section>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    kind = ' class="smooth"' if picture.smooth else ""
    text = escape(picture.text)
    return (
        f'<figure><img{kind} alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
