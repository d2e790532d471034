"""Figures as inline SVG that follows the page: its font, its theme, its width."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from mistjax.report.style import LIGHT


def themed(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element.

    Palette colours become `var(--role)`, text stays text. `name` keeps the ids of several figures
    on one page apart; screen readers read `label` out.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", text)
    for role, color in LIGHT.items():
        text = text.replace(color, f"var(--{role})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
    width = float(re.search(r'width="([\d.]+)pt"', text).group(1)) * 4 / 3  # type: ignore[union-attr]
    style = f"width:100%;max-width:{width:.0f}px;height:auto"
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    label = escape(label, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" style="{style}" ', 1)
