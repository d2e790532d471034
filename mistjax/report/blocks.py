"""What a report's sections are made of. Each block renders itself as HTML.

`name` is unique on the page; a block uses it for element ids. All text is escaped; `backticks` mark
code.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from mistjax.report.svg import themed


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines."""

    text: str

    def html(self, name: str) -> str:
        return "".join(f"<p>{inline(part)}</p>" for part in self.text.strip().split("\n\n"))


@dataclasses.dataclass(frozen=True)
class Facts:
    """A few large numbers: label -> (value, small print)."""

    facts: Mapping[str, tuple[str, str]]

    def html(self, name: str) -> str:
        cards = (
            f'<div class="fact"><dt>{escape(label)}</dt>'
            f'<dd><div class="value">{escape(value)}</div>'
            f'<div class="note">{inline(note)}</div></dd></div>'
            for label, (value, note) in self.facts.items()
        )
        return f'<dl class="facts">{"".join(cards)}</dl>'


Pick = Mapping[str, str]
"""Some of the `Episodes` of a page: filter -> value."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with the same columns; the first column names the row.

    Attributes:
        rows: text of each cell.
        caption, title: below and above.
        links: (row number, column) -> the episodes on the page that the cell counts.
    """

    rows: Sequence[Mapping[str, str]]
    caption: str = ""
    title: str = ""
    links: Mapping[tuple[int, str], Pick] = dataclasses.field(default_factory=dict)

    def html(self, name: str) -> str:
        if not self.rows:
            return ""
        columns = list(self.rows[0])
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        body = ""
        for number, row in enumerate(self.rows):
            first, *rest = (
                _linked(_cell(row[column]), self.links.get((number, column))) for column in columns
            )
            cells = "".join(f"<td>{cell}</td>" for cell in rest)
            body += f'<tr><th scope="row">{first}</th>{cells}</tr>'
        caption = f'<p class="caption">{inline(self.caption)}</p>' if self.caption else ""
        title = f"<h3>{inline(self.title)}</h3>" if self.title else ""
        return (
            f'{title}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{caption}"
        )


@dataclasses.dataclass(frozen=True)
class Episodes:
    """A list of episodes to filter; at most one on a page.

    Attributes:
        rows: columns of text; `seed` links to the id in `video`, which is not a column.
        filters: columns to choose by.
    """

    rows: Sequence[Mapping[str, str]]
    filters: Sequence[str]

    def html(self, name: str) -> str:
        if not self.rows:
            return ""
        values = {key: sorted({row[key] for row in self.rows} - {""}) for key in self.rows[0]}
        columns = [key for key in values if key != "video" and values[key]]
        chosen = [key for key in self.filters if values[key]]
        fields = "".join(
            f'<label>{escape(key)} <select name="{escape(key)}"><option value="">all</option>'
            + "".join(f"<option>{escape(value)}</option>" for value in values[key])
            + "</select></label>"
            for key in chosen
        )
        head = "".join(f'<th scope="col">{escape(key)}</th>' for key in columns)
        body = ""
        for row in self.rows:
            data = "".join(f' data-{key}="{escape(row[key], quote=True)}"' for key in chosen)
            cells = "".join(
                f"<td>{_seed(row) if k == 'seed' else escape(row[k])}</td>" for k in columns
            )
            body += f"<tr{data}>{cells}</tr>"
        return (
            f'<div id="{EPISODES}" class="episodes"><form>{fields}<output></output></form>'
            '<div class="scroll tall" tabindex="0" role="region" aria-label="Every episode">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
        )


EPISODES = "every-episode"


def _seed(row: Mapping[str, str]) -> str:
    seed, video = escape(row["seed"]), row.get("video")
    return f'<a href="#{escape(video, quote=True)}">{seed}</a>' if video else seed


def _linked(cell: str, pick: Pick | None) -> str:
    if pick is None or not re.search("[1-9]", cell):
        return cell
    chosen = escape(urlencode(pick), quote=True)
    return f'<a href="#{EPISODES}" data-pick="{chosen}">{cell}</a>'


