"""OpenVLA and OpenVLA-OFT in plain PyTorch, on `transformers`' Llama and our own ViT towers.

No code from a checkpoint is run and neither timm nor torchvision is needed. Source: OpenVLA, arXiv
2406.09246; OpenVLA-OFT, arXiv 2502.19645.

What is checked: outputs recorded from the original OpenVLA implementation with small random
weights, and the names and shapes of all 982 published arrays. What is not: real 7B weights, and
everything about OFT, which follows its published source but was never compared with it numerically.
What is missing: OFT's diffusion head and its discrete one.
"""

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"OpenVLA needs PyTorch and transformers, and {error.name!r} is not installed: "
        "pip install 'mistjax[openvla]'."
    ) from error
