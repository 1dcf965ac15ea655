# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""From a stored image to a normalised tensor: crops, flips, augmentation, normalisation, and what is random about them."""

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from transformers import AutoImageProcessor, ViTImageProcessor
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig, to_pair
from ..image_processing_supmae import SupMAEImageProcessor, to_pixels
from ..loading import load_pretrained


logger = logging.get_logger(__name__)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    """Mean and standard deviation where nothing else is known: ImageNet's, averaged over the channels unless there are 3."""
    if num_channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (round(sum(IMAGENET_MEAN) / 3, 3),) * num_channels, (round(sum(IMAGENET_STD) / 3, 3),) * num_channels


def build_image_processor(
    config: SupMAEConfig,
    crop_ratio: float = 0.875,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    channels: Sequence[int] | None = None,
    pixel_range: Sequence[float] | None = None,
    pixel_type: str = "uint8",
) -> ViTImageProcessor | SupMAEImageProcessor:
    """
    The image processor of evaluation and inference: the shorter side resized bicubically to `image_size / crop_ratio`,
    centre crop, normalisation. It is Transformers' own for 8-bit RGB images, which needs no code of ours.

    Args:
        image_mean, image_std: Of each channel; by default [`pixel_statistics`].
        channels, pixel_range, pixel_type: See [`SupMAEImageProcessor`].
    """
    height, width = to_pair(config.image_size)
    mean, std = pixel_statistics(config.num_channels)
    if height == width:
        size = {"shortest_edge": round(height / crop_ratio)}
    else:
        size = {"height": round(height / crop_ratio), "width": round(width / crop_ratio)}
    fields = {
        "size": size,
        "resample": Image.Resampling.BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "image_mean": list(mean if image_mean is None else image_mean),
        "image_std": list(std if image_std is None else image_std),
    }
    if config.num_channels == 3 and channels is None and pixel_range is None and pixel_type == "uint8":
        return ViTImageProcessor(do_convert_rgb=True, **fields)
    return SupMAEImageProcessor(
        num_channels=config.num_channels, channels=channels, pixel_range=pixel_range, pixel_type=pixel_type, **fields
    )


def load_image_processor(source: str | Path | None):
    """The image processor of a checkpoint; `None` if it has none, or there is no checkpoint."""
    if source is not None:
        try:
            return load_pretrained(AutoImageProcessor, source)
        except OSError:
            return None
        except ValueError as error:
            logger.warning(f"The image processor of '{source}' is not used: {error}")
    return None


def fit_image_processor(image_processor, config: SupMAEConfig):
    """
    The same image processor for images of the model's size: resized and cropped in proportion. That of a timm model becomes
    one of Transformers, and in the place of none comes the default one.
    """
    if image_processor is None:
        return build_image_processor(config)
    data_config = getattr(image_processor, "data_config", None)
    if data_config is not None:
        return build_image_processor(config, data_config["crop_pct"], data_config["mean"], data_config["std"])
    height, width = to_pair(config.image_size)
    old = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if (old.height, old.width) == (height, width):
        return image_processor
    fields = image_processor.to_dict()
    if image_processor.do_center_crop:
        fields["crop_size"] = {"height": height, "width": width}
        size, ratio = image_processor.size, (height / old.height, width / old.width)
        if size.shortest_edge and height == width:
            fields["size"] = {"shortest_edge": round(size.shortest_edge * ratio[0])}
        else:
            resized = (size.height or size.shortest_edge, size.width or size.shortest_edge)
            fields["size"] = {name: round(side * r) for name, side, r in zip(("height", "width"), resized, ratio)}
    else:
        fields["size"] = {"height": height, "width": width}
    return type(image_processor).from_dict(fields)


def fit_mask(mask: torch.Tensor, image_processor) -> torch.Tensor:
    """The classes of an image's pixels `(height, width)` as the image processor resizes and crops the image."""
    mask, size = tv_tensors.Mask(mask), image_processor.size
    mask = v2.functional.resize(mask, [size.shortest_edge] if size.shortest_edge else [size.height, size.width])
    if image_processor.do_center_crop:
        crop = image_processor.crop_size
        mask = v2.functional.center_crop(mask, [crop.height, crop.width])
    return mask.as_subclass(torch.Tensor)


def normalization(image_processor) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation by which a model's images are normalised, if its image processor says so."""
    data_config = getattr(image_processor, "data_config", None)  # of timm's
    if data_config is not None:
        return list(data_config["mean"]), list(data_config["std"])
    mean = getattr(image_processor, "image_mean", None)
    return None if mean is None else (mean, image_processor.image_std)


def pixel_type(image_processor) -> str:
    """The type of the pixels that a model was trained on, from its image processor: `"uint8"` for all but ours."""
    return getattr(image_processor, "pixel_type", "uint8")


def pixel_options(image_processor) -> dict:
    """How [`to_pixels`] is to read images for a model, from its image processor."""
    if isinstance(image_processor, SupMAEImageProcessor):
        return {name: getattr(image_processor, name) for name in ("num_channels", "channels", "pixel_range")}
    return {"num_channels": 3}


def _is_rgb_jpeg(image: Image.Image, file: bytes | None) -> bool:
    return file is not None and image.format == "JPEG" and image.mode == "RGB"


def _decode_jpeg(file: bytes) -> torch.Tensor | None:
    """Pixels `(3, height, width)`; `None` for a broken file, of which Pillow has more to say."""
    with contextlib.suppress(RuntimeError):
        return decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
    return None


