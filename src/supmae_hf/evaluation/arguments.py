# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments that the evaluation scripts share."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from ..data.dataset import ImageDataset
from ..data.image_data import ImageData
from ..data.sources import load_evaluation_data, load_splits
from ..records import output_folder, require_apart
from ..training.ranges import check
from .tables import Journal


@dataclass
class DeviceArguments:
    """How images go through a model."""

    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images at a time, per device."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that load images, per device."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})

    def __post_init__(self):
        check(self)
        if not torch.accelerator.is_available():
            self.use_cpu = True
        self.state = PartialState(cpu=self.use_cpu)

    def options(self) -> dict:
        """How [`predict`] is to go about it."""
        return {
            "batch_size": self.per_device_eval_batch_size,
            "num_workers": self.dataloader_num_workers,
            "use_cpu": self.use_cpu,
        }


@dataclass
class EvaluationArguments(DeviceArguments):
    """Which models to evaluate, how, and where to."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoints, in folders or on the Hub: one row of the table each."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the table and the picture; default: outputs/ and the script's name."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Measure again what `--output_dir` has results for."}
    )

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
        The folder for results until the block ends, and those of its `results.jsonl`.

        Args:
            inputs: What is read beside the models.

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
    """Which encoder's features, and where to."""

    model: str | None = field(
        default=None, metadata={"help": "Checkpoint of any image encoder, in a folder or on the Hub."}
    )
    output_dir: str = field(default="outputs/features", metadata={"help": "Folder for the Parquet files."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Begin anew even if `--output_dir` holds other features: deletes them."}
    )
    pooling: str = field(
        default="model",
        metadata={
            "help": "What of an image's tokens the vector is: what the model's own classifier is given, the class token, or "
            "the mean of the patch tokens.",
            "choices": ["model", "cls", "mean"],
        },
    )
    tokens: bool = field(default=False, metadata={"help": "Write the tokens of the patches, too: a column `tokens`."})
    images_per_file: int = field(
        default=2000, metadata={"help": "Images of a Parquet file; an interrupted run loses those of one at most."}
    )
    nearest: list[str] | None = field(
        default=None, metadata={"help": "Image files: print and draw those whose vectors are nearest to theirs."}
    )
    num_nearest: int = field(default=8, metadata={"help": "How many, for each."})

    def __post_init__(self):
        super().__post_init__()
        if not self.model:
            raise ValueError("`--model` is missing: name a checkpoint, in a folder or on the Hub.")
        missing = [path for path in self.nearest or [] if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"`--nearest` names {missing[0]}, which is not a file.")


@dataclass
class EvaluationDataArguments:
    """Labelled images to evaluate on; by default the held-out digits."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Data set on the Hub, or a folder of tables (CSV, JSON, Parquet) or of `save_to_disk`."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    split: str | None = field(
        default=None, metadata={"help": "Split of that data set; default: validation, or else val or test."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, one sub-folder per class, or with train/ and val/ in it."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images: of the type Image, arrays, paths or bytes."}
    )
    label_column_name: list[str] | None = field(
        default=None, metadata={"help": "Column of the labels, if it is not found by its type or name."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    on_bad_image: str = field(
        default="error",
        metadata={"help": "What to do with an image that cannot be decoded.", "choices": ["error", "skip"]},
    )

    def __post_init__(self):
        if self.dataset_name and self.image_dir:
            raise ValueError("`--dataset_name` and `--image_dir` both name images: give one of them.")
        if self.image_dir and not Path(self.image_dir).is_dir():
            raise FileNotFoundError(f"'{self.image_dir}' is not a folder of images: check its name.")

    def sources(self) -> list[str]:
        """Where images are read from."""
        return [source for source in (self.dataset_name, self.image_dir) if source]

    def _source(self) -> dict:
        """The arguments as those of the functions that load images."""
        return {
            "source": self.image_dir or self.dataset_name,
            "config": self.dataset_config_name,
            "split": self.split,
            "max_samples": self.max_samples,
            "image_column": self.image_column_name,
            "label_columns": self.label_column_name,
        }

    def load(self) -> ImageData:
        """
        The images and their labels, as `validation`; says what they are.

        Raises:
            FileNotFoundError: if the data set does not exist.
            ValueError: if there is no such split, or not one class per image.
        """
        data = load_evaluation_data(**self._source())
        data.labels.require_classes("Evaluation", data.validation)
        if PartialState().is_main_process:
            print(f"\n{data.table()}\n", flush=True)
        return data

    def key(self, data: ImageData) -> dict:
        """What results are filed under: the arguments, and the data as they are now."""
        return {**vars(self), "fingerprint": data.fingerprint()}

    def build(self, data: ImageData, transform, num_channels: int = 3) -> ImageDataset:
        """The images as a model's inputs; see [`ImageDataset`]."""
        skip = self.on_bad_image == "skip"
        return ImageDataset(
            data.validation, data.labels, transform, num_channels, image_column=data.image_column, skip_bad_images=skip
        )


@dataclass
class FeatureDataArguments(EvaluationDataArguments):
    """Images, with labels or without; by default the digits."""

    split: str | None = field(default=None, metadata={"help": "Split of that data set; default: all of them."})
    max_samples: int | None = field(default=None, metadata={"help": "At most so many images of each split."})

    def load_splits(self) -> dict[str, ImageData]:
        """
        The images of each split, as `validation`; says what they are.

        Raises:
            FileNotFoundError: if the data set does not exist.
            ValueError: if there is no such split.
        """
        splits = load_splits(**self._source())
        if PartialState().is_main_process:
            for data in splits.values():
                print(f"\n{data.table()}", flush=True)
            print()
        return splits
