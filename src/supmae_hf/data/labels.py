# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What a label column means: class names, the problem type, and labels as the models take them."""

from dataclasses import dataclass
from functools import cached_property

import datasets
import numpy as np

from ..modeling_supmae import UNLABELED


def find_label_column(features: datasets.Features, name: str | None = None) -> str | None:
    """
    The column `name`, or else the only one of the type ClassLabel (or list of ClassLabel, for multi-label problems);
    `None` if there is none.

    Raises:
        ValueError: if there are several, or `name` is not a column.
    """
    if name is not None:
        if name not in features:
            raise ValueError(f"There is no label column '{name}': the columns are {list(features)}.")
        return name
    columns = [column for column, feature in features.items() if _class_label(feature) is not None]
    if len(columns) > 1:
        raise ValueError(f"Several columns hold classes, {columns}: name one with `--label_column_name`.")
    return columns[0] if columns else None


def _class_label(feature) -> datasets.ClassLabel | None:
    """The class names of a column of classes, or of lists of classes."""
    element = getattr(feature, "feature", feature)
    return element if isinstance(element, datasets.ClassLabel) else None


@dataclass
class Labels:
    """
    Args:
        column: The label column, `None` if there is none.
        names: Of the classes.
        problem_type: As in Transformers' configurations.
    """

    column: str | None
    names: list[str] | None = None
    problem_type: str | None = None

    @classmethod
    def of(cls, dataset: datasets.Dataset, name: str | None = None) -> "Labels":
        """
        Read the meaning of a label column off its type: ClassLabel, text and integers are single-label classes, lists
        of ClassLabel multi-label ones, and floating-point numbers a regression target.

        Raises:
            ValueError: if the column is of another type, or holds a label outside of its classes.
        """
        column = find_label_column(dataset.features, name)
        if column is None:
            return cls(None)
        feature = dataset.features[column]
        class_label = _class_label(feature)
        if class_label is not None and class_label is not feature:
            return cls(column, class_label.names, "multi_label_classification")
        dtype = getattr(feature, "dtype", "")
        if dtype.startswith("float"):
            return cls(column, None, "regression")
        is_text = dtype.startswith(("string", "large_string"))
        if not is_text and not dtype.startswith(("int", "uint")):
            raise ValueError(f"Column '{column}' of the type {feature} cannot be used as labels.")
        if isinstance(dataset, datasets.IterableDataset):
            if class_label is None:
                raise ValueError(
                    f"Column '{column}' of the type {feature} does not name its classes, and a stream cannot be "
                    "searched for them: leave out `--streaming`, or use a column of the type ClassLabel."
                )
            return cls(column, class_label.names, "single_label_classification")
        # without the images, of which `unique` may make a copy
        values = dataset.select_columns(column).unique(column)
        values = sorted(value for value in values if value is not None and value != UNLABELED)
        if class_label is not None:
            names = class_label.names
        elif is_text:
            names = values
        else:
            names = [str(index) for index in range(max(values, default=-1) + 1)]
        if not is_text and values and not 0 <= values[0] <= values[-1] < len(names):
            wrong = values[0] if values[0] < 0 else values[-1]
            raise ValueError(
                f"Column '{column}' holds the label {wrong}, outside [0, {len(names)}): correct it, or write "
                f"{UNLABELED} or None for images without a label."
            )
        return cls(column, names, "single_label_classification")

    @classmethod
    def of_classes(cls, dataset: datasets.Dataset, name: str | None, job: str) -> "Labels":
        """
        [`~Labels.of`], where `job` needs one class per image.

        Raises:
            ValueError: if the label column holds anything else.
        """
        labels = cls.of(dataset, name)
        if labels.problem_type != "single_label_classification":
            raise ValueError(
                f"{job} needs one class per image, but the label column is {labels.column}: name a column of classes "
                f"with `--label_column_name`. The columns are {list(dataset.features)}."
            )
        return labels

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def encode(self, value):
        """One image's label as the model takes it; -100 if there is none."""
        if self.problem_type == "multi_label_classification":
            target = np.full(len(self.names), UNLABELED if value is None else 0, dtype=np.float32)
            target[value or []] = 1
            return target
        if self.problem_type == "regression":
            return np.float32(UNLABELED if value is None else value)
        if value is None:
            return UNLABELED
        if isinstance(value, str) and value not in self._indices:
            raise ValueError(f"The label '{value}' is not one of the training images' labels, {self.names}.")
        return self._indices[value] if isinstance(value, str) else value

    def is_label(self, value) -> bool:
        """Whether an image with this entry in the label column is labelled."""
        return self.column is not None and value is not None and value != UNLABELED

    def config_fields(self) -> dict:
        """The fields of a model configuration that follow from the labels."""
        if self.column is None:
            return {}
        names = self.names or ["LABEL_0"]
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": self.problem_type,
        }

    def find_labeled(self, dataset: datasets.Dataset, fraction: float = 1.0, seed: int = 0) -> list[int]:
        """
        Which images are trained on with their label: those that have one, or a `fraction` of each class's, but at least
        one; `seed` decides which.

        Raises:
            ValueError: if there are no labels to take a fraction of.
        """
        if self.column is None:
            if fraction < 1:
                raise ValueError(
                    f"`--label_fraction` needs labels, but there are only the columns {list(dataset.features)}."
                )
            return []
        classes = {}
        for index, value in enumerate(dataset[self.column]):
            if self.is_label(value):
                # lists of classes, and numbers, are no classes to balance
                classes.setdefault(value if isinstance(value, (int, str)) else None, []).append(index)
        generator = np.random.default_rng(seed)
        kept = []
        for key in sorted(classes, key=str):
            count = max(round(fraction * len(classes[key])), 1)
            kept += generator.permutation(classes[key])[:count].tolist()
        return sorted(kept)
