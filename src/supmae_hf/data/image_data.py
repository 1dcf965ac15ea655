# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The images and labels of a job, and what people and runs are told about them."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..supervision_supmae import UNLABELED
from .labels import Labels


Split = datasets.Dataset | datasets.IterableDataset


@dataclass
class ImageData:
    """
    Images and labels of a job.

    Args:
        train: The training images, if it is not an evaluation.
        validation: The held-out images, or those to evaluate on, if there are any.
        image_column: The column of the images, which are not decoded (`datasets.Image(decode=False)`), or arrays.
        labels: Meaning of the label columns.
        held_out: Source of the held-out images, in words.
        notes: Decisions about the data, and images that are left out, a line each.
        more_columns: Columns of captions and dense labels.
        labeled_only: Whether a training stream passes over images without a label.
        skip_bad_images: Whether images that cannot be decoded are left out, or replaced by the next ones.
    """

    train: Split | None
    validation: Split | None
    image_column: str
    labels: Labels
    held_out: str = ""
    notes: list[str] = field(default_factory=list)
    skip_bad_images: bool = False
    more_columns: list[str] = field(default_factory=list)
    labeled_only: bool = False
    _classes: dict = field(default_factory=dict, repr=False)

    def classes(self, split: datasets.Dataset) -> np.ndarray:
        """[`Labels.classes`], once for each split, since it takes seconds of a million images."""
        if id(split) not in self._classes:
            self._classes[id(split)] = split, self.labels.classes(split)
        return self._classes[id(split)][1]

    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        names = {"training": self.train, "evaluation" if self.train is None else "held out": self.validation}
        return {name: split for name, split in names.items() if split is not None}

    def fingerprint(self) -> str:
        """A number that changes with the images, as far as their names and some sizes tell, and with their labels."""
        digest = hashlib.sha256()
        for split in self.splits().values():
            digest.update(repr((split.features, self.labels.columns, self.labels.names)).encode())
            if isinstance(split, datasets.IterableDataset):
                continue
            if self.labels.problem_type == "single_label_classification":
                digest.update(self.classes(split).tobytes())
            elif self.labels.columns:
                digest.update(split.select_columns(self.labels.columns).to_pandas().to_json().encode())
            for name in self.more_columns:
                if name in split.features:
                    more = split.data.column(name)
                    digest.update(repr((name, more.null_count, more.nbytes)).encode())
            column = split.data.column(self.image_column)
            if pa.types.is_struct(column.type):
                # the ends of the paths alone, so that a data set may be moved
                paths = pa.compute.struct_field(column, "path")
                for start in range(0, len(paths), 100_000):
                    names = [os.path.basename(path or "") for path in paths.slice(start, 100_000).to_pylist()]
                    digest.update("\n".join(names).encode())
                some = paths.take(np.arange(0, len(paths), max(len(paths) // 1000, 1))).to_pylist()
                files = [path for path in some if path and os.path.isfile(path)]
                digest.update(repr([os.path.getsize(path) for path in files]).encode())
                column = pa.compute.struct_field(column, "bytes")
            digest.update(repr((len(split), column.nbytes)).encode())
        return digest.hexdigest()[:16]

    def table(self) -> str:
        """Describe the data in a Markdown table and a few lines."""
        lines = ["| | images | labelled |", "|---|---|---|"]
        counts = None
        for name, split in self.splits().items():
            where = f" ({self.held_out})" if name != "training" and self.held_out else ""
            if isinstance(split, datasets.IterableDataset):
                lines.append(
                    f"| {name}{where} | a stream | {'with labels' if self.labels.columns else 'without labels'} |"
                )
                continue
            classes = self.classes(split)
            lines.append(f"| {name}{where} | {len(split)} | {int((classes != UNLABELED).sum())} |")
            counts = counts if counts is not None else classes
        names, notes = self.labels.names, [*self.labels.notes, *self.notes]
        if not self.labels.columns:
            lines += (
                []
                if self.more_columns
                else [
                    "",
                    "No labels"
                    + ("." if self.train is None else ": the reconstruction branch alone is trained (MAE)."),
                ]
            )
        elif self.labels.problem_type == "regression":
            lines += ["", f"Regression on '{self.labels.columns[0]}'."]
        else:
            shown = names[:10]
            if counts is not None and self.labels.problem_type == "single_label_classification":
                number = np.bincount(counts[counts >= 0], minlength=len(names))
                shown = [f"{name} {count}" for name, count in zip(names[:10], number)]
                empty = [name for name, count in zip(names, number) if not count]
                if empty and self.train is not None:
                    notes.append(f"no training image: {shortened(empty)}")
                if len(names) == 1 and self.train is not None:
                    notes.append("there is one class only, which teaches nothing")
            more = f", and {len(names) - 10} more" if len(names) > 10 else ""
            of = "" if self.labels.columns == ["label"] else f" (column{'s' * (len(self.labels.columns) > 1)} "
            of += f"{shortened(self.labels.columns)})" if of else ""
            several = ", several an image" if self.labels.problem_type == "multi_label_classification" else ""
            lines += ["", f"{len(names)} classes{several}{of}: {', '.join(shown)}{more}."]
        if notes:
            lines += ["", *(f"- {note}" for note in notes)]
        return "\n".join(lines)


def shortened(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
