"""SAFE's two heads trained in PyTorch, for `bench_detect`: the same recipe on the same machine.

Written after the paper and the facts of its release (one padded batch of 64 episodes a step, Adam,
explicit L2, autograd through nn.Linear and nn.LSTM, one thread), since the release itself needs a
GPU and other packages. Not part of the library.
Source: SAFE (arXiv 2506.09937), section 4.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mistjax.detect.data import Episodes

BATCH = 64
L2 = 1e-2


def train(kind: str, episodes: Episodes, *, epochs: int, seed: int) -> Any:
    """A trained `scores(features [n,t,d]) -> [n,t]` of "safe_mlp" or "safe_lstm"."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    x, mask = (torch.tensor(np.asarray(a)).float() for a in (episodes.features, episodes.mask))
    success = torch.tensor(np.asarray(episodes.success))
    n, good = len(success), int(success.sum())
    weight = torch.where(success, n / (good + 1), n / (n - good + 1))
    dim = x.shape[-1]
    if kind == "safe_mlp":
        net: Any = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 1), nn.Sigmoid())
        rate = 1e-3
    else:
        net = nn.ModuleDict({"lstm": nn.LSTM(dim, 256, batch_first=True), "fc": nn.Linear(256, 1)})
        rate = 3e-4

    def scores(x: Any) -> Any:
        if kind == "safe_mlp":
            return torch.cumsum(net(x)[..., 0], 1)
        return torch.sigmoid(net["fc"](net["lstm"](x)[0])[..., 0])

    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(n).split(BATCH):
            s, failed = scores(x[rows]), ~success[rows, None]
            if kind == "safe_mlp":
                loss = torch.where(failed, -s, torch.relu(s))
            else:
                target = failed.float().expand_as(s)
                loss = nn.functional.binary_cross_entropy(s, target, reduction="none")
            each = (loss * mask[rows]).sum(1) / mask[rows].sum(1)
            squares = sum((p**2).sum() for name, p in net.named_parameters() if "bias" not in name)
            total = (each * weight[rows]).mean() + L2 * squares
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    @torch.no_grad()
    def trained(features: np.ndarray) -> np.ndarray:
        return scores(torch.tensor(np.asarray(features)).float()).numpy()

    return trained
