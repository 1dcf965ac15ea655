# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Masks and boxes as the classes of an image's pixels."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torchvision.ops import box_convert

from ..supervision_supmae import UNLABELED
from .folders import image_suffixes
from .image_data import Split
from .labels import values_of


# Fields of a column of objects; `bbox` and `category` are those of COCO on the Hub, the others are met there, too.
BOXES, CATEGORIES, CROWD = "bbox", "category", "iscrowd"
_CATEGORY_NAMES = (CATEGORIES, "categories", "category_id", "label", "labels")
SIZE = "size"  # of the image, if it is known: height and width
BACKGROUND = "background"
IGNORED = 255  # in masks, as segmentation data sets have it
# Endings that the name of a mask may have behind that of its image.
_MASK_ENDING = re.compile(r"[-_.](?:masks?|labels?|seg|segmentation|gt)$", re.IGNORECASE)
# What to do if a name fits two
_NAMING = "name it with the folder of its image, such as cat/1.png"


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
            the Hub: `bbox`, `category` (or `categories`, `category_id`, `label`, `labels`), and perhaps `iscrowd`.
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
        stored = self.annotated_size(size, orientation)
        classes = self._read(value, stored, read) if self.categories is None else self._draw(value, stored)
        return torch.from_numpy(turn(classes, orientation) if self.as_stored else classes)

    def annotated_size(self, size: tuple[int, int], orientation: int) -> tuple[int, int]:
        """Height and width of the pixels that the annotations of an image are of, from those of the upright image."""
        return size[::-1] if self.as_stored and orientation >= 5 else size

    def _read(self, encoded, size: tuple[int, int], read: Callable) -> np.ndarray:
        where = (encoded.get("path") if isinstance(encoded, dict) else None) or "a mask"
        image, file = read(encoded, is_mask=True)
        if is_lossy(image, file):
            raise AnnotationError(f"{where} is compressed with losses, which changes classes: save masks as PNG files")
        mask = np.array(image).squeeze()
        if mask.dtype == bool:
            mask = mask.astype(np.uint8)
        if mask.ndim == 3 and mask.shape[:2] == size:
            if mask.shape[2] not in (3, 4):
                raise AnnotationError(
                    f"{where} has {mask.shape[2]} channels: a mask has one, of classes, or three, of colours"
                )
            mask = self._of_colors(mask, where)
        if mask.shape != size:
            raise AnnotationError(
                f"{where} has the shape {mask.shape}, but its image is {size[0]}x{size[1]} pixels (height x width)"
            )
        if (fractions := mask[mask % 1 != 0]).size:  # also of what is not finite
            raise AnnotationError(
                f"{where} holds {fractions[0]:g}, but classes are whole numbers: round it, or choose a threshold"
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
            AnnotationError: if there are not as many categories, a box is none or lies outside the image, or the objects are of an image
                of another size.
        """
        boxes, categories, _ = objects_of(objects)
        if len(boxes) != len(categories):
            raise AnnotationError(f"it has {len(boxes)} boxes and {len(categories)} categories")
        height, width = size
        known = objects.get(SIZE) if isinstance(objects, Mapping) else None
        if known and sorted(known) != sorted(size):  # some files have height and width exchanged
            raise AnnotationError(
                f"its objects are of an image of {known[0]}x{known[1]} pixels (height x width), but it has {height}x{width}: take the images "
                "that were annotated, or scale the boxes and correct the size in the file"
            )
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


def _category_name(fields: Iterable[str]) -> str | None:
    """The name of the field of the categories."""
    return next((name for name in _CATEGORY_NAMES if name in fields), None)


def find_objects(split: Split, column: str) -> dict[object, str]:
    """
    The categories in a column of objects, and their names.

    Raises:
        ValueError: if the column is none of objects.
    """
    fields = object_fields(split.features[column])
    category = fields.get(_category_name(fields))
    if category is None:
        raise ValueError(
            f"Column '{column}' of the type {split.features[column]} has not the fields '{BOXES}' and '{CATEGORIES}' of objects: see "
            "`--objects_column_name`."
        )
    category = getattr(category, "feature", category)
    if isinstance(category, datasets.ClassLabel):
        return dict(enumerate(category.names))
    rows = (row[column] for row in split.select_columns(column))
    return {found: str(found) for found in sorted({x for row in rows for x in objects_of(row)[1]} - {None})}


def objects_of(objects: Mapping | list | None) -> tuple[list[list[float]], list, list[bool]]:
    """Boxes and categories of a record's objects, and whether they are crowds: lists in one object, or a list of objects."""
    if not isinstance(objects, Mapping):
        names = {name for one in objects or [] for name in one}
        objects = {name: [one.get(name) for one in objects] for name in names}
    boxes, categories = objects.get(BOXES) or [], objects.get(_category_name(objects)) or []
    return boxes, categories, [bool(crowd) for crowd in objects.get(CROWD) or [0] * len(boxes)]


def _endings(name: str) -> Iterator[str]:
    """A name with all of its folders, with one less, and so on, and alone."""
    ending = unicodedata.normalize("NFC", name).replace("\\", "/")  # some systems take accents apart
    while ending:
        yield ending
        _, _, ending = ending.partition("/")


def find_partners(images: Mapping[str, str], names: Iterable[tuple[str, str, bool]]) -> dict[str, str]:
    """
    Find the annotation of each image: the one of the same name, and of the same folders as far as names repeat.

    Args:
        images: What annotations are called that belong to an image, by its path.
        names: For each annotation its name, perhaps with folders, an identifier, and whether that is the whole name: one without its
            `_mask` counts less.

    Returns:
        The identifiers by the path of the image.

    Raises:
        ValueError: if two annotations fit an image, or two images an annotation.
    """
    best, image_of = {}, {}  # the annotations that fit an ending best, and how well; images by annotation
    for name, annotation, is_whole in names:
        for place, ending in enumerate(_endings(name)):
            fit = place == 0, is_whole
            if ending not in best or fit > best[ending][0]:
                best[ending] = fit, []
            if fit == best[ending][0]:
                best[ending][1].append(annotation)
    num_images = Counter(ending for name in images.values() for ending in _endings(name) if ending in best)
    for image, name in images.items():
        ending = next((ending for ending in _endings(name) if ending in best), None)
        if ending is None:
            continue
        (has_all_folders, _), fitting = best[ending]
        if not has_all_folders and num_images[ending] > 1:
            continue  # its other folders may be those of another image
        annotation = fitting[0]
        if len(fitting) > 1:
            raise ValueError(f"{annotation} and {fitting[1]} are both named as the image {image}: {_NAMING}.")
        if annotation in image_of:
            raise ValueError(f"{annotation} may be of the image {image_of[annotation]} or of {image}: {_NAMING}.")
        image_of[annotation] = image
    return {image: annotation for annotation, image in image_of.items()}


def _with_column(
    splits, image_column: str, column: str, feature, annotations: Mapping, names: list, key: Callable = str
):
    """
    Data sets with a column of annotations.

    Args:
        annotations: The values of the column by identifier.
        names: See [`find_partners`].
        key: Function that makes of the path of an image what its annotation is called.
    """
    paths = []
    for split in splits:
        images = pa.array([], pa.struct({"path": pa.string()})) if split is None else values_of(split, image_column)
        if not pa.types.is_struct(images.type):
            raise ValueError("Annotations are found by the files of the images, but the images are arrays.")
        paths.append(pa.compute.struct_field(images, "path").to_pylist())
    partners = find_partners({path: key(path) for part in paths for path in part if path is not None}, names)
    return [
        split and split.add_column(column, [annotations.get(partners.get(path)) for path in part], feature=feature)
        for split, part in zip(splits, paths)
    ]


def _without_ending(path: str) -> str:
    return os.path.splitext(path)[0]


def with_masks(
    splits: Sequence[datasets.Dataset | None], image_column: str, mask_dir: str, column: str
) -> list[datasets.Dataset | None]:
    """
    Data sets with a column of the masks in a folder, by the names of the images and their folders, whatever their ending; the name of a
    mask may end in `_mask` or `_label`. Files that are no images are passed over.

    Raises:
        ValueError: if a mask may be that of two images, or an image's may be two, or the images are no files.
    """
    names, masks, suffixes = [], {}, image_suffixes()
    for folder, _, files in os.walk(mask_dir, followlinks=True):
        for file in sorted(file for file in files if file.rpartition(".")[2].lower() in suffixes):
            path = os.path.join(folder, file)
            masks[path] = {"bytes": None, "path": path}
            name = _without_ending(os.path.relpath(path, mask_dir))
            names.append((name, path, True))
            if (short := _MASK_ENDING.sub("", name)) != name:
                names.append((short, path, False))
    feature = datasets.Image(decode=False)
    return _with_column(splits, image_column, column, feature, masks, names, _without_ending)


def with_objects(
    splits: Sequence[datasets.Dataset | None], image_column: str, files: list[str], column: str
) -> list[datasets.Dataset | None]:
    """
    Data sets with a column of the objects in files of COCO's format (`instances_train2017.json`), by the names of the images and, if
    the files have them, their folders.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is not of COCO's format, if objects may be those of two images, or the images are no files.
    """
    names, found = [], {}
    for file in files:
        try:
            content = json.loads(Path(file).read_text())
            categories = {category["id"]: category["name"] for category in content["categories"]}
            images = {}
            for image in content["images"]:
                key = f"image {image['id']} of {file}, {image['file_name']},"
                sides = image.get("height"), image.get("width")
                size = [int(side) for side in sides] if all(sides) else []
                images[image["id"]] = found[key] = {BOXES: [], CATEGORIES: [], CROWD: [], SIZE: size}
                names.append((image["file_name"], key, True))
            for one in content["annotations"]:
                objects = images[one["image_id"]]
                objects[BOXES].append([float(x) for x in one["bbox"]])
                objects[CATEGORIES].append(categories[one["category_id"]])
                objects[CROWD].append(int(one.get("iscrowd", 0)))
        except FileNotFoundError:
            raise FileNotFoundError(f"`--objects_file` {file} does not exist.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`--objects_file` {file} is not of COCO's format ({type(error).__name__}: {error})."
            ) from error
    number, text = datasets.List(datasets.Value("float64")), datasets.List(datasets.Value("string"))
    integer = datasets.List(datasets.Value("int64"))
    feature = {BOXES: datasets.List(number), CATEGORIES: text, CROWD: integer, SIZE: integer}
    return _with_column(splits, image_column, column, feature, found, names)
