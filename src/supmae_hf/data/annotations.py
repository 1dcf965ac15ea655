# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Masks and boxes as the classes of an image's pixels."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torchvision.ops import box_convert

from ..supervision_supmae import UNLABELED
from .image_data import Split
from .labels import values_of


# Fields of a column of objects; `bbox` and `category` are those of COCO on the Hub.
BOXES, CATEGORIES, CROWD = "bbox", "category", "iscrowd"
BACKGROUND = "background"
IGNORED = 255  # in masks, as segmentation data sets have it
# Endings that the name of a mask may have behind that of its image.
_MASK_ENDING = re.compile(r"[-_.](?:masks?|labels?|seg|segmentation|gt)$", re.IGNORECASE)


class AnnotationError(ValueError):
    """A mask or boxes that cannot be used."""


def turn(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array `(height, width)` as the EXIF orientation (1 to 8) of its image says."""
    turns = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).T,
        8: np.rot90,
    }
    return np.ascontiguousarray(turns.get(orientation, lambda x: x)(mask))


def is_lossy(image, file: bytes | None) -> bool:
    """Decide whether the file of an image is compressed with losses."""
    return getattr(image, "format", None) in ("JPEG", "MPO") or (file or b"")[12:16] == b"VP8 "


def check_num_classes(num_classes: int, name: str):
    """
    Raises:
        ValueError: if one of the classes is 255, which stands for no class.
    """
    if num_classes > IGNORED:
        raise ValueError(
            f"{name}: {num_classes} classes, but of masks at most {IGNORED}, since {IGNORED} is no class."
        )


class DenseLabels:
    """
    Masks, or boxes drawn on one, as classes of pixels: see [`SupMAEDenseHead`]. Pixels that no box covers are of class 0,
    background; where boxes overlap, the smallest counts. Regions of crowds have no class.

    Args:
        names: Names of the classes.
        column: Column of masks, which are images of class indices (255 is no class), or of objects in the format of COCO on
            the Hub: `bbox`, `category`, and perhaps `iscrowd`.
        categories: Class of each category of objects; `None` for masks.
        reduce_labels: Whether mask value 0 is no class and class 0 is stored as 1, as in ADE20K.
        flag: The setting that names the classes, for errors.
        box_format: Format of boxes, `xywh` (corner and size), `xyxy` (two corners) or `cxcywh` (centre and size), in pixels, or with
            `rel_` before it as fractions of the image's width and height.
        colors: Colour of each class in masks of colours, such as `"800040"`.
        as_stored: Whether annotations are those of the pixels as the file stores them, before its EXIF orientation turns them.

    Raises:
        ValueError: if masks have more than 255 classes.
    """

    argument = "segmentation_maps"

    def __init__(
        self,
        names: list[str],
        column: str,
        categories: Mapping | None = None,
        reduce_labels: bool = False,
        flag: str = "`dense_classes` in `--model_config`",
        box_format: str = "xywh",
        colors: list[str] | None = None,
        as_stored: bool = False,
    ):
        self.names, self.column, self.reduce_labels, self.flag = names, column, reduce_labels, flag
        self.categories, self.box_format, self.as_stored = categories, box_format, as_stored
        if categories is None:
            check_num_classes(len(names), flag)
        self.colors = None
        if colors is not None:
            if len(colors) != len(names) or not all(re.fullmatch("#?[0-9a-fA-F]{6}", color) for color in colors):
                raise ValueError(
                    f"`--mask_colors` needs a colour such as 800040 for each of the {len(names)} classes, got {' '.join(colors)}."
                )
            self.colors = {int(color.removeprefix("#"), 16): place for place, color in enumerate(colors)}

    def encode(self, record: Mapping, size: tuple[int, int], read: Callable, orientation: int = 1) -> torch.Tensor:
        """
        The classes of pixels, -100 where there is none.

        Args:
            size: Height and width of the record's image, upright.
            read: Function that decodes an image or mask, and returns its file, too: `ImageDataset.read`.
            orientation: EXIF orientation of the record's image.

        Raises:
            AnnotationError: if a mask or box does not fit the image, or names a class that does not exist.
        """
        value = record.get(self.column)
        if value is None:
            return torch.full(size, UNLABELED)
        orientation = orientation if self.as_stored else 1
        stored = size[::-1] if orientation >= 5 else size
        classes = self._read(value, stored, read) if self.categories is None else self._draw(value, stored)
        return torch.from_numpy(turn(classes, orientation))

    def _read(self, encoded, size: tuple[int, int], read: Callable) -> np.ndarray:
        where = (encoded.get("path") if isinstance(encoded, dict) else None) or "a mask"
        image, file = read(encoded, is_mask=True)
        if is_lossy(image, file):
            raise AnnotationError(f"{where} is compressed with losses, which changes classes: save masks as PNG files")
        mask = np.array(image).squeeze()
        if mask.dtype == bool:
            mask = mask.astype(np.uint8)
        if mask.ndim == 3 and mask.shape[:2] == size:
            mask = self._of_colors(mask, where)
        if mask.shape != size:
            raise AnnotationError(
                f"{where} has the shape {mask.shape}, but its image is {size[0]}x{size[1]} pixels (height x width)"
            )
        mask = mask.astype(np.int64)
        nothing = (mask == IGNORED) | (self.reduce_labels & (mask == 0))
        mask -= self.reduce_labels
        wrong = mask[~nothing & ((mask < 0) | (mask >= len(self.names)))]
        if wrong.size:
            raise AnnotationError(
                f"{where} holds class {wrong[0]}, outside [0, {len(self.names)}): correct {self.flag}, or pass `--reduce_labels` if "
                "0 means no class"
            )
        return np.where(nothing, UNLABELED, mask)

    def _of_colors(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Classes of the pixels `(height, width, channels)` of a mask of colours."""
        codes = mask[..., :3].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        found = [f"{code:06x}" for code in np.unique(codes)]
        if self.colors is None:
            raise AnnotationError(
                f"{where} holds colours ({', '.join(found[:4])}), not numbers of classes: give the colour of each class with "
                "`--mask_colors`, in their order"
            )
        unknown = [code for code in found if int(code, 16) not in self.colors]
        if unknown:
            raise AnnotationError(f"{where} holds the colour {unknown[0]}, which `--mask_colors` does not name")
        classes = np.full(mask.shape[:2], UNLABELED)
        for code, place in self.colors.items():
            classes[codes == code] = place
        return classes

    def corners(self, objects: Mapping | list, size: tuple[int, int]) -> np.ndarray:
        """
        Left, top, right and bottom of boxes in pixels, `(num_boxes, 4)`.

        Raises:
            AnnotationError: if there are not as many categories, or a box is none or lies outside the image.
        """
        boxes, categories, _ = objects_of(objects)
        if len(boxes) != len(categories):
            raise AnnotationError(f"it has {len(boxes)} boxes and {len(categories)} categories")
        height, width = size
        corners = np.zeros((len(boxes), 4))
        for place, box in enumerate(boxes):
            if len(box) != 4 or not np.isfinite(box).all():
                raise AnnotationError(f"the box {list(box)} is not of four numbers")
            kind = self.box_format.removeprefix("rel_")
            corners[place] = box_convert(torch.tensor(box, dtype=torch.float64), kind, "xyxy").numpy()
            if self.box_format.startswith("rel_"):
                corners[place] *= (width, height, width, height)
            left, top, right, bottom = corners[place]
            if right < left or bottom < top:
                raise AnnotationError(
                    f"the box {list(box)} is not one of the format {self.box_format} (`--box_format`)"
                )
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                raise AnnotationError(
                    f"the box {list(box)} lies outside the image of {width}x{height} pixels: correct it, or see `--box_format`"
                )
        return corners

    def _draw(self, objects: Mapping | list, size: tuple[int, int]) -> np.ndarray:
        mask, corners = np.zeros(size, dtype=np.int64), self.corners(objects, size)
        _, categories, crowds = objects_of(objects)
        areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        for place in sorted(range(len(corners)), key=lambda place: (not crowds[place], -areas[place])):
            if categories[place] not in self.categories:
                raise AnnotationError(f"the category '{categories[place]}' is not one of {list(self.categories)[:20]}")
            left, top, right, bottom = (max(round(side), 0) for side in corners[place])
            mask[top:bottom, left:right] = UNLABELED if crowds[place] else self.categories[categories[place]]
        return mask


def object_fields(feature) -> dict:
    """The types of the fields of objects, if a column's type is a list of objects, or an object of lists; else none."""
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, dict) and BOXES in feature else {}


