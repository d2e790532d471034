"""The main path from the command line on the shipped OpenVLA-OFT."""

from tests.test_every_policy import walk


def test_the_main_path(tmp_path, capsys):
    walk("board_openvla", tmp_path, 16, capsys)