@dataclasses.dataclass(frozen=True)
class Plot:
    """A matplotlib figure in the palette of `report.style`."""

    figure: Figure
    caption: str = ""
    title: str = ""

    def html(self, name: str) -> str:
        content = themed(self.figure, name, self.caption or self.title or _spoken(self.figure))
        return _figure(content, self.caption, self.title, "card")


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image; its pixels stay sharp."""

    image: UInt8[np.ndarray, "h w 3"]
    caption: str = ""
    title: str = ""

    def html(self, name: str) -> str:
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "png", optimize=True)
        alt = escape(self.caption or self.title, quote=True)
        uri = _data_uri("image/png", buffer.getvalue())
        return _figure(f'<img class="pixels" alt="{alt}" src="{uri}">', self.caption, self.title)


@dataclasses.dataclass(frozen=True)
class Video:
    """An mp4 file, which must be one that browsers play (see `rollouts.mp4`).

    Attributes:
        path: of the file.
        caption, title: below and above.
        fps: frames per second, for stepping frame by frame.
        id: target of links; "" for none.
    """

    path: Path
    caption: str = ""
    title: str = ""
    fps: float = 10.0
    id: str = ""

    def html(self, name: str) -> str:
        uri = _data_uri("video/mp4", self.path.read_bytes())
        text = escape(self.caption or self.title, quote=True)
        tag = (
            f'<video controls muted loop playsinline preload="auto" aria-label="{text}" '
            f'data-fps="{self.fps:g}" src="{uri}"></video>'
        )
        figure = _figure(tag, self.caption, self.title)
        return f'<div id="{escape(self.id, quote=True)}">{figure}</div>' if self.id else figure


@dataclasses.dataclass(frozen=True)
class Quote:
    """What the monitor said, and when."""

    text: str
    source: str = ""

    def html(self, name: str) -> str:
        source = f"<footer>{inline(self.source)}</footer>" if self.source else ""
        return f"<blockquote>{inline(self.text)}{source}</blockquote>"


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of an instruction, each shaded by the positive part of its weight."""

    words: Sequence[tuple[str, float]]

    def html(self, name: str) -> str:
        top = max((weight for _, weight in self.words), default=0.0)
        items = (
            f'<li style="--w:{max(weight, 0) / max(top, 1e-12):.3f}">{escape(word)}'
            f"<small>{weight:+.2f}</small></li>"
            for word, weight in self.words
        )
        return f'<ul class="words">{"".join(items)}</ul>'


@dataclasses.dataclass(frozen=True)
class Fold:
    """Preformatted text behind a summary line."""

    summary: str
    text: str

    def html(self, name: str) -> str:
        return (
            f"<details><summary>{inline(self.summary)}</summary>"
            f"<pre>{escape(self.text)}</pre></details>"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """Blocks side by side, where there is room for `least` pixels each."""

    blocks: Sequence[Block]
    least: int = 300

    def html(self, name: str) -> str:
        inner = "".join(
            f"<div>{block.html(f'{name}-{i}')}</div>" for i, block in enumerate(self.blocks)
        )
        return f'<div class="row" style="--least:min({self.least}px,100%)">{inner}</div>'


Block = Text | Facts | Table | Episodes | Plot | Picture | Video | Quote | Words | Fold | Row


def inline(text: str) -> str:
    """Escaped text in which `code` is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _spoken(figure: Figure) -> str:
    """The words in a figure, for one that has no caption."""
    words = (
        word
        for axes in figure.axes
        for word in (
            axes.get_title("left") or axes.get_title(),
            axes.get_ylabel(),
            axes.get_xlabel(),
        )
    )
    return "Plot: " + ", ".join(filter(None, words))


def _figure(content: str, caption: str, title: str, style: str = "") -> str:
    head = f"<h3>{inline(title)}</h3>" if title else ""
    foot = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
    return f'<figure class="{style}">{head}{content}{foot}</figure>'


def _cell(text: str) -> str:
    """Escaped text that breaks lines outside brackets only."""
    brackets = r"[(\[][^)\]]*[)\]](?: [(\[][^)\]]*[)\]])*"
    return re.sub(brackets, r'<span class="whole">\g<0></span>', inline(text))


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
