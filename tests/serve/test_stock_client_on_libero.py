"""LIBERO through the server, played by openpi's own client: a start that the monitor has not seen,
without a fault and with a camera that freezes in mid-episode.
"""

import os

import pytest

from experiments.studies.served_libero import CLEAN, Config, main
from mistjax.demo import SHIPPED
from tests.libero_found import FOUND

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("MISTJAX_CLIENT" not in os.environ, reason="needs openpi-client"),
    pytest.mark.skipif(not FOUND, reason="needs LIBERO and its assets"),
]
ONSET = 30


def test_a_camera_that_freezes_in_mid_episode_is_named_in_the_reply(tmp_path):
    config = Config(
        SHIPPED / "libero_mist",
        first_start=11,
        starts=1,
        faults=("front_frozen",),
        onset=ONSET,
        results=tmp_path / "found.json",
    )
    found = main(config)["conditions"]
    (clean,), (frozen,) = found[CLEAN], found["front_frozen"]
    assert clean["success"] and clean["alarm"] is None
    assert ONSET <= frozen["alarm"]["step"] <= ONSET + 25 and frozen["alarm"]["input"] == "front"
    assert "camera front" in frozen["alarm"]["explanation"]
