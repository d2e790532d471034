"""A report as one HTML file: no network, no other files, light and dark.

A page is a list of sections, a section a list of blocks. Pictures and videos are inside the file as
data URIs, which make up its size (about 0.1 to 0.5 MB per video).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from mistjax.files import atomic
from mistjax.report.blocks import Block, inline
from mistjax.report.style import DARK, LIGHT


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what is under it.

    Attributes:
        title: the heading.
        blocks: the content.
        stand_in: if the numbers are not the real thing, what stands in for it ("random weights");
            shown as a label under the heading.
    """

    title: str
    blocks: Sequence[Block]
    stand_in: str = ""


def render(sections: Sequence[Section], title: str, subtitle: str = "") -> str:
    """The page as text.

    Raises:
        ValueError: no section.
    """
    if not sections:
        raise ValueError("a report without sections: give at least one.")
    body, links = "", ""
    for number, section in enumerate(sections):
        name = f"s{number}"
        links += f'<a href="#{name}">{escape(section.title)}</a>'
        label = (
            f'<div class="stand-in">Stand-in: {inline(section.stand_in)}</div>'
            if section.stand_in
            else ""
        )
        blocks = "".join(block.html(f"{name}-{i}") for i, block in enumerate(section.blocks))
        heading = f'<h2 id="{name}">{escape(section.title)}</h2>'
        body += f"<section>{heading}{label}{blocks}</section>\n"
    under = f'<p class="subtitle">{inline(subtitle)}</p>' if subtitle else ""
    nav = f"<nav>{links}</nav>" if len(sections) > 1 else ""
    return _PAGE.format(
        title=escape(title),
        style=_style(),
        under=under,
        nav=nav,
        body=body,
        script=_asset("page.js"),
    )


def write_report(
    sections: Sequence[Section], out: str | Path, title: str, subtitle: str = ""
) -> Path:
    """Writes the page to `out`, whole or not at all; returns the path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as temporary:
        temporary.write_text(render(sections, title, subtitle), encoding="utf-8")
    return out


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<button id="theme" type="button" title="Light or dark" aria-label="Light or dark">
<svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true">
<circle cx="8" cy="8" r="6.5" fill="none" stroke="currentColor" stroke-width="1.5"/>
<path d="M8 1.5a6.5 6.5 0 0 1 0 13z" fill="currentColor"/></svg>
</button>
<h1>{title}</h1>
{under}
{nav}
</header>
<main>
{body}</main>
<footer>Made with mistjax. Intervals are 95% Wilson intervals; crashes are counted apart.</footer>
<script>{script}</script>
</body>
</html>
"""


def _style() -> str:
    light = ";".join(f"--{role}:{color}" for role, color in LIGHT.items())
    dark = ";".join(f"--{role}:{color}" for role, color in DARK.items())
    return (
        f":root{{color-scheme:light;{light}}}"
        "@media(prefers-color-scheme:dark){"
        f":root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n{_asset('page.css')}"
    )


def _asset(name: str) -> str:
    return resources.files("mistjax.report").joinpath(name).read_text("utf-8")
