# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Image data sets: where they come from, and which columns hold images and labels."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from transformers.utils import logging

from ..modeling_supmae import UNLABELED


logger = logging.get_logger(__name__)

# the same images are held out by every run, whatever its seed, so that fine-tuning never tests what pre-training saw
_SPLIT_SEED = 0
_HELD_OUT_SPLITS = ("validation", "val", "test")

# arguments of training and of evaluation
_image_column_field = field(
    default=None, metadata={"help": "Image column, if the data set has several columns of the type Image."}
)
_label_column_field = field(
    default=None,
    metadata={"help": "Label column, if there isn't exactly one of the type ClassLabel. Text and integers will do."},
)
_bad_image_field = field(
    default="error",
    metadata={
        "help": "What to do with an image that cannot be decoded: stop, or put the next one in its place.",
        "choices": ["error", "skip"],
    },
)


def _check_on_bad_image(value: str):
    if value not in ("error", "skip"):
        raise ValueError(f"`--on_bad_image` must be error or skip, got {value}.")


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
    image_column_name: str | None = _image_column_field
    label_column_name: str | None = _label_column_field
    train_val_split: float = field(
        default=0.1, metadata={"help": "Share of the training images to hold out if there is no held-out split."}
    )
    label_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of each class's training images that keep their label; the rest train as unlabelled."
        },
    )
    label_seed: int = field(default=0, metadata={"help": "Decides which images keep their label."})
    input_pipeline: str = field(
        default="fast",
        metadata={
            "help": "fast decodes and resizes training images in a fraction of the time; reference is torchvision on "
            "PIL images, as usual. Both take the same crops; pixels differ by rounding. (Not for fine-tuning, whose "
            "augmentation is timm's.)",
            "choices": ["fast", "reference"],
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training images as a stream instead of downloading them first."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Images among which a stream's next one is drawn; each is held in memory."}
    )
    on_bad_image: str = _bad_image_field
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

    def describe(self) -> tuple[str, str | None]:
        """A name for the data set, and its identifier on the Hub if it is there."""
        if self.dataset_name and not Path(self.dataset_name).exists():
            return self.dataset_name, self.dataset_name
        folder = self.dataset_name or self.train_dir
        return (Path(folder).resolve().name if folder else "scikit-learn's digits"), None

    def __post_init__(self):
        if self.dataset_name and self.train_dir:
            raise ValueError("`--dataset_name` and `--train_dir` both name training images: give one of them.")
        if self.validation_dir and not self.train_dir:
            raise ValueError("`--validation_dir` needs `--train_dir`.")
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"`--train_val_split` must be between 0 and 1, got {self.train_val_split}.")
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"`--label_fraction` must be above 0 and at most 1, got {self.label_fraction}.")
        if self.streaming and self.label_fraction < 1:
            raise ValueError(
                "`--label_fraction` counts the images of each class, which a stream does not allow: leave out "
                "`--streaming`, or mark unlabelled images with None in the data set."
            )
        if self.input_pipeline not in ("fast", "reference"):
            raise ValueError(f"`--input_pipeline` must be fast or reference, got {self.input_pipeline}.")
        _check_on_bad_image(self.on_bad_image)
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"`--crop_scale` needs two shares with 0 < smallest <= largest <= 1, got {self.crop_scale}."
            )
        if not 0 < self.eval_crop_ratio <= 1:
            raise ValueError(f"`--eval_crop_ratio` must be above 0 and at most 1, got {self.eval_crop_ratio}.")


@dataclass
class EvaluationDataArguments:
    """Labelled images to evaluate on; by default the held-out digits."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a local folder that `datasets.load_dataset` reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    split: str | None = field(
        default=None, metadata={"help": "Split of that data set; default: validation, or else val or test."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, one sub-folder per class (`imagefolder` layout)."}
    )
    image_column_name: str | None = _image_column_field
    label_column_name: str | None = _label_column_field
    max_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    on_bad_image: str = _bad_image_field

    def __post_init__(self):
        if self.dataset_name and self.image_dir:
            raise ValueError("`--dataset_name` and `--image_dir` both name images: give one of them.")
        _check_on_bad_image(self.on_bad_image)


def load_evaluation_data(args: EvaluationDataArguments) -> "tuple[datasets.Dataset, Labels]":
    """
    The images that the arguments name, and the meaning of their labels.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there is no such split, or not one class per image.
    """
    if args.image_dir:
        data = load_image_folder(args.image_dir)
    else:
        if args.dataset_name:
            data = load_dataset(args.dataset_name, args.dataset_config_name)
        else:
            data = load_digits()
        split = args.split or next((name for name in _HELD_OUT_SPLITS if name in data), None)
        if split not in data:
            raise ValueError(f"The data set has no split '{split}', only {sorted(data)}: name one with `--split`.")
        data = data[split]
    return _head(data, args.max_samples), Labels.of_classes(data, args.label_column_name, job="Evaluation")


def load_dataset(name: str, *args, **kwargs):
    """
    `datasets.load_dataset`, with one error for what does not exist and what cannot be reached.

    Raises:
        FileNotFoundError: if there is no such data set.
    """
    try:
        return datasets.load_dataset(name, *args, **kwargs)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"There is no data set '{name}' that can be read, neither a folder here nor a repository that the Hub gave us: "
            f"check its name and your connection. ({error})"
        ) from error


def load_image_folder(folder: str | Path) -> datasets.Dataset:
    """
    A folder with one sub-folder of images per class.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"'{folder}' is not a folder of images.")
    data = datasets.load_dataset("imagefolder", data_files={"train": f"{folder}/**"}, drop_labels=False)
    return data["train"]


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


