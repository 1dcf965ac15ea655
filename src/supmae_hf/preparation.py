# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""From images to a model's `pixel_values` and back, by the image processor of any checkpoint."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import AutoConfig, AutoImageProcessor, ViTImageProcessor
from transformers.utils import logging

from .configuration_supmae import SupMAEConfig, to_pair
from .image_processing_supmae import SupMAEImageProcessor, to_pixels
from .loading import load_pretrained


logger = logging.get_logger(__name__)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def pixel_statistics(num_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation where nothing else is known: ImageNet's, averaged over the channels unless there are 3."""
    if num_channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (round(sum(IMAGENET_MEAN) / 3, 3),) * num_channels, (round(sum(IMAGENET_STD) / 3, 3),) * num_channels


def to_pil(image: Image.Image | np.ndarray, num_channels: int = 3) -> Image.Image:
    """An image as [`read_image`] gives it as an 8-bit PIL image: grey, RGB or RGBA."""
    if not isinstance(image, Image.Image) and image.dtype != np.uint8:
        logger.warning_once(f"An image of the type {image.dtype} is read with 8 bits.")
    pixels = to_pixels(image, num_channels)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().to(torch.uint8)
    return v2.functional.to_pil_image(pixels)


class ExactMask(tv_tensors.Mask):
    """A mask whose pixels stay on those of its image when both are resized: nearest neighbours by the centres of pixels."""


@v2.functional.register_kernel(functional=v2.functional.resize, tv_tensor_cls=ExactMask)
def _resize(mask: ExactMask, size: list[int], max_size: int | None = None, **kwargs) -> ExactMask:
    plain, exact = mask.as_subclass(torch.Tensor).unsqueeze(0), v2.InterpolationMode.NEAREST_EXACT
    resized = v2.functional.resize(plain, size, interpolation=exact, max_size=max_size, antialias=False)
    return ExactMask(resized.squeeze(0))


@v2.functional.register_kernel(functional=v2.functional.resized_crop, tv_tensor_cls=ExactMask)
def _resized_crop(
    mask: ExactMask, top: int, left: int, height: int, width: int, size: list[int], **kwargs
) -> ExactMask:
    return _resize(v2.functional.crop(mask, top, left, height, width), size)


class Transform:
    """From an image as [`read_image`] gives it, and its file if it is one of a file, to `pixel_values`."""

    num_views = 1  # of an image, each with other random numbers
    draws_from_torch = False  # whether these are PyTorch's, of the CPU, alone

    def open(self, image: Image.Image | np.ndarray, file: bytes | None):
        """Prepare an image and its file for all of its views."""
        return image, file

    def __call__(self, image: Image.Image | np.ndarray, file: bytes | None = None) -> torch.Tensor:
        raise NotImplementedError

    def with_mask(self, image, file: bytes | None, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel values of an image, and the classes of its pixels `(height, width)` changed in the same way."""
        raise NotImplementedError


class Preparation(Transform):
    """
    An image processor as a transform of one image to `pixel_values` of shape `(num_channels, height, width)`. It also works in
    two steps, between which the image may be changed, and backwards.

    Args:
        image_processor: Image processor of any image model of Transformers, timm's among them.
        num_channels: Channels of the 8-bit images that image processors other than ours are given.

    Attributes:
        mean, std (`Sequence[float]`, *optional*): Statistics by which pixels are normalised, if the image processor says so.
        pixel_type (`str`): Type of the pixels that the model was trained on: `"uint8"` for all image processors but ours.
        options (`dict`): Arguments of [`to_pixels`] for the model's images.
    """

    def __init__(self, image_processor, num_channels: int = 3):
        self.image_processor, self.options = image_processor, {"num_channels": num_channels}
        self.pixel_type = getattr(image_processor, "pixel_type", "uint8")
        if isinstance(image_processor, SupMAEImageProcessor):
            self.options = {
                name: getattr(image_processor, name) for name in ("num_channels", "channels", "pixel_range")
            }
        # timm's is a torchvision pipeline: crops, conversion to a tensor, normalisation
        self._steps = getattr(getattr(image_processor, "val_transforms", None), "transforms", None)
        timm = getattr(image_processor, "data_config", {})
        self.mean, self.std = (
            timm.get(name) or getattr(image_processor, f"image_{name}", None) for name in ("mean", "std")
        )

    @classmethod
    def load(cls, name: str) -> "Preparation":
        """
        The preparation of a checkpoint's images.

        Raises:
            OSError: if the checkpoint has no image processor.
        """
        try:
            image_processor = load_pretrained(AutoImageProcessor, name)
        except OSError as error:
            raise OSError(
                f"'{name}' has no image processor, so it is unknown how to prepare its images: save one into its folder "
                f"(`preprocessor_config.json`). ({error})"
            ) from error
        return cls(image_processor, getattr(load_pretrained(AutoConfig, name), "num_channels", 3))

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's images."""
        processor = self.image_processor
        if isinstance(processor, SupMAEImageProcessor):
            size = processor.crop_size if processor.do_center_crop else processor.size
            return size.height, size.width
        width, height = self.crop(Image.new("RGB", (64, 64))).size
        return height, width

    def __call__(self, image: Image.Image | np.ndarray, file: bytes | None = None) -> torch.Tensor:
        if isinstance(self.image_processor, SupMAEImageProcessor):
            pixels = to_pixels(image, **self.options)
            return self._process(pixels, channels=None, pixel_range=None, input_data_format="channels_first")
        return self._process(to_pil(image, self.options["num_channels"]))

    def _process(self, image: Image.Image | torch.Tensor, **options) -> torch.Tensor:
        return self.image_processor(image, return_tensors="pt", **options)["pixel_values"][0]

    @property
    def _first_tensor_step(self) -> int:
        return next(index for index, step in enumerate(self._steps) if "ToTensor" in type(step).__name__)

    def crop(self, image: Image.Image) -> Image.Image:
        """An 8-bit image resized and cropped as the model wants it, but not normalised."""
        image = to_pil(image, self.options["num_channels"])
        if self._steps is None:
            return v2.functional.to_pil_image(self._process(image, do_rescale=False, do_normalize=False))
        for step in self._steps[: self._first_tensor_step]:
            image = step(image)
        return image

    def normalize(self, image: Image.Image) -> torch.Tensor:
        """An 8-bit image of the model's size as its input."""
        if self._steps is None:
            return self._process(image, do_resize=False, do_center_crop=False)
        for step in self._steps[self._first_tensor_step :]:
            image = step(image)
        return image

    def without_crop(self, image: Image.Image, file: bytes | None = None) -> torch.Tensor:
        """[`~Preparation.normalize`] of an image that has the model's size already, else the whole preparation."""
        image = to_pil(image, self.options["num_channels"])
        return self.normalize(image) if image.size == self.size[::-1] else self(image)

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`pixel_values` `(..., num_channels, height, width)` as pixels in [0, 1]."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixel_values.cpu() * std + mean

    def to_pictures(self, pixel_values: torch.Tensor, original: torch.Tensor | None = None) -> np.ndarray:
        """
        `pixel_values` `(batch_size, num_channels, height, width)` as pictures `(batch_size, height, width, channels)` in [0, 1]: the
        first three channels, or the first. If the model's images have more than 8 bits, the darkest and brightest hundredth of each of
        `original` (default: the images themselves) become black and white: instruments use little of their range.
        """
        pictures = self.denormalize(pixel_values)
        if self.pixel_type != "uint8":
            levels = pictures if original is None else self.denormalize(original)
            low, high = (levels.flatten(1).quantile(share, dim=1).view(-1, 1, 1, 1) for share in (0.01, 0.99))
            pictures = (pictures - low) / (high - low).clamp(min=1e-6)
        pictures = pictures.clamp(0, 1).movedim(1, -1).numpy()
        return pictures[..., :3] if pictures.shape[-1] >= 3 else pictures[..., :1]

    def with_mask(self, image, file: bytes | None, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, mask, size = self(image, file), ExactMask(mask), self.image_processor.size
        mask = v2.functional.resize(mask, [size.shortest_edge] if size.shortest_edge else [size.height, size.width])
        if self.image_processor.do_center_crop:
            mask = v2.functional.center_crop(mask, list(self.size))
        return pixels, mask.as_subclass(torch.Tensor)


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
        image_mean, image_std: Statistics of each channel; by default [`pixel_statistics`].
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
