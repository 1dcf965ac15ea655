# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The pixels of a data set: their type, range, mean and standard deviation."""

from collections.abc import Iterator, Sequence
from itertools import islice

import datasets
import numpy as np
import torch

from ..configuration_supmae import SupMAEConfig
from ..image_processing_supmae import SupMAEImageProcessor, to_pixels
from ..preparation import IMAGENET_MEAN, IMAGENET_STD, load_image_processor
from ..supervision_supmae import UNLABELED
from .annotations import AnnotationError, DenseLabels, objects_of
from .arguments import DataArguments
from .dataset import UNREADABLE, ImageDataset, name_of, say_unreadable
from .image_data import ImageData
from .labels import Labels
from .sources import take
from .transforms import as_transform


_NUM_LOOKED_AT = 100  # images, for their type
MAX_IMAGES = 2_000  # for mean and standard deviation
MAX_ANNOTATED = 500  # images of a split whose masks or boxes are looked at
_UNSIGNED_16_BIT = (0, 65535)


def _images(data: ImageData, count: int) -> Iterator:
    """Pairs of a name and an image as [`read_image`] gives it, drawn from the training images."""
    reader = ImageDataset(take(data.train, count), Labels(), None, image_column=data.image_column)
    for index, record in enumerate(islice(reader.dataset, count)):
        encoded = record[data.image_column]
        try:
            image = reader.read(encoded)[0]
            if hasattr(image, "load"):
                image.load()
        except UNREADABLE as error:
            say_unreadable(encoded, f"image {index}", error, data.skip_bad_images)
            continue
        yield (encoded.get("path") if isinstance(encoded, dict) else None) or f"Image {index}", image


def _type_of(image) -> str:
    """The type of an image's pixels."""
    return str(image.dtype) if isinstance(image, np.ndarray) else "uint8"


def look_at_annotations(data: ImageData, dense: DenseLabels, max_images: int = MAX_ANNOTATED) -> list[str]:
    """
    Look at the masks or boxes of at most `max_images` images of each split, and describe them.

    Returns:
        Lines for people: the share of the pixels that each class has, boxes that are clipped, images that are turned.

    Raises:
        AnnotationError: if annotations do not fit their image; the message names it.
        ValueError: if all pixels that were looked at are of one class, or boxes seem to be fractions.
    """
    lines, num_turned = [], 0
    for name, split in data.splits().items():
        if dense.column not in split.features:
            continue
        images = ImageDataset.of(data, take(split, max_images), targets=[dense])
        pixels, num_images, num_boxes, num_clipped, largest = np.zeros(len(dense.names) + 1), 0, 0, 0, 0.0
        for index, record in enumerate(images.dataset):
            annotation, encoded = record[dense.column], record[data.image_column]
            if annotation is None:
                continue
            try:
                image = images.read(encoded)[0]
                classes = images.read_classes(record, image).numpy()
            except AnnotationError as error:
                raise AnnotationError(f"{name_of(encoded, f'image {index}')}: {error}.") from error
            except UNREADABLE as error:
                say_unreadable(encoded, f"image {index}", error, data.skip_bad_images)
                continue
            num_images += 1
            orientation = images.orientation(encoded)  # which reads the file
            num_turned += orientation != 1
            pixels += np.bincount(
                np.where(classes == UNLABELED, len(dense.names), classes).ravel(), minlength=len(pixels)
            )
            if dense.categories is not None:
                height, width = dense.annotated_size(classes.shape, orientation)
                corners = dense.corners(annotation, (height, width))
                beyond = (corners[:, :2] < -1).any(1) | (corners[:, 2] > width + 1) | (corners[:, 3] > height + 1)
                num_boxes, num_clipped = num_boxes + len(corners), num_clipped + int(beyond.sum())
                largest = max(largest, np.abs(objects_of(annotation)[0]).max(initial=0))
        _require_classes(dense, pixels, num_boxes, largest, images)
        shares = ", ".join(f"{x} {share:.1%}" for x, share in zip([*dense.names, "no class"], pixels / pixels.sum()))
        lines.append(f"pixels of {num_images} annotated images ({name}): {shares}")
        if num_clipped:
            lines.append(
                f"{num_clipped} of {num_boxes} boxes ({name}) reach beyond their image and are clipped: is `--box_format` "
                f"{dense.box_format} right?"
            )
    if num_turned:
        which = "the stored pixels" if dense.as_stored else "the upright image"
        lines.append(
            f"{num_turned} annotated images are turned by their EXIF orientation: annotations are taken to be of {which} "
            f"(`--annotations_as_stored {not dense.as_stored}` for the other)"
        )
    return lines


def _require_classes(dense: DenseLabels, pixels: np.ndarray, num_boxes: int, largest: float, images: ImageDataset):
    if num_boxes and largest <= 1 and not dense.box_format.startswith("rel_"):
        raise ValueError(
            f"All boxes in '{dense.column}' are at most 1: they seem to be fractions of the image. Pass `--box_format rel_xywh`, "
            "`rel_xyxy` or `rel_cxcywh`."
        )
    missing = [name for name, count in zip(dense.names, pixels) if not count]
    if pixels.any() and len(missing) >= len(dense.names) - 1 and dense.categories is None:
        first = next(record[dense.column] for record in images.dataset if record[dense.column] is not None)
        values = np.unique(np.asarray(images.read(first)[0]))
        hint = " The values of masks are 0 and 255, of which 255 is no class: store classes as 0, 1, 2, ..."
        raise ValueError(
            f"No pixel of the masks that were looked at is of the class '{missing[0]}', and one class alone teaches nothing."
            + (hint if values.tolist() == [0, 255] else "")
        )