def load_image_data(args: DataArguments) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """
    The data set that the arguments name, by default the digits, with the splits `train` and `validation`. Without a
    held-out split of its own, `args.train_val_split` of the training images are held out, the same in every run.
    With `args.streaming` the training images are an `IterableDataset`.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there are no training images, or a stream has no held-out split.
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
        data = datasets.load_dataset("imagefolder", data_files=data_files, streaming=args.streaming)
    elif args.dataset_name:
        data = load_dataset(args.dataset_name, args.dataset_config_name, streaming=args.streaming)
    else:
        data = load_digits()
        if args.streaming:
            size = datasets.SplitInfo("train", num_examples=len(data["train"]))
            data["train"] = data["train"].to_iterable_dataset(num_shards=8)
            data["train"].info.splits = datasets.SplitDict({"train": size})
    if "train" not in data:
        raise ValueError(f"The data set has no split 'train', only {sorted(data)}: choose another data set or folder.")

    train = data["train"]
    if train.features is None:
        raise ValueError(
            "The stream does not say which columns it has and of which types: leave out `--streaming`, or store the "
            "data set's features with it."
        )
    held_out = next((split for split in _HELD_OUT_SPLITS if split in data), None)
    if held_out is not None:
        validation = data[held_out]
    elif args.streaming:
        raise ValueError(
            f"A stream needs a held-out split, but there is only {sorted(data)}: name one (`--validation_dir`), or "
            "leave out `--streaming`."
        )
    else:
        label_column = find_label_column(train.features, args.label_column_name)
        stratify = isinstance(train.features.get(label_column), datasets.ClassLabel)
        try:
            split = train.train_test_split(
                test_size=args.train_val_split, seed=_SPLIT_SEED, stratify_by_column=label_column if stratify else None
            )
        except ValueError as error:  # too few images of some class
            logger.warning(f"The held-out images are not balanced over the classes: {error}")
            split = train.train_test_split(test_size=args.train_val_split, seed=_SPLIT_SEED)
        train, validation = split["train"], split["test"]

    train, validation = _head(train, args.max_train_samples), _head(validation, args.max_eval_samples)
    return (datasets.IterableDatasetDict if args.streaming else datasets.DatasetDict)(
        train=train, validation=validation
    )


def _head(dataset, size: int | None):
    if isinstance(dataset, datasets.IterableDataset):
        return dataset if size is None else dataset.take(size)
    if size is None or size >= len(dataset):
        return dataset
    return dataset.shuffle(seed=_SPLIT_SEED).select(range(size))


def number_of_images(dataset: datasets.Dataset | datasets.IterableDataset, args: DataArguments) -> int:
    """
    The training images of an epoch.

    Raises:
        ValueError: if a stream does not know, and `--max_train_samples` does not say.
    """
    if not isinstance(dataset, datasets.IterableDataset):
        return len(dataset)
    splits = dataset.info.splits or {}
    known = splits["train"].num_examples if "train" in splits else None
    if not known and args.max_train_samples is None:
        raise ValueError(
            "The stream does not know how many images it has: say it with `--max_train_samples`, so that epochs and "
            "schedule can be computed."
        )
    return min(count for count in (known, args.max_train_samples) if count)


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


def find_labeled(dataset: datasets.Dataset, labels: Labels, args: DataArguments) -> list[int]:
    """
    Which images are trained on with their label: those that have one, or `args.label_fraction` of each class's, but at
    least one.

    Raises:
        ValueError: if there are no labels to take a fraction of.
    """
    if labels.column is None:
        if args.label_fraction < 1:
            raise ValueError(
                f"`--label_fraction` needs labels, but there are only the columns {list(dataset.features)}."
            )
        return []
    classes = {}
    for index, value in enumerate(dataset[labels.column]):
        if labels.is_label(value):
            # lists of classes, and numbers, are no classes to balance
            classes.setdefault(value if isinstance(value, (int, str)) else None, []).append(index)
    generator = np.random.default_rng(args.label_seed)
    kept = []
    for key in sorted(classes, key=str):
        count = max(round(args.label_fraction * len(classes[key])), 1)
        kept += generator.permutation(classes[key])[:count].tolist()
    return sorted(kept)
