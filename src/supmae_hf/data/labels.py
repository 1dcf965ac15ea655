# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The meaning of label columns: class names, the problem type, and labels as the models take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from timm.data import ImageNetInfo

from ..supervision_supmae import UNLABELED


# names under which a column is taken for the labels if its type does not say so
LABEL_NAMES = ("label", "labels", "cls", "class", "classes", "category", "target", "fine_label")
# what integer columns of public data sets hold for images without a label
_MISSING = (-1, UNLABELED)


def find_label_columns(features: datasets.Features, names: Sequence[str] | None = None) -> list[str]:
    """
    The columns `names`, or else the only one of the type ClassLabel (or list of ClassLabel), or else the only one that
    is called like one of [`LABEL_NAMES`]; none if there is none.

    Raises:
        ValueError: if there are several, or a name is not a column.
    """
    if names:
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in features:
                raise ValueError(f"There is no label column '{name}': the columns are {list(features)}.")
        return list(names)
    columns = [name for name, feature in features.items() if isinstance(_element(feature), datasets.ClassLabel)]
    if len(columns) != 1:
        named = [name for name in columns or features if name.lower() in LABEL_NAMES]
        if not columns or len(named) == 1:
            columns = named
    if len(columns) > 1:
        raise ValueError(f"Several columns may hold the labels, {columns}: name one with `--label_column_name`.")
    return columns


def _element(feature):
    """The type of a column's values, or of the elements of its lists."""
    return feature.feature if _is_list(feature) else feature


def _is_list(feature) -> bool:
    return isinstance(feature, (datasets.List, datasets.LargeList))


