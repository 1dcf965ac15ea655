# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
The corruptions of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), generated for any image by imagecorruptions.
"""

import zlib

import numpy as np
import torch
from PIL import Image

from ..data.transforms import seed_of, seeded
from ..preparation import Preparation, Transform


# in the order of the paper's tables
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)

_MIN_SIZE = 32  # of an image, in pixels: what imagecorruptions asks for


def corrupt(image: Image.Image, name: str, severity: int, *key: int) -> Image.Image:
    """
    A corrupted copy of an image.

    Args:
        image: An image in any mode; the result has the same mode.
        name: One of [`CORRUPTIONS`] or [`EXTRA_CORRUPTIONS`].
        severity: 1 (mild) to 5.
        key: Seed of the corruption, together with name and severity.

    Raises:
        ImportError: if imagecorruptions, or a system library that OpenCV needs, is missing.
        ValueError: if the name or severity is not one of those, or the image is smaller than 32x32 pixels.
    """
    if name not in CORRUPTIONS + EXTRA_CORRUPTIONS:
        raise ValueError(f"There is no corruption '{name}': choose from {', '.join(CORRUPTIONS + EXTRA_CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"A corruption's severity is 1, 2, 3, 4 or 5, got {severity}.")
    if min(image.size) < _MIN_SIZE:
        raise ValueError(
            f"An image of {image.width}x{image.height} pixels is too small to be corrupted: use a model with images of "
            f"{_MIN_SIZE}x{_MIN_SIZE} or more."
        )
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(
            f"Corruptions need imagecorruptions: pip install 'supmae-hf[train]'. If it is installed and OpenCV lacks a "
            f"system library: pip install --force-reinstall --no-deps opencv-python-headless. ({error})"
        ) from error
    key = (*key, (CORRUPTIONS + EXTRA_CORRUPTIONS).index(name), severity)
    seed = seed_of(*key)
    # these two do not draw from NumPy's global generator
    options = {"seed": seed} if name in ("impulse_noise", "glass_blur") else {}
    with seeded(seed):
        pixels = imagecorruptions.corrupt(np.array(image.convert("RGB")), severity, name, **options)
    return Image.fromarray(pixels).convert(image.mode)


class Corrupt(Transform):
    """
    Corrupts each image between crop and normalisation, as ImageNet-C was made. The random part follows from the image.

    Args:
        preparation ([`Preparation`]): Preparation of the model's images.
        name, severity: See [`corrupt`].
    """

    def __init__(self, preparation: Preparation, name: str, severity: int):
        self.preparation, self.name, self.severity = preparation, name, severity

    def __call__(self, image: Image.Image | np.ndarray, file: bytes | None = None) -> torch.Tensor:
        image = self.preparation.crop(image)
        corrupted = corrupt(image, self.name, self.severity, zlib.crc32(image.tobytes()))
        return self.preparation.normalize(corrupted)
