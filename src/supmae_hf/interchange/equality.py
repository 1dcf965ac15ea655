# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The check that two models compute the same, before a conversion or an export is written."""

import torch
from sklearn.datasets import load_sample_images
from torch import nn

from ..configuration_supmae import SupMAEConfig, to_pair
from ..preparation import pixel_statistics


# Largest difference, relative to the largest result (or 1), at which an export counts as exact.
TOLERANCE = 1e-5


def check_images(config: SupMAEConfig) -> torch.Tensor:
    """Two random images and two photographs (scikit-learn's) as `pixel_values` of the model's size."""
    size = to_pair(config.image_size)
    random = torch.randn(2, config.num_channels, *size, generator=torch.Generator().manual_seed(0))
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    photographs = nn.functional.interpolate(photographs.permute(0, 3, 1, 2) / 255, size=size, mode="bilinear")
    if config.num_channels != 3:
        photographs = photographs.mean(dim=1, keepdim=True).expand(-1, config.num_channels, -1, -1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixel_statistics(config.num_channels))
    return torch.cat([random, (photographs - mean) / std])


def require_equal(actual: torch.Tensor, expected: torch.Tensor, what: str):
    """Raise a `RuntimeError` unless the results agree to `TOLERANCE`."""
    difference = (actual - expected).abs().max().item() if actual.shape == expected.shape else float("nan")
    scale = max(expected.abs().max().item(), 1.0)
    if not difference <= TOLERANCE * scale:
        raise RuntimeError(
            f"The {what} does not compute the same as the model (largest difference {difference:.1e} of {scale:.1e}): "
            "it was not written. Please report this with the model's configuration."
        )