@dataclass
class Labels:
    """
    The meaning of the labels of a data set.

    Args:
        columns: The label column, or several with one class each; none if there are no labels.
        names: Names of the classes.
        problem_type: Problem type as in Transformers' configurations.
        values: The value of each class in the column, if it is not the index.
        notes: Decisions about the labels, for people to read.
    """

    columns: list[str] = field(default_factory=list)
    names: list[str] | None = None
    problem_type: str | None = None
    values: list | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        values = range(len(self.names or [])) if self.values is None else self.values
        self._places = {value: place for place, value in enumerate(values)}

    @classmethod
    def of(
        cls,
        splits: datasets.Dataset | datasets.IterableDataset | Sequence,
        names: Sequence[str] | None = None,
        problem_type: str | None = None,
        num_labels: int | None = None,
    ) -> "Labels":
        """
        Read the meaning of label columns off their types and values.

        Single-label classes: ClassLabel, text, whole numbers (gaps allowed), booleans. Multi-label: lists of classes, and
        several columns of 0 and 1. Regression: numbers with fractions, or any if `problem_type` says so.

        Args:
            splits: One data set or several, whose classes are joined; the columns are the first one's.
            names: Names of the columns; see [`find_label_columns`].
            problem_type: `"regression"` for numbers that are whole, but no classes.
            num_labels: Number of classes of a stream whose labels are whole numbers from 0.

        Raises:
            ValueError: if a column cannot hold labels, or one of them cannot be used.
        """
        splits = [splits] if isinstance(splits, (datasets.Dataset, datasets.IterableDataset)) else list(splits)
        features = splits[0].features
        columns = find_label_columns(features, names)
        if not columns:
            return cls()
        if len(columns) > 1:
            for column in columns:
                if str(getattr(features[column], "dtype", "")).rstrip("0123456789") not in (
                    "bool",
                    "int",
                    "uint",
                    "float",
                ):
                    raise ValueError(f"Column '{column}' of the type {features[column]} is not one of 0 and 1.")
            return cls(columns, columns, "multi_label_classification")
        column, feature = columns[0], features[columns[0]]
        element, is_list = _element(feature), _is_list(feature)
        problem = f"{'multi' if is_list else 'single'}_label_classification"
        if isinstance(element, datasets.ClassLabel):
            labels = cls(columns, element.names, problem)
            found = set() if isinstance(splits[0], datasets.IterableDataset) else _distinct(splits, column)
            wrong = sorted(value for value in found if value not in labels._places and value not in _MISSING)
            if wrong:
                raise ValueError(
                    f"Column '{column}' holds the label {wrong[0]}, outside [0, {len(element.names)}): correct it, or write "
                    f"{UNLABELED} or None for images without a label."
                )
            return labels
        kind = str(getattr(element, "dtype", ""))
        if kind == "bool" and not is_list:
            return cls(columns, ["False", "True"], problem, [False, True])
        is_text = kind in ("string", "large_string")
        is_float = kind.startswith(("float", "double", "decimal"))
        if not is_text and not is_float and not kind.startswith(("int", "uint", "bool")):
            raise ValueError(f"Column '{column}' of the type {feature} cannot be used as labels.")
        if is_float and not is_list and not isinstance(splits[0], datasets.IterableDataset):
            _require_finite(splits, column)
        if problem_type == "regression" and not is_text and not is_list:
            return cls(columns, None, "regression")
        if isinstance(splits[0], datasets.IterableDataset):
            if is_float and not is_list:
                return cls(columns, None, "regression")
            if num_labels is not None and kind.startswith(("int", "uint")):
                note = f"the numbers in '{column}' are classes from 0 to {num_labels - 1}"
                return cls(columns, list(map(str, range(num_labels))), problem, notes=[note])
            raise ValueError(
                f"Column '{column}' of the type {feature} does not name its classes, and a stream cannot be searched for them: "
                "leave out `--streaming`, use a column of the type ClassLabel, or say how many classes there are if they are "
                """numbers from 0 (`--model_config '{"num_labels": 1000}'`)."""
            )
        if is_list and not is_text:
            size = _indicator_size(splits, column)
            if size:
                note = f"lists of {size} zeros and ones: each place is a class"
                return cls(columns, list(map(str, range(size))), problem, "indicators", [note])
        found, notes = _distinct(splits, column), []
        if is_float:
            if any(value != int(value) for value in found):
                if is_list:
                    raise ValueError(f"Column '{column}' holds lists of numbers that are no classes.")
                return cls(columns, None, "regression")
            note = f"the numbers in '{column}' are whole: they are classes, not a regression target"
            hint = """ (`--model_config '{"problem_type": "regression"}'` makes them one)"""
            found, notes = {int(value) for value in found}, [note + hint]
        if not is_text:
            negative = sorted(value for value in found if value < 0 and value != UNLABELED)
            if negative and (negative != [-1] or found <= {-1, 1}):
                raise ValueError(
                    f"Column '{column}' holds {negative[0]}, which may be a class or say that there is none: write the "
                    "classes as text or as numbers from 0, and nothing where there is no label."
                )
            found -= set(_MISSING)
        values = sorted(found)
        if not values:
            raise ValueError(f"Column '{column}' holds no label: name another one with `--label_column_name`.")
        seen = {}
        for value in values if is_text else ():
            other = seen.setdefault("".join(value.casefold().split()), value)
            if other != value:
                notes.append(f"the classes {other!r} and {value!r} differ in case or spaces alone: are they one?")
        return cls(columns, list(map(str, values)), problem, values, notes)

    def require_classes(self, job: str, dataset: datasets.Dataset | datasets.IterableDataset):
        """Raise a `ValueError` unless there is one class per image of a data set, for which `job` asks."""
        if self.problem_type != "single_label_classification":
            raise ValueError(
                f"{job} needs one class per image, but "
                + (
                    f"'{', '.join(self.columns)}' is for {self.problem_type}"
                    if self.columns
                    else "there are no labels"
                )
                + f": name a column of classes with `--label_column_name`. The columns are {list(dataset.features)}."
            )

    def encode(self, record: Mapping):
        """One image's label as the model takes it; -100 if there is none."""
        if not self.columns:
            return UNLABELED
        if len(self.columns) > 1:
            row = [record[column] for column in self.columns]
            known = [value for value in row if not _is_none(value)]
            if any(value not in (0, 1, UNLABELED) for value in known):
                raise ValueError(
                    f"The columns {self.columns} hold {known}: 0 and 1 can be used, and {UNLABELED} for what is not known."
                )
            if not known:
                return np.full(len(row), UNLABELED, dtype=np.float32)
            return np.array([0 if _is_none(value) else value for value in row], dtype=np.float32)
        value = record[self.columns[0]]
        if self.problem_type == "multi_label_classification":
            if value is None:
                return np.full(len(self.names), UNLABELED, dtype=np.float32)
            if self.values == "indicators":
                return np.asarray(value, dtype=np.float32)
            target = np.zeros(len(self.names), dtype=np.float32)
            target[[self._place(element) for element in value]] = 1
            return target
        if not self._is_label(value):
            return np.float32(UNLABELED) if self.problem_type == "regression" else UNLABELED
        return np.float32(value) if self.problem_type == "regression" else self._place(value)

    def _place(self, value) -> int:
        if value not in self._places:
            raise ValueError(f"The label '{value}' is not one of the classes, {self.names[:20]}.")
        return self._places[value]

    def _is_label(self, value) -> bool:
        if _is_none(value):
            return False
        if self.problem_type == "regression":
            return value != UNLABELED
        return isinstance(value, (str, bool)) or value not in _MISSING

    def is_label(self, *values) -> bool:
        """Decide whether an image with these entries in the label columns is labelled."""
        if len(self.columns) > 1:
            return any(not _is_none(value) and value != UNLABELED for value in values)
        if self.problem_type == "multi_label_classification":
            return values[0] is not None and (not values[0] or any(value != UNLABELED for value in values[0]))
        return bool(values) and self._is_label(values[0])

    def classes(self, dataset: datasets.Dataset) -> np.ndarray:
        """
        The class of every image of a data set, -100 for those without a label; for other problems than single-label ones,
        0 for every image with a label. Of shape `(num_images,)`.
        """
        result = np.full(len(dataset), UNLABELED)
        if not self.columns:
            return result
        columns = [values_of(dataset, column) for column in self.columns]
        if self.problem_type != "single_label_classification":
            result[[self.is_label(*row) for row in zip(*(column.to_pylist() for column in columns))]] = 0
            return result
        encoded = columns[0].combine_chunks().dictionary_encode()
        places = [
            self._place(value) if self._is_label(value) else UNLABELED for value in encoded.dictionary.to_pylist()
        ]
        # the last one, at -1, for missing values
        return np.array([*places, UNLABELED])[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def config_fields(self) -> dict:
        """The fields of a model configuration that follow from the labels."""
        if not self.columns:
            return {}
        names = self.names or ["LABEL_0"]
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": self.problem_type,
        }

    def find_labeled(self, dataset: datasets.Dataset, fraction: float = 1.0, seed: int = 0) -> list[int]:
        """
        The images whose label is used: all that have one, or a random `fraction` of each class, but at least one image.

        Raises:
            ValueError: if there are no labels to take a fraction of.
        """
        if not self.columns:
            if fraction < 1:
                raise ValueError(
                    f"`--label_fraction` needs labels, but there are only the columns {list(dataset.features)}."
                )
            return []
        classes = self.classes(dataset)
        generator = np.random.default_rng(seed)
        kept = []
        for label in np.unique(classes[classes != UNLABELED]):
            places = np.flatnonzero(classes == label)
            kept += generator.permutation(places)[: max(round(fraction * len(places)), 1)].tolist()
        return sorted(kept)


