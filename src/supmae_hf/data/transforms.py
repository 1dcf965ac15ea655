# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Random crops, flips and augmentation of training images, and what is random about them."""

import contextlib
import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from transformers import BaseImageProcessor
from transformers.utils import logging

from ..image_processing_supmae import to_pixels
from ..preparation import ExactMask, Preparation, Transform, to_pil


logger = logging.get_logger(__name__)


def seed_of(*key: int) -> int:
    """One seed from several numbers, such that keys that differ a little give seeds that have nothing in common."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int, torch_alone: bool = False):
    """
    Inside, every random draw of Python, NumPy and PyTorch (on the CPU) follows from `seed` alone; outside, the generators
    go on as if nothing had been drawn. With `torch_alone` that is said of PyTorch only, and takes a tenth of the time.
    """
    state = torch.default_generator.get_state()
    others = None if torch_alone else (random.getstate(), np.random.get_state())
    torch.default_generator.manual_seed(seed)
    if others is not None:
        random.seed(seed)
        np.random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])


class PILTransform(Transform):
    """A function of 8-bit PIL images with `num_channels` channels."""

    def __init__(self, function: Callable[[Image.Image], torch.Tensor], num_channels: int = 3):
        self.function, self.num_channels = function, num_channels

    def __call__(self, image: Image.Image | np.ndarray, file: bytes | None = None) -> torch.Tensor:
        return self.function(to_pil(image, self.num_channels))


def as_transform(transform) -> Transform:
    """A [`Transform`] as it is, an image processor as its [`Preparation`], any other function as one of PIL images."""
    if transform is None or isinstance(transform, Transform):
        return transform
    return (Preparation if isinstance(transform, BaseImageProcessor) else PILTransform)(transform)


def _is_rgb_jpeg(image: Image.Image, file: bytes | None) -> bool:
    return file is not None and image.format == "JPEG" and image.mode == "RGB"


def _decode_jpeg(file: bytes) -> torch.Tensor | None:
    """Pixels `(3, height, width)`; `None` for a broken file, of which Pillow has more to say."""
    with contextlib.suppress(RuntimeError):
        return decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
    return None


class TrainTransform(Transform):
    """
    The paper's augmentation for pre-training: random resized crop (bicubic) and horizontal flip, then normalisation.

    JPEG files are decoded by torchvision straight to a tensor, or, if the crop is at least twice as large as the model's
    images, by Pillow at half, a quarter or an eighth of their size (libjpeg scales while it decodes).

    Call it with an image as [`read_image`] gives it, and with its file if there is one; the result is a float tensor of
    shape `(num_channels, height, width)`.

    Args:
        preparation: Preparation of the evaluation, or its image processor, for size, channels and normalisation.
        crop_scale: Smallest and largest share of the image's area that a crop covers.
        horizontal_flip: Whether to mirror half of the images.
        augment (*optional*): Changes crops, `uint8` or `float32` in [0, 1].
        erase (*optional*): Changes normalised images.
        num_views: Number of views of an image in a data set, each with its crop and flip. The image is decoded once.
    """

    def __init__(
        self,
        preparation,
        crop_scale=(0.2, 1.0),
        horizontal_flip: bool = True,
        augment=None,
        erase=None,
        num_views: int = 1,
    ):
        preparation = as_transform(preparation)
        self.size, self.options = preparation.size, preparation.options
        self.is_plain_rgb = self.options == {"num_channels": 3}
        self.crop = v2.RandomResizedCrop(self.size, scale=tuple(crop_scale))
        self.flip_probability = 0.5 if horizontal_flip else 0.0
        self.augment, self.erase, self.num_views = augment, erase, num_views
        self.draws_from_torch = augment is None and erase is None
        self.mean, self.std = (
            torch.tensor(x, dtype=torch.float32).view(-1, 1, 1)
            for x in (preparation.mean or [0], preparation.std or [1])
        )

    def __call__(self, image: Image.Image | np.ndarray | torch.Tensor, file: bytes | None = None) -> torch.Tensor:
        return self.with_mask(image, file, None)[0]

    def with_mask(
        self, image: Image.Image | np.ndarray | torch.Tensor, file: bytes | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same for an image and the classes of its pixels `(height, width)`."""
        if self.is_plain_rgb and isinstance(image, Image.Image):
            crop = self.crop.make_params([image])
            pixels = self.decode(image, file, **crop)
        else:
            pixels = image if isinstance(image, torch.Tensor) else to_pixels(image, **self.options)
            crop = self.crop.make_params([pixels])
            pixels = v2.functional.crop(pixels, **crop)
        if pixels.shape[-2:] != self.size:
            pixels = v2.functional.resize(pixels, self.size, v2.InterpolationMode.BICUBIC, antialias=True)
            if pixels.is_floating_point():
                pixels = pixels.clamp(0, 1)  # which bicubic interpolation overshoots
        if mask is not None:
            mask = v2.functional.resized_crop(ExactMask(mask), **crop, size=list(self.size)).as_subclass(torch.Tensor)
        if torch.rand(1) < self.flip_probability:
            pixels, mask = pixels.flip(-1), None if mask is None else mask.flip(-1)
        if self.augment is not None:
            pixels = self.augment(pixels)
        # v2.Normalize looks at its statistics in each call: half of the time
        pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True).sub(self.mean).div_(self.std)
        return (pixels if self.erase is None else self.erase(pixels)), mask

    def open(self, image: Image.Image | np.ndarray, file: bytes | None):
        """All pixels `(num_channels, height, width)` of an image of which several crops are to be taken."""
        if self.num_views == 1:
            return image, file
        if not self.is_plain_rgb or not isinstance(image, Image.Image):
            return to_pixels(image, **self.options), None
        pixels = _decode_jpeg(file) if _is_rgb_jpeg(image, file) else None
        return v2.functional.pil_to_tensor(image.convert("RGB")) if pixels is None else pixels, None

    def decode(
        self, image: Image.Image, file: bytes | None, top: int, left: int, height: int, width: int
    ) -> torch.Tensor:
        """The crop of an 8-bit RGB image as a `uint8` tensor `(3, height, width)`, perhaps resized already."""
        box = (left, top, left + width, top + height)
        if _is_rgb_jpeg(image, file):
            scale = min(height // self.size[0], width // self.size[1])
            if scale >= 2:
                full_width, full_height = image.size
                image.draft("RGB", (full_width // scale, full_height // scale))
                reduction = round(full_width / image.width)  # 1, 2, 4 or 8
                box = tuple(side / reduction for side in box)  # fractions of pixels, which Pillow knows how to resize
                image = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box)
                return v2.functional.pil_to_tensor(image)
            if (pixels := _decode_jpeg(file)) is not None:
                return pixels[:, top : top + height, left : left + width]
        return v2.functional.pil_to_tensor(image.convert("RGB").crop(box))


def build_finetune_transform(
    preparation,
    crop_scale=(0.08, 1.0),
    horizontal_flip: bool = True,
    auto_augment: str = "",
    random_erasing: float = 0.0,
) -> Transform:
    """
    The paper's augmentation for fine-tuning, from timm: random resized crop (bicubic), horizontal flip, RandAugment,
    normalisation, random erasing with noise. Images that timm's augmentation does not take (more than 8 bits, other channels
    than grey and RGB) get the same on tensors, with random rotations, shifts and shears in the place of RandAugment.

    Args:
        preparation, crop_scale, horizontal_flip: See [`TrainTransform`].
        auto_augment: timm's policy string, such as `rand-m9-mstd0.5-inc1`; empty for none.
        random_erasing: Probability that a box of the image is replaced by noise.
    """
    preparation = as_transform(preparation)
    options = preparation.options
    is_plain = preparation.pixel_type == "uint8" and not (options.get("channels") or options.get("pixel_range"))
    if is_plain and options["num_channels"] in (1, 3):
        transform = create_transform(
            preparation.size,
            is_training=True,
            scale=tuple(crop_scale),
            hflip=0.5 if horizontal_flip else 0.0,
            color_jitter=None,
            auto_augment=auto_augment or None,
            interpolation="bicubic",
            mean=tuple(preparation.mean),
            std=tuple(preparation.std),
            re_prob=random_erasing,
            re_mode="pixel",
        )
        return PILTransform(transform, options["num_channels"])
    augment = None
    if auto_augment:
        logger.warning(
            f"`--auto_augment {auto_augment}` is for 8-bit grey and RGB images: random rotations (up to 15 degrees), shifts "
            "(a tenth) and shears (10 degrees) take its place."
        )
        augment = v2.RandomAffine(15, translate=(0.1, 0.1), shear=10, interpolation=v2.InterpolationMode.BILINEAR)
    erase = RandomErasing(random_erasing, mode="pixel", device="cpu") if random_erasing else None
    return TrainTransform(preparation, crop_scale, horizontal_flip, augment, erase)
