import pytest
import torch

from interop.openvla.recordings import Recordings, recorded_model
from mistjax.conformance.openvla import COMPARISONS, conformance_openvla


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_recorded_output_of_the_original_is_repeated(goldens, attention):
    rows = conformance_openvla(goldens, attention)
    assert {f"{row.group}.npz" for row in rows} == set(COMPARISONS)
    assert len(rows) == 60 and not [row for row in rows if not row.passed]


def test_the_port_is_as_close_to_float64_as_the_original_was(goldens, recordings):
    import numpy as np

    expected = np.load(goldens / "forward_0.npz")["logits_action"]
    exact = Recordings(goldens, recorded_model(goldens).double())
    with torch.no_grad():
        ids, pixels = torch.tensor(exact.inputs["input_ids_0"]), exact.pixels(0)
        reference = exact.action_logits(exact.model(ids, pixels.double())[0])
        single = recordings.action_logits(recordings.model(ids, pixels)[0])
    ours, theirs = np.abs(single - reference).max(), np.abs(expected - reference).max()
    assert ours <= 1.5 * theirs


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        conformance_openvla(tmp_path)