def _is_none(value) -> bool:
    return value is None or value == "" or value != value  # NaN


def values_of(split: datasets.Dataset, column: str) -> pa.ChunkedArray:
    """A column of a data set, in its order."""
    # in parts, each in one piece: rows that are drawn from a larger table come as so many tables
    parts = split.select_columns(column).with_format("arrow").iter(batch_size=10_000)
    parts = [part[column].combine_chunks() for part in parts]
    return pa.chunked_array(parts) if parts else split.with_format("arrow")[:][column]


def _require_finite(splits: Sequence[datasets.Dataset], column: str):
    for split in splits:
        values = values_of(split, column) if column in split.features else pa.chunked_array([[]], pa.float32())
        places = np.flatnonzero(pa.compute.is_inf(values.cast(pa.float64())).fill_null(False).to_numpy())
        if len(places):
            raise ValueError(
                f"Column '{column}' holds {values[int(places[0])]}: a label is a finite number, or empty if there is none."
            )


def _distinct(splits: Sequence[datasets.Dataset], column: str) -> set:
    """The labels in a column, or in its lists."""
    found = set()
    for split in splits:
        if column in split.features:
            values = values_of(split, column)
            if _is_list(split.features[column]):
                values = pa.compute.list_flatten(values)
            found |= {value for value in values.unique().to_pylist() if not _is_none(value)}
    return found


def _indicator_size(splits: Sequence[datasets.Dataset], column: str) -> int:
    """The length of lists of zeros and ones that say for each class whether it is there (-100: not known); 0 for lists of classes."""
    lists = [value for split in splits for value in values_of(split, column).to_pylist() if value is not None]
    sizes = {len(value) for value in lists}
    if len(sizes) != 1 or not all(set(value) <= {0, 1, UNLABELED} for value in lists):
        return 0
    # a list of classes would not repeat one
    return sizes.pop() if any(len(set(value)) < len(value) for value in lists) else 0


def imagenet_indices(names: Sequence[str]) -> list[int] | None:
    """Places of WordNet identifiers (such as n01440764) among the 1,000 classes of ImageNet-1K; `None` for others."""
    places = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
    return [places[name] for name in names] if all(name in places for name in names) else None
