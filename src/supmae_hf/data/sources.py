# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Where images come from: folders, data sets of the Hub, scikit-learn's digits; which column holds them."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from sklearn import datasets as scikit_learn
from transformers.utils import logging

from .labels import find_label_column


logger = logging.get_logger(__name__)

# the same images are held out by every run, whatever its seed, so that fine-tuning never tests what pre-training saw
_SPLIT_SEED = 0
HELD_OUT_SPLITS = ("validation", "val", "test")


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
    digits = scikit_learn.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    records = {"image": [Image.fromarray(image) for image in pixels], "label": digits.target.tolist()}
    split = datasets.Dataset.from_dict(records, features=features).train_test_split(
        test_size=0.2, seed=_SPLIT_SEED, stratify_by_column="label"
    )
    return datasets.DatasetDict(train=split["train"], validation=split["test"])


def load_evaluation_split(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str | None = None,
    image_dir: str | None = None,
    max_samples: int | None = None,
) -> datasets.Dataset:
    """
    Images to evaluate on: a folder, a split (by default the held-out one) of a data set, or the held-out digits.

    Raises:
        FileNotFoundError: if the folder or data set does not exist.
        ValueError: if there is no such split.
    """
    if image_dir:
        data = load_image_folder(image_dir)
    else:
        splits = load_dataset(dataset_name, dataset_config_name) if dataset_name else load_digits()
        split = split or next((name for name in HELD_OUT_SPLITS if name in splits), None)
        if split not in splits:
            raise ValueError(f"The data set has no split '{split}', only {sorted(splits)}: name one with `--split`.")
        data = splits[split]
    return take(data, max_samples)


def load_training_splits(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    label_column: str | None = None,
    train_val_split: float = 0.1,
    streaming: bool = False,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """
    A data set, a folder or (by default) the digits, with the splits `train` and `validation`. Without a held-out split of
    its own, `train_val_split` of the training images are held out, the same in every run, balanced over the classes. With
    `streaming` the training images are an `IterableDataset`.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there are no training images, or a stream has no held-out split.
    """
    for folder in filter(None, (train_dir, validation_dir)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"'{folder}' is not a folder of images: check `--train_dir` and `--validation_dir`."
            )
    if train_dir:
        data_files = {"train": f"{train_dir}/**"}
        if validation_dir:
            data_files["validation"] = f"{validation_dir}/**"
        data = datasets.load_dataset("imagefolder", data_files=data_files, streaming=streaming)
    elif dataset_name:
        data = load_dataset(dataset_name, dataset_config_name, streaming=streaming)
    else:
        data = load_digits()
        if streaming:
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
    held_out = next((split for split in HELD_OUT_SPLITS if split in data), None)
    if held_out is not None:
        validation = data[held_out]
    elif streaming:
        raise ValueError(
            f"A stream needs a held-out split, but there is only {sorted(data)}: name one (`--validation_dir`), or "
            "leave out `--streaming`."
        )
    else:
        train, validation = _hold_out(train, train_val_split, find_label_column(train.features, label_column))
    splits = {"train": take(train, max_train_samples), "validation": take(validation, max_eval_samples)}
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(splits)


def _hold_out(train: datasets.Dataset, share: float, label_column: str | None):
    stratify = isinstance(train.features.get(label_column), datasets.ClassLabel)
    try:
        split = train.train_test_split(share, seed=_SPLIT_SEED, stratify_by_column=label_column if stratify else None)
    except ValueError as error:  # too few images of some class
        logger.warning(f"The held-out images are not balanced over the classes: {error}")
        split = train.train_test_split(share, seed=_SPLIT_SEED)
    return split["train"], split["test"]


def take(dataset, size: int | None):
    """At most `size` images, drawn at random (of a stream: the first)."""
    if isinstance(dataset, datasets.IterableDataset):
        return dataset if size is None else dataset.take(size)
    if size is None or size >= len(dataset):
        return dataset
    return dataset.shuffle(seed=_SPLIT_SEED).select(range(size))


def number_of_images(dataset: datasets.Dataset | datasets.IterableDataset, max_samples: int | None = None) -> int:
    """
    The training images of an epoch.

    Raises:
        ValueError: if a stream does not know, and `max_samples` does not say.
    """
    if not isinstance(dataset, datasets.IterableDataset):
        return len(dataset)
    splits = dataset.info.splits or {}
    known = splits["train"].num_examples if "train" in splits else None
    if not known and max_samples is None:
        raise ValueError(
            "The stream does not know how many images it has: say it with `--max_train_samples`, so that epochs and "
            "schedule can be computed."
        )
    return min(count for count in (known, max_samples) if count)


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
