# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Image data sets: where they come from, which columns hold images and labels, and what happens to the pixels."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from packaging import version
from PIL import Image
from torchvision.transforms import v2
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig, to_pair
from ..modeling_supmae import UNLABELED


if version.parse(transformers.__version__) >= version.parse("5.4"):
    from transformers import ViTImageProcessor
else:
    from transformers import ViTImageProcessorFast as ViTImageProcessor


logger = logging.get_logger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# the same images are held out by every run, whatever its seed, so that fine-tuning never tests what pre-training saw
_SPLIT_SEED = 0


@dataclass
class DataArguments:
    """Where images and labels come from, and how images are cropped."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a local folder that `datasets.load_dataset` reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_dir: str | None = field(
        default=None, metadata={"help": "Folder of training images, one sub-folder per class (`imagefolder` layout)."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of held-out images, in the same layout."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Image column, if the data set has several columns of the type Image."}
    )
    label_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Label column, if there isn't exactly one of the type ClassLabel. Text and integers will do."
        },
    )
    train_val_split: float = field(
        default=0.1, metadata={"help": "Share of the training images to hold out if there is no held-out split."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={"help": "Smallest and largest share of an image's area that a random training crop covers."},
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    eval_crop_ratio: float = field(
        default=0.875,
        metadata={
            "help": "Side of the centre crop for evaluation over the shorter side of the resized image (224/256)."
        },
    )

    def __post_init__(self):
        if self.dataset_name and self.train_dir:
            raise ValueError("`--dataset_name` and `--train_dir` both name training images: give one of them.")
        if self.validation_dir and not self.train_dir:
            raise ValueError("`--validation_dir` needs `--train_dir`.")
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"`--train_val_split` must be between 0 and 1, got {self.train_val_split}.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"`--crop_scale` needs two shares with 0 < smallest <= largest <= 1, got {self.crop_scale}."
            )
        if not 0 < self.eval_crop_ratio <= 1:
            raise ValueError(f"`--eval_crop_ratio` must be above 0 and at most 1, got {self.eval_crop_ratio}.")


def load_digits() -> datasets.DatasetDict:
    """
    scikit-learn's 1,797 scans of handwritten digits (8x8, grey), of which a fixed fifth is held out, balanced over
    the classes. Needs no network.
    """
    from sklearn.datasets import load_digits as load_scikit_learn_digits

    digits = load_scikit_learn_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    records = {"image": [Image.fromarray(image) for image in pixels], "label": digits.target.tolist()}
    split = datasets.Dataset.from_dict(records, features=features).train_test_split(
        test_size=0.2, seed=_SPLIT_SEED, stratify_by_column="label"
    )
    return datasets.DatasetDict(train=split["train"], validation=split["test"])


def load_image_data(args: DataArguments) -> datasets.DatasetDict:
    """
    The data set that the arguments name, by default the digits, with the splits `train` and `validation`. Without a
    held-out split of its own, `args.train_val_split` of the training images are held out, the same in every run.
    """
    for folder in filter(None, (args.train_dir, args.validation_dir)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"'{folder}' is not a folder of images: check `--train_dir` and `--validation_dir`."
            )
    if args.train_dir:
        data_files = {"train": f"{args.train_dir}/**"}
        if args.validation_dir:
            data_files["validation"] = f"{args.validation_dir}/**"
        data = datasets.load_dataset("imagefolder", data_files=data_files)
    elif args.dataset_name:
        data = datasets.load_dataset(args.dataset_name, args.dataset_config_name)
    else:
        data = load_digits()
    if "train" not in data:
        raise ValueError(f"The data set has no split 'train', only {sorted(data)}: choose another data set or folder.")

    held_out = next((split for split in ("validation", "val", "test") if split in data), None)
    if held_out is None:
        label_column = find_label_column(data["train"].features, args.label_column_name)
        stratify = isinstance(data["train"].features.get(label_column), datasets.ClassLabel)
        try:
            split = data["train"].train_test_split(
                test_size=args.train_val_split, seed=_SPLIT_SEED, stratify_by_column=label_column if stratify else None
            )
        except ValueError as error:  # too few images of some class
            logger.warning(f"The held-out images are not balanced over the classes: {error}")
            split = data["train"].train_test_split(test_size=args.train_val_split, seed=_SPLIT_SEED)
        train, validation = split["train"], split["test"]
    else:
        train, validation = data["train"], data[held_out]
    return datasets.DatasetDict(
        train=_head(train, args.max_train_samples), validation=_head(validation, args.max_eval_samples)
    )


def _head(dataset: datasets.Dataset, size: int | None) -> datasets.Dataset:
    if size is None or size >= len(dataset):
        return dataset
    return dataset.shuffle(seed=_SPLIT_SEED).select(range(size))


def find_image_column(features: datasets.Features, name: str | None = None) -> str:
    """
    The column `name`, or else the only one of the type Image.

    Raises:
        ValueError: if there is no such column, or several.
    """
    columns = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name in columns or (name is None and len(columns) == 1):
        return name or columns[0]
    wanted = f"'{name}' is not a column" if name else f"{len(columns) or 'No'} columns are"
    raise ValueError(
        f"{wanted} of the type Image. The columns are {dict(features)}: name one with `--image_column_name`, after "
        "`cast_column(..., datasets.Image())` if it holds paths or bytes."
    )


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
    """What the label column means: class names, the problem type, and labels as the model takes them."""

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
        values = sorted(value for value in dataset.unique(column) if value is not None and value != UNLABELED)
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


def pixel_statistics(num_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for normalisation: ImageNet's, averaged over the channels unless there are three."""
    if num_channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (round(sum(IMAGENET_MEAN) / 3, 3),) * num_channels, (round(sum(IMAGENET_STD) / 3, 3),) * num_channels


