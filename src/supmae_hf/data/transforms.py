# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""From a stored image to a normalised tensor: crops, flips, augmentation, normalisation, and what is random about them."""

import contextlib
import random

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from ..configuration_supmae import SupMAEConfig, to_pair


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pillow's image modes by number of channels
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def seed_of(*key: int) -> int:
    """One seed from several numbers, such that keys that differ a little give seeds that have nothing in common."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextlib.contextmanager
def seeded(*key: int):
    """
    Inside, every random draw of Python, NumPy and PyTorch (on the CPU) follows from `key` alone; outside, the generators
    go on as if nothing had been drawn.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def pixel_statistics(num_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for normalisation: ImageNet's, averaged over the channels unless there are three."""
    if num_channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (round(sum(IMAGENET_MEAN) / 3, 3),) * num_channels, (round(sum(IMAGENET_STD) / 3, 3),) * num_channels


def build_image_processor(config: SupMAEConfig, crop_ratio: float = 0.875) -> ViTImageProcessor:
    """
    The image processor of evaluation and inference: the shorter side resized bicubically to `image_size / crop_ratio`,
    centre crop, normalisation.
    """
    height, width = to_pair(config.image_size)
    mean, std = pixel_statistics(config.num_channels)
    if height == width:
        size = {"shortest_edge": round(height / crop_ratio)}
    else:
        size = {"height": round(height / crop_ratio), "width": round(width / crop_ratio)}
    return ViTImageProcessor(
        size=size,
        resample=Image.Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        do_convert_rgb=config.num_channels == 3,
        image_mean=list(mean),
        image_std=list(std),
    )


class TrainTransform:
    """
    The paper's augmentation for pre-training: random resized crop (bicubic) and horizontal flip, then normalisation.

    JPEG files are decoded by torchvision straight to a tensor, or, if the crop is at least twice as large as the model's
    images, by Pillow at half, a quarter or an eighth of their size (libjpeg scales while it decodes).

    Call it with an image as `PIL.Image.open` gives it, and with its file if there is one; the result is a float tensor of
    shape `(num_channels, height, width)`.

    Args:
        crop_scale: Smallest and largest share of the image's area that a crop covers.
        horizontal_flip: Whether to mirror half of the images.
    """

    def __init__(self, config: SupMAEConfig, crop_scale=(0.2, 1.0), horizontal_flip: bool = True):
        self.size = to_pair(config.image_size)
        self.mode = MODES[config.num_channels]
        self.crop = v2.RandomResizedCrop(self.size, scale=tuple(crop_scale))
        self.flip = v2.RandomHorizontalFlip(0.5 if horizontal_flip else 0.0)
        self.normalize = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*pixel_statistics(config.num_channels))]
        )

    def __call__(self, image: Image.Image, file: bytes | None = None) -> torch.Tensor:
        crop = self.crop.make_params([image])
        pixels = self.decode(image, file, **crop)
        if pixels.shape[-2:] != self.size:
            pixels = v2.functional.resize(pixels, self.size, v2.InterpolationMode.BICUBIC, antialias=True)
        return self.normalize(self.flip(pixels))

    def decode(
        self, image: Image.Image, file: bytes | None, top: int, left: int, height: int, width: int
    ) -> torch.Tensor:
        """The crop as a `uint8` tensor `(num_channels, height, width)`, perhaps resized already."""
        box = (left, top, left + width, top + height)
        if file is not None and image.format == "JPEG" and image.mode == self.mode == "RGB":
            scale = min(height // self.size[0], width // self.size[1])
            if scale >= 2:
                full_width, full_height = image.size
                image.draft(self.mode, (full_width // scale, full_height // scale))
                reduction = round(full_width / image.width)  # 1, 2, 4 or 8
                box = tuple(side / reduction for side in box)  # fractions of pixels, which Pillow knows how to resize
                image = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box)
                return v2.functional.pil_to_tensor(image)
            with contextlib.suppress(RuntimeError):  # of a broken file Pillow has more to say
                encoded = torch.frombuffer(bytearray(file), dtype=torch.uint8)
                return decode_jpeg(encoded, ImageReadMode.RGB)[:, top : top + height, left : left + width]
        return v2.functional.pil_to_tensor(image.convert(self.mode).crop(box))


def build_finetune_transform(
    config: SupMAEConfig,
    crop_scale=(0.08, 1.0),
    horizontal_flip: bool = True,
    auto_augment: str = "",
    random_erasing: float = 0.0,
):
    """
    The paper's augmentation for fine-tuning, from timm: random resized crop (bicubic), horizontal flip, RandAugment,
    normalisation, random erasing with noise.

    Args:
        crop_scale, horizontal_flip: See [`TrainTransform`].
        auto_augment: timm's policy string, such as `rand-m9-mstd0.5-inc1`; empty for none.
        random_erasing: Probability that a box of the image is replaced by noise.
    """
    mean, std = pixel_statistics(config.num_channels)
    return create_transform(
        to_pair(config.image_size),
        is_training=True,
        scale=tuple(crop_scale),
        hflip=0.5 if horizontal_flip else 0.0,
        color_jitter=None,
        auto_augment=auto_augment or None,
        interpolation="bicubic",
        mean=mean,
        std=std,
        re_prob=random_erasing,
        re_mode="pixel",
    )
