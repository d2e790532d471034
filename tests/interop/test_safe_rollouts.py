"""Tensors in SAFE's pickles are read without PyTorch, and as PyTorch would."""

import pickle

import numpy as np
import pytest
import torch

from mistjax.rollouts.formats.safe.pickles import PickleRefused, load


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(10, dtype=torch.int64)[3:8:2],
        torch.linspace(-1, 1, 5).to(torch.bfloat16),
        torch.linspace(-1, 1, 5).half(),
        torch.tensor([True, False]),
        torch.tensor(2.5, dtype=torch.float64),
        torch.zeros(0, 3),
        torch.nn.Parameter(torch.ones(2, 2)),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_a_tensor_is_the_array_of_its_values(tensor, tmp_path):
    path = tmp_path / "steps.pkl"
    path.write_bytes(pickle.dumps({"hidden_states": [tensor, tensor]}))
    for array in load(path)["hidden_states"]:
        assert array.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy())


class FarView:
    """Pickles as a tensor of four values with any offset, size and stride."""

    def __init__(self, offset, size, stride):
        self.arguments = offset, size, stride

    def __reduce__(self):
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, *self.arguments, False, None)


@pytest.mark.parametrize("view", [(0, (9,), (1,)), (2, (3,), (1,)), (0, (2,), (-1,))])
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(view, tmp_path):
    path = tmp_path / "far.pkl"
    path.write_bytes(pickle.dumps(FarView(*view)))
    with pytest.raises(PickleRefused, match="reaches beyond"):
        load(path)


def test_an_archive_of_torch_save_is_refused_with_what_to_do(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pkl")
    with pytest.raises(PickleRefused, match="weights_only"):
        load(tmp_path / "x.pkl")