class TrainTransform:
    """
    The paper's augmentation for pre-training: random resized crop (bicubic) and horizontal flip, then normalisation.

    JPEG files are decoded by torchvision straight to a tensor, or, if the crop is at least twice as large as the model's
    images, by Pillow at half, a quarter or an eighth of their size (libjpeg scales while it decodes).

    Call it with an image as [`read_image`] gives it, and with its file if there is one; the result is a float tensor of
    shape `(num_channels, height, width)`.

    Args:
        image_processor: Of the evaluation: the size, the channels and the normalisation are its.
        crop_scale: Smallest and largest share of the image's area that a crop covers.
        horizontal_flip: Whether to mirror half of the images.
        augment (*optional*): From crops, `uint8` or `float32` in [0, 1], to such crops.
        erase (*optional*): From normalised images to such images.
    """

    def __init__(self, image_processor, crop_scale=(0.2, 1.0), horizontal_flip: bool = True, augment=None, erase=None):
        self.size = image_processor.crop_size.height, image_processor.crop_size.width
        self.options = pixel_options(image_processor)
        self.is_plain_rgb = self.options == {"num_channels": 3}
        self.crop = v2.RandomResizedCrop(self.size, scale=tuple(crop_scale))
        self.flip = v2.RandomHorizontalFlip(0.5 if horizontal_flip else 0.0)
        self.augment, self.erase = augment, erase
        self.normalize = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(image_processor.image_mean), list(image_processor.image_std)),
            ]
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
        if mask is None:
            pixels = self.flip(pixels)
        else:
            mask = v2.functional.resized_crop(tv_tensors.Mask(mask), **crop, size=list(self.size))
            pixels, mask = self.flip(tv_tensors.Image(pixels), mask)
            pixels, mask = pixels.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)
        if self.augment is not None:
            pixels = self.augment(pixels)
        pixels = self.normalize(pixels)
        return (pixels if self.erase is None else self.erase(pixels)), mask

    def decode_whole(self, image: Image.Image | np.ndarray, file: bytes | None) -> torch.Tensor:
        """All pixels `(num_channels, height, width)` of an image, of which several crops are to be taken: call with them."""
        if not self.is_plain_rgb or not isinstance(image, Image.Image):
            return to_pixels(image, **self.options)
        if _is_rgb_jpeg(image, file) and (pixels := _decode_jpeg(file)) is not None:
            return pixels
        return v2.functional.pil_to_tensor(image.convert("RGB"))

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


class FineTuneTransform:
    """
    The paper's augmentation for fine-tuning, from timm: random resized crop (bicubic), horizontal flip, RandAugment,
    normalisation, random erasing with noise. For images as [`read_image`] gives them, 8-bit grey or RGB.

    Args:
        image_processor, crop_scale, horizontal_flip: See [`TrainTransform`].
        auto_augment: timm's policy string, such as `rand-m9-mstd0.5-inc1`; empty for none.
        random_erasing: Probability that a box of the image is replaced by noise.
    """

    def __init__(
        self,
        image_processor,
        crop_scale=(0.08, 1.0),
        horizontal_flip: bool = True,
        auto_augment: str = "",
        random_erasing: float = 0.0,
    ):
        self.options = pixel_options(image_processor)
        self.transform = create_transform(
            (image_processor.crop_size.height, image_processor.crop_size.width),
            is_training=True,
            scale=tuple(crop_scale),
            hflip=0.5 if horizontal_flip else 0.0,
            color_jitter=None,
            auto_augment=auto_augment or None,
            interpolation="bicubic",
            mean=tuple(image_processor.image_mean),
            std=tuple(image_processor.image_std),
            re_prob=random_erasing,
            re_mode="pixel",
        )

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        return self.transform(to_pil(image, self.options["num_channels"]))


def to_pil(image: Image.Image | np.ndarray, num_channels: int = 3) -> Image.Image:
    """An image as [`read_image`] gives it as an 8-bit PIL image: grey, RGB or RGBA."""
    if not isinstance(image, Image.Image) and image.dtype != np.uint8:
        logger.warning_once(f"An image of the type {image.dtype} is read with 8 bits.")
    pixels = to_pixels(image, num_channels)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().to(torch.uint8)
    return v2.functional.to_pil_image(pixels)


def build_finetune_transform(
    image_processor,
    crop_scale=(0.08, 1.0),
    horizontal_flip: bool = True,
    auto_augment: str = "",
    random_erasing: float = 0.0,
) -> FineTuneTransform | TrainTransform:
    """
    [`FineTuneTransform`], or, for images that timm's augmentation does not take (more than 8 bits, other channels than
    grey and RGB), the same on tensors with random rotations, shifts and shears in the place of RandAugment.
    """
    options = pixel_options(image_processor)
    is_deep = pixel_type(image_processor) != "uint8"
    if (
        not is_deep
        and options["num_channels"] in (1, 3)
        and not (options.get("channels") or options.get("pixel_range"))
    ):
        return FineTuneTransform(image_processor, crop_scale, horizontal_flip, auto_augment, random_erasing)
    augment = None
    if auto_augment:
        logger.warning(
            f"`--auto_augment {auto_augment}` is for 8-bit grey and RGB images: random rotations (up to 15 degrees), shifts "
            "(a tenth) and shears (10 degrees) take its place."
        )
        augment = v2.RandomAffine(15, translate=(0.1, 0.1), shear=10, interpolation=v2.InterpolationMode.BILINEAR)
    erase = RandomErasing(random_erasing, mode="pixel", device="cpu") if random_erasing else None
    return TrainTransform(image_processor, crop_scale, horizontal_flip, augment, erase)
