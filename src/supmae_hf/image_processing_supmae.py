# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Images that are not 8-bit RGB: reading files without losing precision or bands, and the image processor of models that
were trained on them.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.io import ImageReadMode, decode_png
from transformers import SegformerImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ChannelDimension, ImageInput
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging


try:  # not needed by those who have no TIFF files
    import tifffile
except ImportError:
    tifffile = None
try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()


logger = logging.get_logger(__name__)

# Pillow's 8-bit modes by number of channels
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# how files begin
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NUMPY = b"\x93NUMPY"
_LARGE = 2**26  # bytes
_MAX_PAGES = 1000  # of a TIFF; finding out what they are takes long
# Pillow's modes whose pixels have more than 8 bits
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(file: str | Path | bytes, is_mask: bool = False) -> Image.Image | np.ndarray:
    """
    The image in a file, or in the bytes of one.

    Args:
        is_mask: Whether its values are classes, which are those of the file even if a TIFF says that 0 is white.

    Returns:
        A PIL image, not decoded yet, of files with 8 bits and up to 4 channels; of others (16-bit PNG, TIFF of any type
        and number of bands, `.npy`) an array `(height, width, num_channels)` of the file's own type.

    Raises:
        ImportError: if a TIFF needs tifffile or imagecodecs.
        OSError, ValueError: if it is no image, has more than one axis besides height and width, or holds several images.
        PIL.Image.DecompressionBombError: if it has more pixels than Pillow decodes.
    """
    if not isinstance(file, bytes):
        file = read_bytes(file)
    if file[:4] in _TIFF:
        return _read_tiff(file, is_mask)
    if file[:6] == _NUMPY:
        return channels_last(np.load(io.BytesIO(file), allow_pickle=False))
    if file[:8] == b"\x89PNG\r\n\x1a\n" and file[24:25] == b"\x10":  # 16 bits, of which Pillow keeps 8 in colour
        Image.open(io.BytesIO(file))  # which looks at its size
        try:
            pixels = decode_png(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        except RuntimeError as error:
            raise OSError(str(error).splitlines()[0]) from error
        return pixels.permute(1, 2, 0).numpy()
    image = Image.open(io.BytesIO(file))
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return np.asarray(image)[..., None] if image.mode in _DEEP_MODES else image


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file of an image. Of a large one the header is looked at first: it may be none, or take all memory."""
    path = Path(path)
    if path.stat().st_size > _LARGE:
        with path.open("rb") as file:
            head = file.read(6)
            file.seek(0)
            if head == _NUMPY:
                _check_pixels(np.load(path, mmap_mode="r").shape)
            elif head[:4] in _TIFF and tifffile is not None:
                _check_pixels(_open_tiff(file).pages.first.shape)
            else:
                Image.open(file)
    return path.read_bytes()


def _check_pixels(shape: tuple[int, ...]):
    """Hold files that Pillow does not open to its limit, by which it refuses to decode an image."""
    limit = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else np.inf
    if np.prod(sorted(shape)[-2:], dtype=float) > limit:
        raise Image.DecompressionBombError(
            f"an image of the shape {shape} has more than {limit} pixels: cut it into tiles"
        )


def _open_tiff(file) -> "tifffile.TiffFile":
    tiff = tifffile.TiffFile(file)
    if not 0 < len(tiff.pages) <= _MAX_PAGES:
        raise ValueError(f"it holds {len(tiff.pages)} pages: save each as a file of its own")
    return tiff


def _read_tiff(file: bytes, is_mask: bool) -> Image.Image | np.ndarray:
    if tifffile is None:
        raise ImportError("TIFF files need tifffile: pip install tifffile imagecodecs")
    try:
        with _open_tiff(io.BytesIO(file)) as tiff:
            page, axes = tiff.pages.first, tiff.series[0].axes
            _check_pixels(page.shape)
            images = [series for series in tiff.series if series.shape == tiff.series[0].shape]
            if len(images) > 1:
                raise ValueError(f"it holds {len(images)} images: save each as a file of its own")
            if len(tiff.series) > 1:
                logger.warning_once("A TIFF holds several images of different sizes: the first one is read.")
            is_usual = page.photometric.name in ("MINISBLACK", "MINISWHITE", "RGB")
            is_usual = is_usual and (page.bitspersample >= 8 or is_mask)
            pixels = tiff.series[0].asarray() if is_usual else None
    except (ValueError, Image.DecompressionBombError):
        raise
    except Exception as error:  # broken files raise whatever they lead to
        if "imagecodecs" in str(error):
            raise ImportError(f"A TIFF needs imagecodecs: pip install imagecodecs ({error})") from error
        raise OSError(f"{type(error).__name__}: {error}") from error
    if not is_usual:  # palettes, CMYK, YCbCr, 1 bit: 8 bits, which Pillow knows
        return Image.open(io.BytesIO(file))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim != 3:
        raise ValueError(f"it holds an array of the shape {pixels.shape}, which is no image")
    elif not axes.endswith("S"):  # bands one after the other
        pixels = np.moveaxis(pixels, 0, -1)
    if page.photometric.name == "MINISWHITE" and pixels.dtype.kind == "u" and not is_mask:
        pixels = np.iinfo(pixels.dtype).max - pixels
    is_rgba = len(page.extrasamples) == 1 and page.extrasamples[0] != 0
    if pixels.dtype == np.uint8 and pixels.shape[-1] in ((1, 3, 4) if is_rgba else (1, 3)):
        return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    return pixels


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """
    An array `(height, width)`, `(height, width, channels)` or `(channels, height, width)` as the second of these: what is left of a square
    image counts the channels, or else the smaller one of the first and the last number.
    """
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim != 3:
        raise ValueError(f"it holds an array of the shape {pixels.shape}, which is no image")
    first, middle, last = pixels.shape
    is_first = middle == last if (first == middle) != (middle == last) else first < last
    return np.moveaxis(pixels, 0, -1) if is_first else pixels


def to_pixels(
    image: Image.Image | np.ndarray,
    num_channels: int = 3,
    channels: list[int] | None = None,
    pixel_range: tuple[float, float] | None = None,
) -> torch.Tensor:
    """
    An image as a tensor whose type says its range: `uint8` in [0, 255], or `float32` in [0, 1].

    Integers are divided by the largest number of their type (65535 becomes 1.0); floating-point numbers must lie in
    [0, 1]. Grey images become RGB by repetition and RGB ones grey by Pillow's weights; 8-bit images lose or get an
    alpha channel. Other numbers of channels are not converted.

    Args:
        image: A PIL image, or an array `(height, width, channels)`.
        num_channels: Number of channels of the result.
        channels: Indices of the image's channels to take, in this order, counted from 0.
        pixel_range: Values that become 0 and 1, in the place of those above; values outside are cut off.

    Returns:
        `(num_channels, height, width)`.

    Raises:
        ValueError: if the values have no known range, or the channels are not those.
    """
    pixels = _to_array(image, num_channels, channels) if isinstance(image, Image.Image) else image
    found = pixels.shape[-1]
    if channels is not None:
        if max(channels) >= found or min(channels) < 0:
            raise ValueError(f"it has {found} channels, and `channels` names {list(channels)} of 0 to {found - 1}")
        pixels, found = pixels[..., list(channels)], len(channels)
    if found != num_channels:
        if pixels.dtype == np.uint8 and found in (1, 3) and num_channels in MODES:
            pixels = Image.fromarray(pixels.squeeze(-1) if found == 1 else pixels).convert(MODES[num_channels])
            pixels = np.asarray(pixels).reshape(pixels.height, pixels.width, num_channels)
        elif (found, num_channels) not in ((1, 3), (3, 1)):
            raise ValueError(
                f"it has {found} channels, the model {num_channels}: set `num_channels` in `--model_config`, or choose "
                "among them with `--channels`"
            )
    tensor = _scale(pixels, pixel_range).permute(2, 0, 1)
    if tensor.shape[0] == num_channels:
        return tensor.contiguous()
    if num_channels == 3:
        return tensor.expand(3, -1, -1).contiguous()
    return (tensor * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0, keepdim=True)


def _to_array(image: Image.Image, num_channels: int, channels: list[int] | None) -> np.ndarray:
    """`(height, width, channels)`: the model's channels, or all that there are if some are to be chosen."""
    if image.mode in _DEEP_MODES:
        pixels = np.asarray(image)
    elif channels is None and num_channels in MODES:
        pixels = np.asarray(_convert(image, MODES[num_channels]))
    else:
        pixels = np.asarray(_convert(image, "L" if image.mode == "L" else "RGBA" if _has_alpha(image) else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode not in ("L", "RGB", mode):  # through colours, as pipelines do, so that grey is the same grey
        image = image.convert("RGBA" if mode == "RGBA" else "RGB")
    return image.convert(mode)


def _scale(pixels: np.ndarray, pixel_range: tuple[float, float] | None) -> torch.Tensor:
    kind, bits = pixels.dtype.kind, pixels.dtype.itemsize * 8
    if kind == "b":
        pixels, kind, bits = pixels.astype(np.uint8) * 255, "u", 8
    if kind not in "iuf":
        raise ValueError(f"its pixels are of the type {pixels.dtype}")
    if kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("it has pixels that are not finite: replace them")
    if pixel_range is not None:
        low, high = pixel_range
        pixels = ((pixels.astype(np.float64) - low) / (high - low)).clip(0, 1)
        return torch.from_numpy(pixels.astype(np.float32))
    if pixels.dtype == np.uint8:
        return torch.from_numpy(np.array(pixels))
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if low < 0 or (kind == "f" and high > 1) or (kind != "f" and bits > 16):
        raise ValueError(
            f"its pixels are {pixels.dtype} from {low:g} to {high:g}: say with `--pixel_range LOW HIGH` which values are "
            "black and white"
        )
    scale = 1 if kind == "f" else np.iinfo(pixels.dtype).max
    return torch.from_numpy((pixels / np.float32(scale)).astype(np.float32))


class SupMAEImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    num_channels (`int`): Of the model's images.
    channels (`list[int]`, *optional*): Indices of an image's channels to take, counted from 0.
    pixel_range (`list[float]`, *optional*): Values that become 0 and 1; by default those of the pixels' type.
    pixel_type (`str`): Of the pixels that the model was trained on, such as `"uint16"`.
    """

    num_channels: int
    channels: list[int] | tuple[int, ...] | None
    pixel_range: list[float] | tuple[float, ...] | None
    pixel_type: str


class SupMAEImageProcessor(TorchvisionBackend):
    r"""
    Image processor of models of grey images, of more than 8 bits, of any number of channels: what Transformers'
    [`ViTImageProcessor`] does, without a step of 8 bits in between.

    It takes PIL images, arrays and tensors `(height, width)`, `(height, width, channels)` or `(channels, height, width)`,
    and, as strings, files of all kinds that [`read_image`] reads. See [`to_pixels`] for how pixels are scaled and channels
    matched, and for what is refused.

    Args:
        num_channels (`int`, *optional*, defaults to 3): Number of channels of the model's images.
        channels (`list[int]`, *optional*): Which of an image's channels to take, counted from 0.
        pixel_range (`list[float]`, *optional*): Which values become 0 and 1; by default those of the pixels' type.
        pixel_type (`str`, *optional*, defaults to `"uint8"`):
            Of the pixels that the model was trained on. With more than 8 bits an 8-bit RGB image is refused: that is what
            pipelines make of a file, and what was in it is lost.
    """

    valid_kwargs = SupMAEImageProcessorKwargs
    _auto_class = "AutoImageProcessor"  # so that its code is saved beside checkpoints, as the model's is

    resample = Image.Resampling.BICUBIC
    size = {"height": 224, "width": 224}
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    num_channels = 3
    channels = None
    pixel_range = None
    pixel_type = "uint8"

    # for the image-segmentation pipeline; it looks at nothing but the logits
    post_process_semantic_segmentation = SegformerImageProcessor.post_process_semantic_segmentation

    def to_dict(self):
        fields = super().to_dict()
        # as a list: pipelines, which look for a video processor, too, would ask whether to run its remote code
        fields.get("auto_map", {}).update(AutoImageProcessor=["image_processing_supmae.SupMAEImageProcessor"])
        return fields

    def fetch_images(self, image_url_or_urls):
        """Files as [`read_image`] reads them, for example for a pipeline: `pipe(pipe.image_processor.fetch_images(file))`."""
        if isinstance(image_url_or_urls, str) and Path(image_url_or_urls).is_file():
            image = read_image(image_url_or_urls)
            # as an array, since a pipeline would convert a PIL image to RGB
            return image if isinstance(image, np.ndarray) else _to_array(image, self.num_channels, self.channels)
        if getattr(image_url_or_urls, "ndim", 3) == 2:
            return image_url_or_urls[..., None]
        return super().fetch_images(image_url_or_urls)

    def process_image(
        self,
        image: ImageInput,
        num_channels: int = 3,
        channels: list[int] | None = None,
        pixel_range: list[float] | None = None,
        pixel_type: str = "uint8",
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if isinstance(image, Image.Image):
            has_lost = image.mode == "RGB" and (
                pixel_type != "uint8" or (num_channels not in MODES and channels is None)
            )
            if has_lost:
                raise ValueError(
                    f"The model was trained on images of {num_channels} channels of the type {pixel_type}, but this one "
                    "is 8-bit RGB, as pipelines convert files: pass an array, or "
                    '`pipe(pipe.image_processor.fetch_images("FILE"))`.'
                )
            if image.mode == "RGB" and num_channels == 4 and channels is None:
                logger.warning_once("An RGB image for a model with 4 channels: the fourth is taken to be opaque.")
        else:
            if isinstance(image, torch.Tensor):
                device = device or image.device
                image = image.cpu().numpy()
            if input_data_format is not None:
                is_first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
                image = np.moveaxis(image, 0, -1) if is_first else image
            else:
                expected = num_channels if channels is None else None
                is_first = image.shape[0] == expected != image.shape[-1]
                image = np.moveaxis(image, 0, -1) if is_first else image
                image = image if expected in image.shape[-1:] else channels_last(image)
        try:
            pixels = to_pixels(image, num_channels, channels, pixel_range)
        except ValueError as error:
            raise ValueError(f"An image cannot be prepared: {error}.") from error
        return pixels if device is None else pixels.to(device)

    def _preprocess(self, images: list[torch.Tensor], *args, **kwargs):
        if len({image.dtype for image in images}) > 1:  # which are to be processed together
            images = [image / 255 if image.dtype == torch.uint8 else image for image in images]
        return super()._preprocess(images, *args, **kwargs)

    def rescale_and_normalize(self, images, do_rescale, rescale_factor, do_normalize, image_mean, image_std):
        if images.is_floating_point():  # in [0, 1] already, but for what bicubic interpolation overshoots
            images, do_rescale = images.clamp(0, 1), False
        return super().rescale_and_normalize(images, do_rescale, rescale_factor, do_normalize, image_mean, image_std)


__all__ = ["SupMAEImageProcessor"]
