# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments that the evaluation scripts share, and the table that they make of many models."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from transformers.hf_argparser import HfArg

from ..cli import Count, Workers, check
from ..data.arguments import EvaluationDataArguments
from ..data.image_data import ImageData
from ..data.sources import load_evaluation_data
from ..records import output_folder, require_apart
from .models import check_models, fingerprint
from .tables import Journal, write_accuracies, write_classes


@dataclass
class DeviceArguments:
    """Batch size, workers and device of an evaluation."""

    per_device_eval_batch_size: Count = HfArg(default=64, help="Images at a time, per device.")
    dataloader_num_workers: Workers = HfArg(default=0, help="Processes that load images, per device.")
    use_cpu: bool = HfArg(default=False, help="Do not use an accelerator.")

    def __post_init__(self):
        check(self)
        if not torch.accelerator.is_available():
            self.use_cpu = True
        self.state = PartialState(cpu=self.use_cpu)

    def say(self, *data: ImageData):
        """Print what images there are, in the first process."""
        if self.state.is_main_process:
            print("".join(f"\n{images.table()}\n" for images in data), flush=True)


@dataclass
class EvaluationArguments(DeviceArguments):
    """The models to evaluate, and the folder for the results."""

    models: list[str] = HfArg(
        default_factory=list, help="Checkpoints, in folders or on the Hub: one row of the table each."
    )
    output_dir: str | None = HfArg(
        default=None, help="Folder for the table and the picture; default: outputs/ and the script's name."
    )
    overwrite_output_dir: bool = HfArg(default=False, help="Measure again what `--output_dir` has results for.")

    def __post_init__(self):
        super().__post_init__()
        if not self.models:
            raise ValueError("`--models` is missing: name one checkpoint or more, in folders or on the Hub.")
        repeated = {name for name in self.models if self.models.count(name) > 1}
        if repeated:
            raise ValueError(f"`--models` names {', '.join(sorted(repeated))} more than once.")

    @contextmanager
    def open_output_dir(self, inputs: Iterable[str | None]) -> Iterator[tuple[Path, Journal]]:
        """
        Hold the folder for results, and the journal in it, until the block ends.

        Args:
            inputs: Files and folders that are read, beside the models.

        Raises:
            FileExistsError: if it holds files that this script has not written.
            ValueError: if it is, holds or lies in what is read.
        """
        script = Path(sys.argv[0]).stem
        folder = Path(self.output_dir or Path("outputs", script))
        require_apart(folder, [*self.models, *inputs])
        with output_folder(folder, {"job": script}, self.overwrite_output_dir) as record:
            with self.state.main_process_first():
                if self.state.is_main_process:
                    record.claim("results.jsonl")
                journal = Journal(folder / "results.jsonl", is_writer=self.state.is_main_process)
            yield folder, journal


@dataclass
class FeatureArguments(DeviceArguments):
    """The encoder whose features are computed, and the folder for them."""

    model: str | None = HfArg(default=None, help="Checkpoint of any image encoder, in a folder or on the Hub.")
    output_dir: str = HfArg(default="outputs/features", help="Folder for the Parquet files.")
    overwrite_output_dir: bool = HfArg(
        default=False, help="Begin anew even if `--output_dir` holds other features: deletes them."
    )
    pooling: Literal["model", "cls", "mean"] = HfArg(
        default="model",
        help="Vector of an image: the features that the model's own classifier is given, the class token, or the mean of the "
        "patch tokens.",
    )
    tokens: bool = HfArg(default=False, help="Write the tokens of the patches, too: a column `tokens`.")
    images_per_file: Count = HfArg(
        default=2000, help="Images of a Parquet file; an interrupted run loses those of one at most."
    )
    nearest: list[str] | None = HfArg(
        default=None, help="Image files: print and draw those whose vectors are nearest to theirs."
    )
    num_nearest: Count = HfArg(default=8, help="Number of nearest images for each.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model:
            raise ValueError("`--model` is missing: name a checkpoint, in a folder or on the Hub.")
        missing = [path for path in self.nearest or [] if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"`--nearest` names {missing[0]}, which is not a file.")


def data_key(data_args: EvaluationDataArguments, data: ImageData) -> dict:
    """The key of data in a journal: the arguments, and the images as they are now."""
    return {**vars(data_args), "fingerprint": data.fingerprint()}


def evaluate_models(
    args: EvaluationArguments,
    data_args: EvaluationDataArguments,
    loaders: Iterable[Callable],
    measure: Callable[[str, ImageData], dict],
    needs_classes: bool = True,
    **key,
):
    """
    Measure models on the same images, and print, write and draw the table. Results that the journal has are not measured again.

    Args:
        loaders: Functions that load a part of a model by its name: all models are loaded once before one is measured.
        measure: Function that returns a row of the table for the name of a model and the images, perhaps with a table of `classes`.
        needs_classes: Whether labels must be one class per image.
        key: Settings that the results depend on, beside model and data.

    Raises:
        ValueError: after the table of the others, if there are models that do not fit the data.
    """
    check_models(args.models, *loaders)
    with args.open_output_dir(data_args.sources()) as (folder, journal):
        data = load_evaluation_data(data_args, needs_classes=needs_classes)
        args.say(data)
        key["data"], rows, mistakes = data_key(data_args, data), [], []
        for name in args.models:
            try:
                rows.append(journal.result({"model": fingerprint(name), **key}, lambda name=name: measure(name, data)))
            except ValueError as error:  # of a model that does not fit the data; the others are in the table
                mistakes.append(f"'{name}': {error}" if name not in str(error) else str(error))
        classes = {row["model"]: row.pop("classes") for row in rows if "classes" in row}
        if args.state.is_main_process and rows:
            write_accuracies(rows, folder)
            if classes:
                write_classes(classes, folder)
        if mistakes:
            raise ValueError(" ".join(mistakes))
