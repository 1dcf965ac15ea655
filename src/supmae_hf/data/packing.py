# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets once more, as Parquet files of images that were made smaller: less to read and to decode in every epoch."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from ..image_processing_supmae import read_image
from ..records import unfinished_name
from .annotations import BOXES, is_lossy, object_fields, objects_of
from .dataset import UNREADABLE, ImageDataset, say_unreadable
from .image_data import ImageData


logger = logging.get_logger(__name__)


def pack_image(image: Image.Image, file: bytes | None, size: int, quality: int) -> bytes:
    """
    The file of an 8-bit image whose shorter side is `size` pixels at most: JPEG if it was one (or WebP), else PNG. One that is
    small enough stays as it is.

    Args:
        image: The result of [`read_image`].
        file: The file of the image, if it holds the image as it is.
        size: Number of pixels of the shorter side.
        quality: Quality of JPEG files, 1 to 95.
    """
    shorter = min(image.size)
    if shorter <= size and file is not None:
        return file
    is_photograph = image.format in ("JPEG", "MPO", "WEBP") or image.format is None
    if image.mode not in (("L", "RGB") if is_photograph else ("1", "L", "LA", "RGB", "RGBA")):
        has_alpha = not is_photograph and "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    if shorter > size:
        width, height = (round(side * size / shorter) for side in image.size)
        if image.format == "JPEG":
            image.draft(None, (2 * width, 2 * height))  # decodes no more than it needs to
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    packed = io.BytesIO()
    if is_photograph:
        image.save(packed, "JPEG", quality=quality)
    else:
        image.save(packed, "PNG")
    return packed.getvalue()


def pack_mask(file: bytes, before: tuple[int, int], size: tuple[int, int]) -> bytes:
    """
    The file of a mask for an image that was made smaller: each pixel has the class of the one at its place. One of another size than
    the image was, or compressed with losses, is no mask of it, and stays as it is.

    Args:
        before, size: Width and height of the image before and now.
    """
    mask = read_image(file, is_mask=True)
    if isinstance(mask, np.ndarray):
        if mask.shape[-1] > 1 or mask.dtype not in (bool, np.uint8, np.uint16):
            return file
        mask = Image.fromarray(mask.squeeze(-1))
    if mask.size != before or before == size or is_lossy(mask, file):
        return file
    packed = io.BytesIO()
    mask.resize(size, Image.Resampling.NEAREST).save(packed, "PNG")
    return packed.getvalue()


def pack_objects(objects: Mapping | list | None, before: tuple[int, int], size: tuple[int, int]):
    """Objects with their boxes in pixels of an image that was made smaller; arguments are those of [`pack_mask`]."""
    if objects is None:
        return None
    scale = [size[axis] / before[axis] for axis in (0, 1, 0, 1)]

    def resize(box):
        return None if box is None else [side * factor for side, factor in zip(box, scale, strict=True)]

    if isinstance(objects, Mapping):
        return {**objects, BOXES: [resize(box) for box in objects[BOXES] or []]}
    return [{**one, BOXES: resize(one[BOXES])} for one in objects]


def find_pixel_boxes(split: datasets.Dataset) -> list[str]:
    """The columns of objects whose boxes are in pixels, not fractions: one of their numbers is above 1."""
    columns = []
    for column, feature in split.features.items():
        if object_fields(feature):
            rows = (row[column] for row in split.select_columns(column))
            if any(side > 1 for row in rows for box in objects_of(row)[0] for side in box):
                columns.append(column)
    return columns


class _PackedRows(Dataset):
    """The columns of every record that depend on the size of its image; `None` for those that are left out."""

    def __init__(self, images: ImageDataset, size: int, quality: int, masks: list[str], objects: list[str]):
        self.images, self.size, self.quality, self.masks, self.objects = images, size, quality, masks, objects

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict | None:
        record, column = self.images.dataset[index], self.images.image_column
        encoded = record[column]
        try:
            image, file = self.images.read(encoded)
            before = size = None
            if isinstance(image, Image.Image):
                before, packed = image.size, pack_image(image, file, self.size, self.quality)
                size = Image.open(io.BytesIO(packed)).size
            elif not isinstance(encoded, dict):
                raise ValueError("it is an array, not a file")
            else:  # more than 8 bits, or bands: as it is
                packed = self.images.read_file(encoded)
        except UNREADABLE as error:
            say_unreadable(encoded, f"image {index}", error, self.images.skip_bad_images)
            return None
        row = {column: _file_of(packed, encoded)}
        for name in self.masks:
            mask = None if record[name] is None else self.images.read_file(record[name])
            row[name] = None if mask is None else _file_of(pack_mask(mask, before, size), record[name])
        for name in self.objects:
            row[name] = record[name] if size is None else pack_objects(record[name], before, size)
        if before != size and (self.masks or self.objects) and self.images.orientation(encoded) != 1:
            logger.warning_once(
                "Packed images are upright: masks and boxes of images that EXIF turns are taken to be of the upright image."
            )
        return row


def _file_of(content: bytes, encoded: dict) -> dict:
    return {"bytes": content, "path": os.path.basename(encoded["path"] or "") or None}


def write_packed(
    data: ImageData,
    places: range,
    path: Path,
    size: int,
    quality: int = 90,
    num_workers: int = 0,
    objects: Sequence[str] = (),
) -> int:
    """
    Write records of `data.validation` as a Parquet file, which appears complete or not at all. All columns stay; masks and boxes
    are resized with their image.

    Args:
        data: One of the splits of [`load_splits`].
        places: Places of the images.
        size, quality: See [`pack_image`].
        num_workers: Processes that decode and encode.
        objects: Columns of [`find_pixel_boxes`].

    Returns:
        The number of images.

    Raises:
        ValueError: if an image cannot be decoded; the message names it.
    """
    records, masks = data.validation.select(places), []
    for column, feature in records.features.items():
        if isinstance(feature, datasets.Image) and column != data.image_column:
            records = records.cast_column(column, datasets.Image(decode=False))
            masks.append(column)
    images = ImageDataset.of(data, records)
    loader = DataLoader(
        _PackedRows(images, size, quality, masks, list(objects)), 64, num_workers=num_workers, collate_fn=list
    )
    with torch.no_grad():
        rows = [row for batch in loader for row in batch]
    kept = [index for index, row in enumerate(rows) if row is not None]
    columns = [data.image_column, *masks, *objects]
    features = {name: datasets.Image() for name in columns} | {name: records.features[name] for name in objects}
    packed = {name: [rows[index][name] for index in kept] for name in columns}
    packed = datasets.Dataset.from_dict(packed, features=datasets.Features(features))
    rest = records.select(kept).remove_columns(columns)
    if rest.column_names:
        packed = datasets.concatenate_datasets([packed, rest], axis=1)
    part = path.with_name(unfinished_name(path))
    packed.to_parquet(part)
    part.rename(path)
    return len(kept)
