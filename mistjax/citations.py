"""BibTeX of the works that a part of the library is built on.

Docstrings name their source (`arXiv 2506.09937`); this module collects those names and looks them
up in citations.bib, so that what is printed is what the code says it does.
"""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parent
ARXIV = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})")


def bibliography() -> dict[str, str]:
    """BibTeX entries by arXiv number; the library's own is under "mistjax"."""
    entries = re.split(r"\n(?=@)", (PACKAGE / "citations.bib").read_text().strip())
    found = {}
    for entry in entries:
        number = ARXIV.search(entry)
        found[number.group(1) if number else "mistjax"] = entry.strip()
    return found


def rooms() -> dict[str, Path]:
    """The packages that can be cited on their own: name -> folder."""
    folders = [*PACKAGE.iterdir(), *(PACKAGE.parent / "interop").iterdir()]
    return {f.name: f for f in sorted(folders) if f.is_dir() and any(f.glob("*.py"))}


def sources(folder: Path) -> set[str]:
    """The arXiv numbers that the code under a folder names."""
    return {n for path in folder.rglob("*.py") for n in ARXIV.findall(path.read_text())}


def citation(room: str | None = None) -> str:
    """BibTeX of mistjax and of the works that a package, or the whole library, is built on.

    Raises:
        ValueError: no such package.
    """
    folders = rooms()
    if room is not None and room not in folders:
        raise ValueError(f"{room!r} is not a part of mistjax: expected one of {list(folders)}.")
    chosen = folders.values() if room is None else [folders[room]]
    known = bibliography()
    numbers = sorted(set().union(*(sources(folder) for folder in chosen)))
    return "\n\n".join(known[name] for name in ["mistjax", *numbers])