def build_image_processor(config: SupMAEConfig, crop_ratio: float = 0.875) -> ViTImageProcessor:
    """
    The image processor of evaluation and inference: the shorter side resized bicubically to `image_size / crop_ratio`,
    centre crop, normalisation.
    """
    height, width = to_pair(config.image_size)
    mean, std = pixel_statistics(config.num_channels)
    if height == width:
        size = {"shortest_edge": round(height / crop_ratio)}
    else:
        size = {"height": round(height / crop_ratio), "width": round(width / crop_ratio)}
    return ViTImageProcessor(
        size=size,
        resample=Image.Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        do_convert_rgb=config.num_channels == 3,
        image_mean=list(mean),
        image_std=list(std),
    )


def build_train_transform(config: SupMAEConfig, args: DataArguments) -> v2.Transform:
    """The paper's augmentation for pre-training: random resized crop (bicubic) and horizontal flip, then normalised."""
    mean, std = pixel_statistics(config.num_channels)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                to_pair(config.image_size), scale=tuple(args.crop_scale), interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(0.5 if args.horizontal_flip else 0.0),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


class ImageDataset(torch.utils.data.Dataset):
    """
    Images and labels as the models take them.

    Args:
        dataset (`datasets.Dataset`): The records.
        config ([`SupMAEConfig`]): Of the model: image channels and patches.
        labels ([`Labels`]): The meaning of the label column.
        transform: From a PIL image to `pixel_values` of shape `(num_channels, height, width)`: a torchvision
            transform, or an image processor.
        image_column (`str`, *optional*): Image column, if there are several.
        fixed_masks (`bool`, *optional*, defaults to `False`):
            Whether each image comes with masking `noise` of its own that never changes, for evaluation.

    Raises:
        ValueError: when an image cannot be decoded; the message names its file, or its index.
    """

    _MODES = {1: "L", 3: "RGB", 4: "RGBA"}

    def __init__(
        self,
        dataset: datasets.Dataset,
        config: SupMAEConfig,
        labels: Labels,
        transform,
        image_column: str | None = None,
        fixed_masks: bool = False,
    ):
        if config.num_channels not in self._MODES:
            raise ValueError(
                f"Images have {list(self._MODES)} channels, but `num_channels` is {config.num_channels}: train on a "
                "data set of your own that yields `pixel_values`."
            )
        self.image_column = find_image_column(dataset.features, image_column)
        # decoded in __getitem__, where the image can be named if that fails
        self.dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        self._feature = datasets.Image()
        self._mode = self._MODES[config.num_channels]
        self.num_patches = config.num_patches
        self.labels = labels
        self.transform = transform
        self.fixed_masks = fixed_masks

    def __len__(self) -> int:
        return len(self.dataset)

    def _decode(self, record: dict, index: int) -> Image.Image:
        try:
            return self._feature.decode_example(record).convert(self._mode)
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            where = f"{record['path']} (image {index})" if record and record.get("path") else f"Image {index}"
            raise ValueError(
                f"{where} cannot be decoded ({error}): repair it or remove it from the data set."
            ) from error

    def __getitem__(self, index: int) -> dict:
        record = self.dataset[index]
        image = self._decode(record[self.image_column], index)
        if isinstance(self.transform, ViTImageProcessor):
            pixel_values = self.transform(image, return_tensors="pt")["pixel_values"][0]
        else:
            pixel_values = self.transform(image)
        label = UNLABELED if self.labels.column is None else self.labels.encode(record[self.labels.column])
        item = {"pixel_values": pixel_values, "labels": torch.as_tensor(label)}
        if self.fixed_masks:
            item["noise"] = torch.rand(self.num_patches, generator=torch.Generator().manual_seed(index))
        return item


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Stack the items of an [`ImageDataset`] into a batch."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
