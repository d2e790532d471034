"""Whoever uses a part of the library can cite what it is made of."""

import pytest

from mistjax.citations import PACKAGE, bibliography, citation, rooms, sources


def test_every_source_named_in_the_code_has_a_bibtex_entry():
    named = sources(PACKAGE) | sources(PACKAGE.parent / "interop")
    missing = named - set(bibliography())
    assert not missing, f"add BibTeX of {missing} to mistjax/citations.bib"


def test_a_room_cites_its_own_sources_and_the_library():
    text = citation("hooks")
    assert text.startswith("@software{mistjax,")
    assert "arXiv:2202.05262" in text and "arXiv:2410.24164" not in text
    assert text.count("\n@") == len(sources(rooms()["hooks"]))


def test_the_whole_library_cites_every_room():
    text = citation()
    assert all(f"arXiv:{number}" in text for room in rooms().values() for number in sources(room))


def test_an_unknown_room_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'hook' is not a part.*'hooks'"):
        citation("hook")
