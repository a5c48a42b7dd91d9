"""One HTML file with everything in it: text, tables and plotly's charts; it asks no network.

page = render_page("Title", lead="One sentence.", sections=[
    Section("Cost", [chart(figure, name="cost"), table(["model", "€"], [["small", "1.20"]])]),
])
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["PALETTE", "Section", "chart", "details", "money", "paragraph", "render_page", "table"]

#: Colours of lines and marks that differ in kind; told apart by most eyes (Okabe and Ito 2008).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")

# plotly.js holds addresses of maps and fonts. Nothing here uses them, and the browser may not.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_STYLE = """
:root { color-scheme: light; --ink: #1b2028; --soft: #565f6d; --line: #e0ddd6; --back: #f6f4ef; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--back); overflow-wrap: break-word; }
main { max-width: 66rem; margin: 0 auto; padding: 1.2rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: 0 0 .7rem; max-width: 48rem; }
.lead { color: var(--soft); margin-bottom: 1.2rem; }
.lead b { color: var(--ink); }
.soft { color: var(--soft); font-size: .85rem; }
.note { border-left: 3px solid var(--line); padding-left: .8rem; }
.chosen.note { border-color: #0072b2; }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1rem; font-size: .9rem; margin-bottom: 1rem; }
a, summary { color: #0072b2; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
section { background: #fff; border: 1px solid var(--line); border-radius: .8rem;
  padding: 1rem 1.1rem; margin-bottom: 1.1rem; min-width: 0; }
.chart { width: 100%; margin: .3rem 0 .7rem; }
.wide { overflow-x: auto; margin: .3rem 0 .7rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 14rem; }
tr.chosen td { background: #eef6f1; font-weight: 600; }
@media (max-width: 40rem) { main { padding: .7rem; } section { padding: .8rem .7rem; } }
"""


class Section(NamedTuple):
    """A heading and what stands below it: HTML of `chart`, `table`, `paragraph`, `details`.

    With a short name it is in the page's contents, and the name in lower case with hyphens its id.
    """

    title: str
    parts: Sequence[str]
    short: str = ""

    @property
    def anchor(self) -> str:
        """The id."""
        return self.short.lower().replace(" ", "-")


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph.

    Args:
        text: plain, but for **what is bold**.
        kind: "soft", "note" (with a bar beside it), "chosen note"; or as any other.
    """
    return f"<p{_kind(kind)}>{_bold(text)}</p>"


def details(summary: str, parts: Sequence[str]) -> str:
    """What is shown when its summary, plain text, is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))


def _kind(name: str) -> str:
    return f' class="{name}"' if name else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Sequence[int] = (),
    chosen: Sequence[int] = (),
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        head: of the columns.
        rows: cells, plain text. The first column stands left, the others right.
        text: places of columns of words, which stand left and may break.
        chosen: places of rows that stand out.
    """

    def cell(tag: str, place: int, content: str) -> str:
        return f"<{tag}{_kind('text' * (place in text))}>{escape(content)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", n, one) for n, one in enumerate(head)) + "</tr>"]
    for number, row in enumerate(rows):
        kind = _kind("chosen" * (number in chosen))
        lines.append(f"<tr{kind}>" + "".join(cell("td", n, x) for n, x in enumerate(row)) + "</tr>")
    # A region that scrolls must be within reach of the keyboard.
    return f'<div class="wide" tabindex="0"><table>{"".join(lines)}</table></div>'


def chart(figure: Figure, *, name: str, label: str, height: int = 420) -> str:
    """A chart that takes the width there is.

    Args:
        figure: of plotly; its fonts, margins and legend are set here.
        name: of the element, one of its kind in the page.
        label: what is to be seen, for those who can't see it.
        height: in pixels.
    """
    figure.update_layout(
        template="plotly_white", autosize=True, height=height, colorway=PALETTE,
        margin={"l": 10, "r": 10, "t": 10, "b": 10}, hovermode="closest", dragmode=False,
        font={"family": "system-ui, Segoe UI, Roboto, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )  # fmt: skip
    # Fixed ranges leave a finger's drag to the page: it scrolls.
    figure.update_xaxes(automargin=True, fixedrange=True)
    figure.update_yaxes(automargin=True, fixedrange=True)
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height=f"{height}px",
        config={"responsive": True, "displaylogo": False, "displayModeBar": False},
    )
    return f'<div class="chart" role="img" aria-label="{escape(label, quote=True)}">{drawn}</div>'


def render_page(title: str, *, lead: str, sections: Sequence[Section]) -> str:
    """The whole file.

    Args:
        title: of the page.
        lead: text below it, as of `paragraph`.
        sections: in their order.
    """
    from plotly.offline import get_plotlyjs

    body = "".join(map(_section, sections))
    links = [f'<a href="#{one.anchor}">{escape(one.short)}</a>' for one in sections if one.short]
    contents = f"<nav>{''.join(links)}</nav>\n" if links else ""
    # Minified code may hold "</script" in a string; plotly's has none, and a new one could.
    library = get_plotlyjs().replace("</script", "<\\/script")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)} · rectrain</title>
<style>{_STYLE}</style>
<script>{library}</script>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{paragraph(lead, kind="lead")}
{contents}{body}</main>
</body>
</html>
"""


def _section(one: Section) -> str:
    anchor = f' id="{one.anchor}"' if one.short else ""
    return f"<section{anchor}><h2>{escape(one.title)}</h2>{''.join(one.parts)}</section>\n"


def money(value: float, currency: str) -> str:
    """An amount for people: about three digits, never fewer than the cents of large ones."""
    if value and abs(value) < 0.0995:
        return f"{currency} {value:.3g}"
    if abs(value) < 100:
        return f"{currency} {value:,.2f}"
    return f"{currency} {value:,.0f}"
