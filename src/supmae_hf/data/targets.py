# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Targets of the model beside labels: captions, masks and boxes, columns of numbers."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..supervision_supmae import UNLABELED
from .labels import values_of


# names of the fields of a column of objects, of which `bbox` and `category` are those of COCO on the Hub
BOXES, CATEGORIES = "bbox", "category"
BACKGROUND = "background"
IGNORED = 255  # in masks, as segmentation data sets have it

_CHUNK = 1000  # captions at a time


class Column:
    """
    A column of numbers as targets, such as those of a kind of supervision of one's own.

    Args:
        argument: The kind's `argument`, and the name of the column.
        missing: Value of the target if the record has none.
    """

    def __init__(self, argument: str, missing: float = UNLABELED):
        self.argument, self.missing = argument, missing

    def encode(self, record: Mapping) -> torch.Tensor:
        value = record.get(self.argument)
        return torch.as_tensor(self.missing if value is None else value)


class Captions:
    """
    Captions as the ids of their distinct tokens, special and unknown ones left out: see [`SupMAECaptionHead`].

    Args:
        column: Column of texts, or of lists of texts, whose tokens are joined.
        tokenizer: Any of Transformers.
        length: Length of the targets, which are filled up with -100.
    """

    argument = "caption_ids"

    def __init__(self, column: str, tokenizer: PreTrainedTokenizerBase, length: int = 0):
        self.column, self.tokenizer, self.length = column, tokenizer, length
        self._special = set(tokenizer.all_special_ids)

    def tokens(self, text: str) -> list[int]:
        """Its distinct tokens, in order."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return sorted(set(ids) - self._special)

    def encode(self, record: Mapping) -> torch.Tensor:
        tokens = self.tokens(text_of(record.get(self.column)))
        if len(tokens) > self.length:
            raise ValueError(
                f"A caption of {len(tokens)} tokens is longer than the longest for training, {self.length}."
            )
        return torch.tensor(tokens + [UNLABELED] * (self.length - len(tokens)), dtype=torch.long)

    def count(self, split: datasets.Dataset) -> tuple[torch.Tensor, int]:
        """Count the captions that each token occurs in, and the captions with a token; sets `length` to that of the longest."""
        counts, num_captions = np.zeros(len(self.tokenizer), dtype=np.int64), 0
        for text in texts_of(split, self.column):
            tokens = self.tokens(text)
            counts[tokens] += 1
            num_captions += bool(tokens)
            self.length = max(self.length, len(tokens))
        return torch.from_numpy(counts), num_captions


def text_of(value: str | list | None) -> str:
    """The caption in a record: one text, or several in one."""
    return " ".join(text or "" for text in value) if isinstance(value, (list, tuple)) else value or ""


def texts_of(split: datasets.Dataset, column: str):
    """The captions of a data set."""
    for rows in split.select_columns(column).iter(batch_size=_CHUNK):
        yield from map(text_of, rows[column])


def train_word_tokenizer(texts, vocab_size: int = 30_000) -> PreTrainedTokenizerFast:
    """A tokenizer of the words in texts, in lower case and without punctuation; the most frequent ones."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


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
    background; where boxes overlap, the smallest counts.

    Args:
        names: Names of the classes.
        column: Column of masks, which are images of class indices (255 is no class), or of objects in the format of COCO on
            the Hub: `bbox` of left, top, width and height in pixels, and `category`.
        categories: Categories of objects that are the classes from 1 on.
        reduce_labels: Whether mask value 0 is no class and class 0 is stored as 1, as in ADE20K.
        flag: The setting that names the classes, for errors.

    Raises:
        ValueError: if masks have more than 255 classes.
    """

    argument = "segmentation_maps"

    def __init__(
        self,
        names: list[str],
        column: str,
        categories: list | None = None,
        reduce_labels: bool = False,
        flag: str = "`dense_classes` in `--model_config`",
    ):
        self.names, self.column, self.reduce_labels, self.flag = names, column, reduce_labels, flag
        self._places = None if categories is None else {value: place for place, value in enumerate(categories, 1)}
        if categories is None:
            check_num_classes(len(names), flag)

    def encode(self, record: Mapping, size: tuple[int, int], read: Callable) -> torch.Tensor:
        """
        The classes of pixels, -100 where there is none.

        Args:
            size: Height and width of the record's image.
            read: Function that decodes an image.

        Raises:
            ValueError: if a mask is not of the image's size, or names a class that does not exist.
        """
        value = record.get(self.column)
        if value is None:
            return torch.full(size, UNLABELED)
        return torch.from_numpy(self._draw(value, size) if self._places is not None else self._read(value, size, read))

    def _read(self, encoded, size: tuple[int, int], read: Callable) -> np.ndarray:
        where = (encoded.get("path") if isinstance(encoded, dict) else None) or "a mask"
        mask = np.array(read(encoded)[0]).squeeze()
        if mask.shape != size:
            raise ValueError(
                f"{where} has the shape {mask.shape}, but its image is {size[0]}x{size[1]} pixels (height x width)"
            )
        mask = mask.astype(np.int64)
        nothing = (mask == IGNORED) | (self.reduce_labels & (mask == 0))
        mask -= self.reduce_labels
        wrong = mask[~nothing & ((mask < 0) | (mask >= len(self.names)))]
        if wrong.size:
            raise ValueError(
                f"{where} holds class {wrong[0]}, outside [0, {len(self.names)}): correct {self.flag}, or pass `--reduce_labels` if "
                "0 means no class"
            )
        return np.where(nothing, UNLABELED, mask)

    def _draw(self, objects: Mapping, size: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(size, dtype=np.int64)
        pairs = _pairs(objects)
        for box, _ in pairs:
            if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) < 0:
                raise ValueError(f"the box {list(box)} is not one of left, top, width and height")
        for (left, top, width, height), category in sorted(pairs, key=lambda one: -one[0][2] * one[0][3]):
            rows, columns = (
                slice(max(round(start), 0), max(round(start + length), 0))
                for start, length in ((top, height), (left, width))
            )
            if category not in self._places:
                raise ValueError(f"the category '{category}' is not one of {self.names[1:20]}")
            mask[rows, columns] = self._places[category]
        return mask


def find_objects(split: datasets.Dataset, column: str) -> tuple[list[str], list]:
    """
    Names of the classes in a column of objects, and what stands for them.

    Raises:
        ValueError: if the column is none of objects.
    """
    feature = split.features[column]
    feature = getattr(feature, "feature", feature)  # a list of objects, or an object of lists
    fields = feature if isinstance(feature, dict) else {}
    if not {BOXES, CATEGORIES} <= set(fields):
        raise ValueError(
            f"Column '{column}' of the type {split.features[column]} has not the fields '{BOXES}' and '{CATEGORIES}' of objects: see "
            "`--objects_column_name`."
        )
    category = getattr(fields[CATEGORIES], "feature", fields[CATEGORIES])
    if isinstance(category, datasets.ClassLabel):
        return category.names, list(range(len(category.names)))
    found = sorted({category for objects in split[column] for _, category in _pairs(objects)} - {None})
    return list(map(str, found)), found


def _pairs(objects: Mapping | list | None) -> list[tuple[list[float], object]]:
    """Boxes and categories of a record's objects: lists in one object, or a list of objects."""
    if isinstance(objects, Mapping):
        return list(zip(objects[BOXES] or [], objects[CATEGORIES] or []))
    return [(one[BOXES], one[CATEGORIES]) for one in objects or []]


def with_masks(
    split: datasets.Dataset, image_column: str, roots: list[str], mask_dir: str, column: str
) -> datasets.Dataset:
    """
    A data set with a column of the masks in a folder: those at the same place as the image below one of the `roots`, or of the same
    name, whatever their ending.

    Raises:
        ValueError: if two masks have the name of an image that has none at its place, or the images are no files.
    """
    by_place, by_name = {}, {}
    for folder, _, files in os.walk(mask_dir, followlinks=True):
        for file in sorted(files):
            path = Path(folder, file)
            by_place[str(path.relative_to(mask_dir).with_suffix(""))] = str(path)
            by_name.setdefault(path.stem, []).append(str(path))

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

    images = values_of(split, image_column)
    if not pa.types.is_struct(images.type):
        raise ValueError("`--mask_dir` finds masks by the files of the images, but the images are arrays.")
    images = pa.compute.struct_field(images, "path").to_pylist()
    return split.add_column(column, [find(path) for path in images], feature=datasets.Image(decode=False))
