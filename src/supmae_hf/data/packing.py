# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets once more, as Parquet files of images that were made smaller: less to read and to decode in every epoch."""

import io
import os
from pathlib import Path

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..records import unfinished_name
from .dataset import UNREADABLE, ImageDataset, say_unreadable
from .image_data import ImageData


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


class _PackedFiles(Dataset):
    """File and name of every image; `None` for those that are left out."""

    def __init__(self, images: ImageDataset, size: int, quality: int):
        self.images, self.size, self.quality = images, size, quality

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict | None:
        encoded = self.images.dataset[index][self.images.image_column]
        try:
            image, file = self.images.read(encoded)
            if isinstance(image, Image.Image):
                packed = pack_image(image, file, self.size, self.quality)
            elif not isinstance(encoded, dict):
                raise ValueError("it is an array, not a file")
            else:  # more than 8 bits, or bands: as it is
                packed = self.images.read_file(encoded)
        except UNREADABLE as error:
            say_unreadable(encoded, f"image {index}", error, self.images.skip_bad_images)
            return None
        return {"bytes": packed, "path": os.path.basename(encoded["path"] or "") or None}


def write_packed(
    data: ImageData, places: range, path: Path, size: int, quality: int = 90, num_workers: int = 0
) -> int:
    """
    Write images of `data.validation`, with their labels, as a Parquet file, which appears complete or not at all.

    Args:
        data: One of the splits of [`load_splits`].
        places: Places of the images.
        size, quality: See [`pack_image`].
        num_workers: Processes that decode and encode.

    Returns:
        The number of images.

    Raises:
        ValueError: if an image cannot be decoded; the message names it.
    """
    records = data.validation.select(places)
    loader = DataLoader(
        _PackedFiles(ImageDataset.of(data, records), size, quality), 64, num_workers=num_workers, collate_fn=list
    )
    with torch.no_grad():
        files = [file for batch in loader for file in batch]
    kept = [index for index, file in enumerate(files) if file is not None]
    features = {"image": datasets.Image()} | {column: records.features[column] for column in data.labels.columns}
    labels = records.select(kept).select_columns(data.labels.columns)[:] if data.labels.columns else {}
    table = datasets.Dataset.from_dict(
        {"image": [files[index] for index in kept], **labels}, features=datasets.Features(features)
    )
    part = path.with_name(unfinished_name(path))
    table.to_parquet(part)
    part.rename(path)
    return len(kept)