def channel_statistics(
    data: ImageData, options: dict, max_images: int = MAX_IMAGES
) -> tuple[list[float], list[float]]:
    """
    Mean and standard deviation of each channel over all pixels of at most `max_images` training images.

    Args:
        options: See [`to_pixels`].
    """
    count, total, squares = 0, 0, 0
    for _, image in _images(data, max_images):
        pixels = to_pixels(image, **options)
        pixels = (pixels / 255 if pixels.dtype == torch.uint8 else pixels).flatten(1).double()
        count += pixels.shape[1]
        total, squares = total + pixels.sum(dim=1), squares + (pixels**2).sum(dim=1)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    # a channel that never changes cannot be scaled
    return [round(x, 6) for x in mean.tolist()], [round(x, 6) if x > 1e-6 else 1.0 for x in std.tolist()]


def pixel_fields(
    data: ImageData, args: DataArguments, config: SupMAEConfig, checkpoint: str | None = None
) -> tuple[dict, str]:
    """
    Choose the arguments of [`build_image_processor`] for a data set, and describe them in a line. Values that `args` leaves
    open are taken from the starting checkpoint, or else from a look at 100 training images.

    Args:
        args: Channels, range of pixels, mean and standard deviation, as far as they are given.
        checkpoint: The checkpoint that training starts from.

    Raises:
        ValueError: if an image looked at has pixels of an unknown range, or other channels than the model.
    """
    fields = {"channels": args.channels, "pixel_range": args.pixel_range}
    known = load_image_processor(checkpoint)
    if isinstance(known, SupMAEImageProcessor):
        fields = {name: getattr(known, name) if value is None else value for name, value in fields.items()}
    looked_at = list(_images(data, _NUM_LOOKED_AT))
    if not looked_at:
        raise ValueError("None of the images looked at can be decoded.")
    types = {_type_of(image) for _, image in looked_at}
    words = ""
    if fields["pixel_range"] is None and any(
        name.startswith(("int", "uint")) and name[-2:] in ("32", "64") for name in types
    ):
        values = [value for _, image in looked_at for value in (np.min(image), np.max(image))]
        if "uint8" not in types and min(values) >= 0 and max(values) <= _UNSIGNED_16_BIT[1]:
            fields["pixel_range"] = list(_UNSIGNED_16_BIT)
            words = ", taken for 16 bits: 0 is black, 65535 white (`--pixel_range` sets others)"
    options = {"num_channels": config.num_channels, **fields}
    for name, image in looked_at:
        try:
            to_pixels(image, **options)
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}.") from error
    deep = sorted(types - {"uint8", "bool"})
    fields["pixel_type"] = deep[-1] if deep else "uint8"
    is_plain_rgb = (
        fields == {"channels": None, "pixel_range": None, "pixel_type": "uint8"} and config.num_channels == 3
    )
    from_data = args.normalization == "dataset"
    theirs = None if known is None or from_data else as_transform(known)
    if args.image_mean is not None:
        mean, std, whose = args.image_mean, args.image_std, "as given"
    elif theirs is not None and len(np.atleast_1d(theirs.mean or [])) in (1, config.num_channels):
        mean, std, whose = theirs.mean, theirs.std, f"of {checkpoint}"
    elif is_plain_rgb and not from_data:
        mean, std, whose = IMAGENET_MEAN, IMAGENET_STD, "of ImageNet"
    else:
        mean, std = channel_statistics(data, options)
        number = MAX_IMAGES if isinstance(data.train, datasets.IterableDataset) else min(len(data.train), MAX_IMAGES)
        whose = f"of {number} training images"
    mean, std = _each(mean, config, "image_mean"), _each(std, config, "image_std")
    channel_words = "" if fields["channels"] is None else f" (of each image {list(fields['channels'])})"
    if fields["pixel_range"] is not None and not words:
        words = f", from {fields['pixel_range'][0]:g} (black) to {fields['pixel_range'][1]:g} (white)"
    line = (
        f"pixels: {' and '.join(sorted(types))}{words}; {config.num_channels} channel{'s' * (config.num_channels > 1)}{channel_words}; normalised by the mean "
        f"{_rounded(mean)} and standard deviation {_rounded(std)} {whose}"
    )
    return {**fields, "image_mean": mean, "image_std": std}, line


def _each(values: Sequence[float] | float, config: SupMAEConfig, name: str) -> list[float]:
    """One value for each channel."""
    values = [float(value) for value in np.atleast_1d(values)]
    if len(values) not in (1, config.num_channels):
        raise ValueError(
            f"`--{name}` has {len(values)} values for {config.num_channels} channels: give one, or one each."
        )
    return values * config.num_channels if len(values) == 1 else values


def _rounded(values: list[float]) -> str:
    shown = [f"{value:.3g}" for value in dict.fromkeys(values)]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")
