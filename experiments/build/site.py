"""A hook of MkDocs: the word after a block's language, by which tests find it, is the name of the
file that it stands for, or goes.
"""

from __future__ import annotations

import logging
import re
from typing import Any

_log = logging.getLogger("mkdocs.hooks.site")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's source, before it is rendered."""

    def opened(block: re.Match[str]) -> str:
        language, word = block.groups()
        return f'```{language} title="{word}.py"' if word.startswith("my_") else f"```{language}"

    return re.sub(r"^```(\w+) (\w+)$", opened, markdown, flags=re.MULTILINE)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Warns, which fails a strict build, of a block that was not understood."""
    if "```" in html:
        _log.warning("%s shows a fence as text: is its first line right?", page.file.src_uri)
