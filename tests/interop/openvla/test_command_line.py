"""The main path from the command line on the shipped OpenVLA-OFT."""

import pytest

from tests.test_every_policy import walk


@pytest.mark.slow
def test_the_main_path(tmp_path, capsys):
    changed = "--perturbation", "table_texture", "0.2"  # so that some episodes fail
    walk("board_openvla", tmp_path, 16, capsys, *changed)