def find_objects(split: Split, column: str) -> dict[object, str]:
    """
    The categories in a column of objects, and their names.

    Raises:
        ValueError: if the column is none of objects.
    """
    fields = object_fields(split.features[column])
    if CATEGORIES not in fields:
        raise ValueError(
            f"Column '{column}' of the type {split.features[column]} has not the fields '{BOXES}' and '{CATEGORIES}' of objects: see "
            "`--objects_column_name`."
        )
    category = getattr(fields[CATEGORIES], "feature", fields[CATEGORIES])
    if isinstance(category, datasets.ClassLabel):
        return dict(enumerate(category.names))
    rows = (row[column] for row in split.select_columns(column))
    return {found: str(found) for found in sorted({x for row in rows for x in objects_of(row)[1]} - {None})}


def objects_of(objects: Mapping | list | None) -> tuple[list[list[float]], list, list[bool]]:
    """Boxes and categories of a record's objects, and whether they are crowds: lists in one object, or a list of objects."""
    if not isinstance(objects, Mapping):
        objects = {name: [one.get(name) for one in objects or []] for name in (BOXES, CATEGORIES, CROWD)}
    boxes, categories = objects[BOXES] or [], objects[CATEGORIES] or []
    return boxes, categories, [bool(crowd) for crowd in objects.get(CROWD) or [0] * len(boxes)]


