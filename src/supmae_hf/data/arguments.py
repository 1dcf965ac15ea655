# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments that say which images and labels to use, and how pixels are read and cropped."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

from ..cli import Count, Number, Place, Positive, Seed, ShareAbove0, ShareBelow1, check


@dataclass
class ImageArguments:
    """A data set, and its columns: see docs/data.md."""

    dataset_name: str | None = HfArg(
        default=None, help="Data set on the Hub, or a folder of tables (CSV, JSON, Parquet) or of `save_to_disk`."
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of that data set.")
    image_column_name: str | None = HfArg(
        default=None, help="Column of the images: of the type Image, arrays, paths or bytes."
    )
    label_column_name: list[str] | None = HfArg(
        default=None, help="Column of the labels, or several of 0 and 1, one for each class."
    )
    on_bad_image: Literal["error", "skip"] = HfArg(
        default="error", help="Action for an image that cannot be decoded: stop, or use the next one instead."
    )

    def __post_init__(self):
        check(self)
        if self.on_bad_image not in ("error", "skip"):
            raise ValueError(f"`--on_bad_image` must be error or skip, got {self.on_bad_image}.")

    @property
    def skip_bad_images(self) -> bool:
        return self.on_bad_image == "skip"

    @property
    def source(self) -> str | None:
        """The folder or data set; `None` for scikit-learn's digits."""
        return self.dataset_name

    def folders(self) -> list[str]:
        """The folders of images that are named."""
        return []

    def sources(self) -> list[str]:
        """Everything that is read: folders, files and names of data sets on the Hub."""
        return [*self.folders(), *([self.dataset_name] if self.dataset_name else [])]

    def require_folders(self):
        """Raise a `FileNotFoundError` if a folder of images does not exist."""
        for folder in self.folders():
            if not os.path.isdir(folder):
                raise FileNotFoundError(f"'{folder}' is not a folder of images: check its name.")


@dataclass
class PixelArguments:
    """How images are read, normalised and cropped: see docs/data.md."""

    channels: list[Place] | None = HfArg(
        default=None, help="Indices of the images' channels to use, counted from 0; default: all."
    )
    pixel_range: list[Number] | None = HfArg(
        default=None,
        help="Pixel values that are black and white; default: by type, as 0 65535, and 0 1 for fractions.",
    )
    image_mean: list[Number] | None = HfArg(
        default=None, help="Mean of each channel, or one for all, of pixels in [0, 1]."
    )
    image_std: list[Positive] | None = HfArg(default=None, help="Standard deviation of each channel.")
    normalization: Literal["dataset"] | None = HfArg(
        default=None,
        help="dataset: mean and deviation of the training images. Default: the starting checkpoint's, or else ImageNet's "
        "for 8-bit RGB and the training images' for others.",
        metadata={"choices": ["dataset"]},
    )
    crop_scale: list[ShareAbove0] = HfArg(
        default_factory=lambda: [0.08, 1.0],
        help="Smallest and largest share of an image's area that a random training crop covers.",
    )
    horizontal_flip: bool = HfArg(default=True, help="Mirror half of the training images.")
    eval_crop_ratio: ShareAbove0 = HfArg(
        default=0.875,
        help="Side of the centre crop for evaluation over the shorter side of the resized image (224/256).",
    )


@dataclass
class DataArguments(ImageArguments, PixelArguments):
    """Images to train on and held-out images, and their labels: see docs/data.md."""

    train_dir: str | None = HfArg(
        default=None, help="Folder of training images, one sub-folder per class, or with train/ and val/ in it."
    )
    validation_dir: str | None = HfArg(
        default=None, help="Folder of held-out images, in the same layout or with the same columns."
    )
    unlabeled_dir: list[str] | None = HfArg(
        default=None,
        help="Folders of more training images, without labels; may be repeated.",
        metadata={"action": "extend"},
    )
    classification_branch: bool | None = HfArg(
        default=None, help="Train with labels: False leaves them aside (MAE). Default: if there are any."
    )
    train_val_split: ShareBelow1 = HfArg(
        default=0.1,
        help="Share of the training images to hold out if there is no held-out split; 0 to train on everything.",
    )
    label_fraction: ShareAbove0 = HfArg(
        default=1.0, help="Share of each class's training images that keep their label; the rest train as unlabelled."
    )
    label_seed: Seed = HfArg(default=0, help="Decides which images keep their label.")
    streaming: bool = HfArg(
        default=False, help="Read the training images as a stream instead of downloading them first."
    )
    shuffle_buffer_size: Count = HfArg(
        default=10_000, help="Images of a stream that are held in memory, from which the next one is drawn."
    )
    max_train_samples: Count | None = HfArg(default=None, help="Train on this many images at most.")
    max_eval_samples: Count | None = HfArg(default=None, help="Evaluate on this many images at most.")

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_name and self.train_dir:
            raise ValueError("`--dataset_name` and `--train_dir` both name training images: give one of them.")
        if self.validation_dir and not (self.train_dir or self.dataset_name):
            raise ValueError("`--validation_dir` needs `--train_dir` or `--dataset_name`.")
        if len(self.crop_scale) != 2 or not self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(
                f"`--crop_scale` needs two shares with 0 < smallest <= largest <= 1, got {self.crop_scale}."
            )
        if self.channels is not None and not self.channels:
            raise ValueError("`--channels` names none: leave it out to use all.")
        if self.pixel_range is not None and (len(self.pixel_range) != 2 or self.pixel_range[0] >= self.pixel_range[1]):
            raise ValueError(f"`--pixel_range` needs two numbers, LOW below HIGH, got {self.pixel_range}.")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("`--image_mean` and `--image_std` go together: give both.")
        if self.image_mean is not None and self.normalization:
            raise ValueError("`--normalization` and `--image_mean` both say how to normalise: give one of them.")

    @property
    def source(self) -> str | None:
        return self.train_dir or self.dataset_name

    def folders(self) -> list[str]:
        return [folder for folder in (self.train_dir, self.validation_dir, *(self.unlabeled_dir or [])) if folder]

    def describe(self) -> tuple[str, str | None]:
        """A name for the data set, and its identifier on the Hub if it is there."""
        if self.dataset_name and not Path(self.dataset_name).exists():
            return self.dataset_name, self.dataset_name
        return (Path(self.source).resolve().name if self.source else "scikit-learn's digits"), None


@dataclass
class EvaluationDataArguments(ImageArguments):
    """Images to evaluate on; by default the held-out digits."""

    split: str | None = HfArg(
        default=None, help="Split of that data set; default: validation, or else val or test. Features: all of them."
    )
    image_dir: str | None = HfArg(
        default=None, help="Folder of images, one sub-folder per class, or with train/ and val/ in it."
    )
    max_samples: Count | None = HfArg(default=None, help="At most this many images (of each split).")
    problem_type: Literal["regression"] | None = HfArg(
        default=None,
        help="regression: take whole numbers as numbers, not as classes.",
        metadata={"choices": ["regression"]},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_name and self.image_dir:
            raise ValueError("`--dataset_name` and `--image_dir` both name images: give one of them.")
        self.require_folders()

    @property
    def source(self) -> str | None:
        return self.image_dir or self.dataset_name

    def folders(self) -> list[str]:
        return [self.image_dir] if self.image_dir else []