def _with_column(split: datasets.Dataset | None, image_column: str, find: Callable, column: str, feature, flag: str):
    """A data set with a column of what `find` gives for the path of each image."""
    if split is None:
        return None
    images = values_of(split, image_column)
    if not pa.types.is_struct(images.type):
        raise ValueError(f"`--{flag}` names annotations by the files of the images, but the images are arrays.")
    found = [find(path) for path in pa.compute.struct_field(images, "path").to_pylist()]
    return split.add_column(column, found, feature=feature)


def with_masks(
    splits: Sequence[datasets.Dataset | None], image_column: str, roots: list[str], mask_dir: str, column: str
) -> list[datasets.Dataset | None]:
    """
    Data sets with a column of the masks in a folder: those at the same place as the image below one of the `roots`, or of the same
    name, whatever their ending; the name of a mask may end in `_mask` or `_label`.

    Raises:
        ValueError: if two masks have the name of an image that has none at its place, or the images are no files.
    """
    by_place, by_name = {}, defaultdict(list)
    for folder, _, files in os.walk(mask_dir, followlinks=True):
        for file in sorted(files):
            path = Path(folder, file)
            by_place[str(path.relative_to(mask_dir).with_suffix(""))] = str(path)
            for stem in {path.stem, _MASK_ENDING.sub("", path.stem)}:
                by_name[stem].append(str(path))

    def find(image: str | None) -> dict | None:
        if image is None:
            return None
        for root in roots:
            place = os.path.relpath(os.path.splitext(image)[0], root)
            if place in by_place:
                return {"bytes": None, "path": by_place[place]}
        paths = by_name.get(Path(image).stem, [])
        if len(paths) > 1:
            raise ValueError(
                f"{mask_dir} has {len(paths)} masks named as {image}, such as {paths[:2]}: put them at its place."
            )
        return {"bytes": None, "path": paths[0]} if paths else None

    feature = datasets.Image(decode=False)
    return [_with_column(split, image_column, find, column, feature, "mask_dir") for split in splits]


def with_objects(
    splits: Sequence[datasets.Dataset | None], image_column: str, files: list[str], column: str
) -> list[datasets.Dataset | None]:
    """
    Data sets with a column of the objects in files of COCO's format (`instances_train2017.json`), by the names of the images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is not of COCO's format, or the images are no files.
    """
    found = {}
    for file in files:
        try:
            content = json.loads(Path(file).read_text())
            names = {category["id"]: category["name"] for category in content["categories"]}
            images = {image["id"]: {BOXES: [], CATEGORIES: [], CROWD: []} for image in content["images"]}
            for one in content["annotations"]:
                objects = images[one["image_id"]]
                objects[BOXES].append([float(x) for x in one["bbox"]])
                objects[CATEGORIES].append(names[one["category_id"]])
                objects[CROWD].append(int(one.get("iscrowd", 0)))
            found |= {os.path.basename(image["file_name"]): images[image["id"]] for image in content["images"]}
        except FileNotFoundError:
            raise FileNotFoundError(f"`--objects_file` {file} does not exist.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`--objects_file` {file} is not of COCO's format ({type(error).__name__}: {error})."
            ) from error
    number, text = datasets.List(datasets.Value("float64")), datasets.List(datasets.Value("string"))
    feature = {BOXES: datasets.List(number), CATEGORIES: text, CROWD: datasets.List(datasets.Value("int64"))}

    def find(image: str | None) -> dict | None:
        return found.get(os.path.basename(image or ""))

    return [_with_column(split, image_column, find, column, feature, "objects_file") for split in splits]
