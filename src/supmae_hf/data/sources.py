# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Load images from folders, tables, data sets of the Hub or scikit-learn's digits, and choose those that are held out."""

import functools
import glob
import os
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from PIL import Image
from sklearn import datasets as scikit_learn

from ..supervision_supmae import UNLABELED
from .arguments import DataArguments, EvaluationDataArguments, ImageArguments
from .folders import HELD_OUT_SPLITS, check_names, find_splits, read_folder, to_dataset
from .idx import idx_folder, read_idx
from .image_data import ImageData, Split, shortened
from .labels import Labels, values_of
from .tars import find_parts, with_fields


# the same images are held out by every run, whatever its seed, so that fine-tuning never tests what pre-training saw
_SPLIT_SEED = 0
# names under which a column of paths, bytes or arrays is taken for the images
IMAGE_NAMES = (
    "image",
    "images",
    "img",
    "picture",
    "photo",
    "pixels",
    "file_name",
    "filename",
    "file",
    "path",
    "image_path",
)
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# which reader of `datasets` is for which files
_TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_TABLES |= {".tar": "webdataset"}


def load_dataset(name: str, *args, **kwargs) -> dict[str, Split]:
    """
    `datasets.load_dataset`, and folders of `save_to_disk`, with one error for what does not exist and what cannot be
    reached.

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if its files cannot be read.
    """
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            data = datasets.load_from_disk(name)
            splits = dict(data) if isinstance(data, datasets.DatasetDict) else {"train": data}
            if kwargs.get("streaming"):
                splits = {split: _stream(rows) for split, rows in splits.items()}
            return splits
        if glob.has_magic(name) and Path(name).is_dir():  # `datasets` takes the name of a folder for a pattern
            endings = [path.suffix.lower() for path in Path(name).rglob("*") if path.suffix.lower() in _TABLES]
            ending = max(endings, key=endings.count)
            kwargs |= {"data_dir": glob.escape(name), **({"sep": "\t"} if ending == ".tsv" else {})}
            name = _TABLES[ending]
        streaming = kwargs.pop("streaming", False)
        builder = datasets.load_dataset_builder(name, *args, **kwargs)
        files = builder.config.data_files or {}
        is_tar = bool(files) and all(str(file).endswith(".tar") for part in files.values() for file in part)
        features, types = find_parts([str(part[0]) for part in files.values()]) if is_tar else (None, [])
        if features is not None:
            builder = datasets.load_dataset_builder(name, *args, **kwargs, features=features)
        if streaming:
            splits = {
                split: _with_sizes(stream, split, files.get(split))
                for split, stream in builder.as_streaming_dataset().items()
            }
        else:
            builder.download_and_prepare()
            splits = dict(builder.as_dataset())
        return {split: with_fields(rows, types) for split, rows in splits.items()} if is_tar else splits
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"There is no data set '{name}' that can be read, neither a folder here nor a repository that the Hub gave us: "
            f"check its name and your connection. ({error})"
        ) from error
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid, tarfile.TarError) as error:
        raise ValueError(f"The files of '{name}' cannot be read as a table: {error.__cause__ or error}.") from error


def _stream(rows: datasets.Dataset) -> datasets.IterableDataset:
    """A data set as a stream that knows its size, in an order of its own."""
    stream = rows.shuffle(seed=_SPLIT_SEED).to_iterable_dataset(num_shards=max(min(len(rows), 64), 1))
    lengths = [len(shard) for shard in np.array_split(np.arange(len(rows)), stream.num_shards)]
    info = datasets.SplitInfo("train", num_examples=len(rows), shard_lengths=lengths)
    stream.info.splits = datasets.SplitDict({"train": info})
    return stream


def _with_sizes(stream: datasets.IterableDataset, split: str, files: list | None) -> datasets.IterableDataset:
    """A stream that knows how many rows its files have, if they are Parquet, or else how many bytes."""
    if not files or len(files) != stream.num_shards:
        return stream

    def size(url) -> int:
        system, path = fsspec.core.url_to_fs(str(url))
        if not path.endswith(".parquet"):
            return system.size(path)
        with system.open(path) as file:
            return pq.read_metadata(file).num_rows

    with ThreadPoolExecutor(32) as pool:
        sizes = list(pool.map(size, files))
    number = known_number_of_images(stream, split)
    if all(str(file).endswith(".parquet") for file in files):
        number = sum(sizes)
    info = datasets.SplitInfo(split, num_examples=number or 0, shard_lengths=sizes)
    stream.info.splits = datasets.SplitDict({split: info})
    return stream


def shard_sizes(stream: datasets.IterableDataset) -> tuple[list[int], bool]:
    """The sizes of a stream's files, all 1 if they are not known, and whether they are numbers of rows."""
    for info in (stream.info.splits or {}).values():
        if info.shard_lengths and len(info.shard_lengths) == stream.num_shards:
            return info.shard_lengths, sum(info.shard_lengths) == info.num_examples
    return [1] * stream.num_shards, False


@functools.cache
def load_digits() -> datasets.DatasetDict:
    """
    scikit-learn's 1,797 scans of handwritten digits (8x8, grey) with captions, of which a fixed fifth is held out, balanced
    over the classes. Needs no network.
    """
    digits = scikit_learn.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list("0123456789")),
        "caption": datasets.Value("string"),
    }
    features = datasets.Features(features)
    captions = [f"a scan of a handwritten {_DIGITS[label]}" for label in digits.target]
    images = [Image.fromarray(image) for image in pixels]
    records = {"image": images, "label": digits.target.tolist(), "caption": captions}
    split = datasets.Dataset.from_dict(records, features=features).train_test_split(
        test_size=0.2, seed=_SPLIT_SEED, stratify_by_column="label"
    )
    return datasets.DatasetDict(train=split["train"], validation=split["test"])


def is_table(folder: str | Path) -> bool:
    """Decide whether a folder holds a data set that `datasets` reads: tables, or the files of `save_to_disk`."""
    folders = [path for path in (Path(folder), Path(folder) / "data") if path.is_dir()]
    files = [file.name for path in folders for file in path.iterdir() if file.is_file()]
    if "state.json" in files or "dataset_dict.json" in files:
        return True
    names = [name for name in files if not name.startswith((".", "metadata."))]
    tables = [name for name in names if Path(name).suffix.lower() in _TABLES]
    return bool(tables) and len(tables) * 2 > len(names)


def open_splits(
    source: str | Path, config: str | None = None, streaming: bool = False
) -> tuple[dict[str, Split], list[str]]:
    """
    The splits of a folder of images, of tables or of IDX files (MNIST's format), or of a data set of the Hub, and what was left
    out. All rules for folders, in training and in evaluation, are in [`read_folder`], [`read_idx`] and here.

    Raises:
        FileNotFoundError: if there is no such folder or data set.
        ValueError: if it holds no images.
    """
    if not Path(source).is_dir() or is_table(source):
        splits = load_dataset(str(source), config, streaming=streaming)
        return {name: _with_absolute_paths(split, Path(source)) for name, split in splits.items()}, []
    if (idx := idx_folder(source)) is not None:
        splits, notes = read_idx(idx, config)
        return ({name: _stream(split) for name, split in splits.items()} if streaming else splits), notes
    folders = find_splits(source) or {"train": Path(source)}
    read = {name: read_folder(path) for name, path in folders.items()}
    names, notes = read["train"].names, [line for folder in read.values() for line in folder.left_out]
    splits = {}
    for name, folder in read.items():
        check_names(folder.names, names, str(folder.root))
        splits[name] = to_dataset(folder, names)
    if folders["train"] != Path(source):
        notes.insert(0, f"{source} has the splits {', '.join(path.name for path in folders.values())}")
        others = {path.name for path in Path(source).iterdir()} - {path.name for path in folders.values()}
        others = sorted(name for name in others if not name.startswith("."))
        if others:
            notes.insert(1, f"not used, since it is beside the splits: {shortened(others)}")
    return ({name: _stream(split) for name, split in splits.items()} if streaming else splits), notes


def _with_absolute_paths(split: Split, root: Path) -> Split:
    """The paths in a table that are relative to the folder that it lies in."""
    if isinstance(split, datasets.IterableDataset) or not root.is_dir():
        return split
    for column, feature in split.features.items():
        if (
            column.lower() in IMAGE_NAMES
            and getattr(feature, "dtype", None) in ("string", "large_string")
            and len(split)
        ):
            first = split[0][column]
            if first and not Path(first).is_absolute() and (root / first).is_file():
                values = [None if path is None else str(root / path) for path in split[column]]
                rest = split.remove_columns(column)
                return rest.add_column(column, values, feature=feature)
    return split


def find_image_column(features: datasets.Features, name: str | None = None) -> str:
    """
    The column `name`, or else the only one of the type Image, or else of arrays, or else the only one that holds images, paths or
    bytes and is called like one of [`IMAGE_NAMES`].

    Raises:
        ValueError: if there is no such column, or several.
    """

    def of(*types):
        return [column for column, feature in features.items() if isinstance(feature, types)]

    def is_file(feature) -> bool:
        return (
            isinstance(feature, dict)
            and {"bytes", "path"} & set(feature)
            or str(getattr(feature, "dtype", "")) in ("string", "large_string", "binary", "large_binary")
        )

    images, arrays = of(datasets.Image), of(datasets.Array2D, datasets.Array3D)
    files = [column for column, feature in features.items() if is_file(feature)]
    if name is not None:
        if name in (*images, *arrays, *files):
            return name
        raise ValueError(
            f"'{name}' is not a column of images, arrays, paths or bytes. The columns are {dict(features)}: name another one "
            "with `--image_column_name`."
        )
    columns = images or arrays
    if len(columns) != 1:  # masks are images, too
        columns = [column for column in columns or files if column.lower() in IMAGE_NAMES] or columns
    if len(columns) == 1:
        return columns[0]
    raise ValueError(
        f"{len(columns) or 'No'} columns hold images. The columns are {dict(features)}: name one with `--image_column_name`; "
        "paths and bytes will do."
    )


def undecoded(split: Split, column: str) -> Split:
    """Leave the images encoded: they are decoded later, where an error can name them."""
    if isinstance(split.features[column], (datasets.Array2D, datasets.Array3D)):
        return split
    return split.cast_column(column, datasets.Image(decode=False))


def _open(args: ImageArguments, data_dir: str | None = None) -> tuple[dict[str, Split], list[str]]:
    """The splits that arguments name, by default the digits, and what was left out; `data_dir`: a folder on the Hub."""
    args.require_folders()
    source, streaming = args.source, getattr(args, "streaming", False)
    if data_dir is not None:
        return load_dataset(source, args.dataset_config_name, data_dir=data_dir), []
    if source is not None:
        return open_splits(source, args.dataset_config_name, streaming)
    return ({name: _stream(split) for name, split in load_digits().items()} if streaming else load_digits()), []


def _choose_split(splits: dict[str, Split], name: str | None) -> str:
    if name not in splits:
        raise ValueError(f"The data set has no split '{name}', only {sorted(splits)}: name one with `--split`.")
    return name


def load_evaluation_data(
    args: EvaluationDataArguments, data_dir: str | None = None, needs_classes: bool = True
) -> ImageData:
    """
    Images to evaluate on, as `validation` of the result: those of a folder (if it has splits, the held-out ones), of a split (by
    default the held-out one) of a data set, or the held-out digits.

    Args:
        data_dir: A folder in a repository of the Hub.
        needs_classes: Whether labels must be one class per image.

    Raises:
        FileNotFoundError: if the folder or data set does not exist.
        ValueError: if there is no such split, no column of images, or no such labels.
    """
    splits, notes = _open(args, data_dir)
    name = args.split or next((name for name in HELD_OUT_SPLITS if name in splits), None)
    if name is None and list(splits) == ["train"] and (data_dir or Path(args.source).is_dir()):
        name = "train"
        notes.append(
            f"{args.source} has no splits, and all of its images are measured: those that a model was trained on say nothing. "
            f"Hold some out, as {args.source}/train and {args.source}/val"
        )
    data = splits[_choose_split(splits, name)]
    everything = list(splits.values()) if len(splits) > 1 else data
    labels = Labels.of(everything, args.label_column_name, args.problem_type)
    if needs_classes or not labels.columns:
        labels.require_classes("Evaluation", data)
    return _images_of(args, data, labels, f"split '{name}'" if len(splits) > 1 else "", notes)


def load_splits(args: EvaluationDataArguments) -> dict[str, ImageData]:
    """
    Every split, or `args.split`, of a folder, a data set or (by default) the digits, as `validation` of an [`ImageData`] of its
    own. Errors are those of [`load_evaluation_data`], but images may have no labels.
    """
    splits, notes = _open(args)
    loaded = {}
    for name in splits if args.split is None else [_choose_split(splits, args.split)]:
        labels = Labels.of(splits[name], args.label_column_name)
        where = f"split '{name}'" if len(splits) > 1 else ""
        loaded[name] = _images_of(args, splits[name], labels, where, notes if not loaded else [])
    return loaded


def _images_of(args: EvaluationDataArguments, split: Split, labels: Labels, where: str, notes: list[str]) -> ImageData:
    column = find_image_column(split.features, args.image_column_name)
    where = where or f"from {args.source}"
    images = take(undecoded(split, column), args.max_samples)
    return ImageData(None, images, column, labels, where, notes, skip_bad_images=args.skip_bad_images)


def load_training_data(
    args: DataArguments, problem_type: str | None = None, num_labels: int | None = None
) -> ImageData:
    """
    A data set, a folder or (by default) the digits. Without a held-out split of its own, `train_val_split` of the training
    images are held out, the same in every run, balanced over the classes. With `streaming` the images are an
    `IterableDataset`.

    Args:
        args: Arguments that name the images; `--help` describes each.
        problem_type, num_labels: See [`Labels.of`].

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there are no training images, or a stream has no held-out split; if no image is labelled although
            the user named a label column, or the folder has sub-folders.
    """
    unlabeled = args.unlabeled_dir or []
    if args.source is None and unlabeled:  # which is all there is
        splits, notes = open_splits(unlabeled[0])
        splits, unlabeled = {"train": splits["train"].select_columns("image")}, unlabeled[1:]
    else:
        splits, notes = _open(args)
    source, label_columns, streaming = args.source, args.label_column_name, args.streaming
    if "train" not in splits:
        raise ValueError(
            f"The data set has no split 'train', only {sorted(splits)}: choose another data set or folder."
        )
    train = splits["train"]
    if train.features is None:
        raise ValueError(
            "The stream does not say which columns it has and of which types: leave out `--streaming`, or store the "
            "data set's features with it."
        )
    held_out = {name: splits[name] for name in HELD_OUT_SPLITS if name in splits}
    if args.validation_dir is not None:
        if held_out:
            notes.append(f"{', '.join(held_out)} of {source} is not used: `--validation_dir` is")
        more, more_notes = open_splits(args.validation_dir)
        if len(more) > 1:
            raise ValueError(
                f"`--validation_dir` {args.validation_dir} has the splits {sorted(more)}: name one of them."
            )
        held_out, notes = {str(args.validation_dir): more["train"]}, notes + more_notes
    if not streaming:
        for name, split in held_out.items():
            held_out[name] = _with_classes_of(train, split, name)

    image_column = find_image_column(train.features, args.image_column_name)
    labels = Labels()
    if args.classification_branch is not False:
        labels = Labels.of([train, *held_out.values()], label_columns, problem_type, num_labels)
        _require_labels(train, labels, image_column, args)
    if labels.columns and not label_columns and labels.columns != ["label"]:
        notes.append(f"the labels are the column '{labels.columns[0]}'")
    if image_column != "image" or sum(isinstance(x, datasets.Image) for x in train.features.values()) > 1:
        notes.append(f"the images are the column '{image_column}'")
    train = undecoded(train, image_column)
    held_out = {name: undecoded(split, image_column) for name, split in held_out.items()}

    name, validation = _choose_held_out(train, held_out, labels, is_given=args.validation_dir is not None)
    if name is not None:
        words = f"from {name}" if args.validation_dir else f"split '{name}'"
        if not streaming:
            files, aside = (_files_of(split, image_column) for split in (train, validation))
            if both := pa.compute.is_in(files, value_set=aside, skip_nulls=True).true_count:
                notes.append(
                    f"{both} training images are held out, too, which makes results look better than they are"
                )
        blank = isinstance(validation, datasets.Dataset) and (labels.classes(validation) == UNLABELED).all()
        if labels.columns and blank:
            notes.append("the held-out images have no labels")
    else:
        for split in held_out:
            notes.append(f"the split '{split}' has no labels and is not used")
        if streaming:
            raise ValueError(
                f"A stream needs a held-out split, but there is only {sorted(splits)}: name one (`--validation_dir`), or "
                "leave out `--streaming`."
            )
        # a folder has no file twice
        may_repeat = args.train_val_split > 0 and not _is_folder(source)
        files = _files_of(train, image_column) if may_repeat else pa.nulls(len(train), pa.string())
        train, validation = _hold_out(train, labels.classes(train), files, args.train_val_split)
        if again := len(files) - files.null_count - pa.compute.count_distinct(files, "only_valid").as_py():
            notes.append(f"{again} times an image comes again: none is both trained on and held out")
        words = f"{args.train_val_split:.0%} of the training images, the same in every run"
    train, more_notes = _add_unlabeled(train, validation, unlabeled, image_column)
    if not streaming:  # a stream draws the images of an epoch itself
        train = take(train, args.max_train_samples)
    validation = None if validation is None else take(validation, args.max_eval_samples)
    notes += more_notes
    return ImageData(train, validation, image_column, labels, words, notes, skip_bad_images=args.skip_bad_images)


def load_labeled_data(
    args: DataArguments, job: str, fields: Mapping | None = None, needs_classes: bool = True
) -> ImageData:
    """
    [`load_training_data`] without the training images that have no label.

    Args:
        job: Name of the job that needs labels, for errors.
        fields: Fields of the model's configuration, of which `problem_type` and `num_labels` say what labels are.
        needs_classes: Whether labels must be one class per image.

    Raises:
        ValueError: if there are no labels, those of another kind, or a single class.
    """
    fields = fields or {}
    if args.classification_branch is False:
        raise ValueError(f"{job} needs labels: leave out `--classification_branch False`.")
    problem_type = None if needs_classes else fields.get("problem_type")
    data = load_training_data(args, problem_type, fields.get("num_labels"))
    if needs_classes or not data.labels.columns:
        data.labels.require_classes(job, data.train)
    if isinstance(data.train, datasets.IterableDataset):
        data.labeled_only = True
        if args.label_fraction < 1:
            raise ValueError(f"{job} on a part of the labels reads all images: leave out `--streaming`.")
        return data
    labeled = data.labels.find_labeled(data.train, args.label_fraction, args.label_seed)
    if not labeled:
        raise ValueError(f"{job} needs labels, but column '{data.labels.columns[0]}' has none.")
    if data.labels.problem_type == "single_label_classification" and len(data.labels.names) == 1:
        raise ValueError(
            f"{job} needs two classes or more, but all images are of the class '{data.labels.names[0]}': a class is a "
            "sub-folder, or a value of the label column."
        )
    if len(labeled) < len(data.train):
        data.notes.append(f"{len(data.train) - len(labeled)} training images without a label are left out")
        data.train = data.train.select(labeled)
    return data


def _require_labels(train: Split, labels: Labels, image_column: str, args: DataArguments):
    if isinstance(train, datasets.IterableDataset) or (labels.classes(train) != UNLABELED).any():
        return
    way_out = "pass `--classification_branch False` to train without labels (MAE)."
    if args.label_column_name or args.classification_branch:
        where = f"in {labels.columns}" if labels.columns else f"among the columns {list(train.features)}"
        raise ValueError(
            f"No training image has a label {where}: name a column with `--label_column_name`, or {way_out}"
        )
    source = args.source
    if _is_folder(source):
        root = find_splits(source).get("train", Path(source))
        below = [path for path in _files_of(train, image_column).to_pylist() if path and Path(path).parent != root]
        if below:
            raise ValueError(
                f"{root} has sub-folders, such as {Path(below[0]).parent.name}, but its metadata give no image a label: name "
                f"one of the columns {list(train.features)} with `--label_column_name`, or {way_out}"
            )


def _with_classes_of(train: datasets.Dataset, split: datasets.Dataset, name: str) -> datasets.Dataset:
    """A held-out split in which a class has the number that it has in the training images."""
    for column, feature in train.features.items():
        if column not in split.features:
            split = split.add_column(column, [None] * len(split), feature=feature)
    for column, feature in split.features.items():
        wanted = train.features.get(column)
        both = isinstance(feature, datasets.ClassLabel) and isinstance(wanted, datasets.ClassLabel)
        if both and feature.names != wanted.names:
            check_names(feature.names, wanted.names, name)
            place = [wanted.names.index(class_name) for class_name in feature.names]
            codes = [None if value is None else place[value] if value >= 0 else value for value in split[column]]
            split = split.remove_columns(column).add_column(column, codes, feature=wanted)
    return split


def _choose_held_out(train: Split, held_out: dict[str, Split], labels: Labels, is_given: bool):
    """The first split with labels; one without if the user named it, or if there are no labels at all."""
    for name, split in held_out.items():
        if is_given or not labels.columns or isinstance(split, datasets.IterableDataset):
            return name, split
        if set(labels.columns) <= set(split.features) and (labels.classes(split) != UNLABELED).any():
            return name, split
    if held_out and not (labels.classes(train) != UNLABELED).any():
        return next(iter(held_out.items()))
    return None, None


def _is_folder(source: str | None) -> bool:
    """Decide whether a source is a folder of images, or of IDX files."""
    return source is not None and Path(source).is_dir() and not is_table(source)


def _files_of(split: datasets.Dataset, image_column: str) -> pa.Array:
    """The file of each image; null for those in the data set itself."""
    values = values_of(split, image_column).combine_chunks()
    if not pa.types.is_struct(values.type):
        return pa.nulls(len(split), pa.string())
    paths, content = (pa.compute.struct_field(values, name) for name in ("path", "bytes"))
    return pa.compute.if_else(pa.compute.is_null(content), paths, None)


def _hold_out(
    train: datasets.Dataset, classes: np.ndarray, files: pa.Array, share: float
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """
    Put a share of each class aside, at random, but never the last image of a class, and in all at least one. Rows of the same file
    stay together.
    """
    if share == 0:
        return train, None
    places = files.dictionary_encode().indices.fill_null(-1).to_numpy()
    images, _ = pd.factorize(np.where(places < 0, len(files) + np.arange(len(files)), places))
    _, first = np.unique(images, return_index=True)
    classes = classes[first]
    generator = np.random.default_rng(_SPLIT_SEED)
    groups = [generator.permutation(np.flatnonzero(classes == label)) for label in np.unique(classes)]
    wanted = np.array([share * len(group) for group in groups])
    counts = np.floor(wanted).astype(int)
    missing = max(round(share * len(classes)), 1) - counts.sum()
    for place in np.argsort(counts - wanted, kind="stable")[: max(missing, 0)]:  # the largest remainders
        counts[place] += 1
    counts = [min(count, len(group) - 1) for count, group in zip(counts, groups)]
    labeled = np.unique(classes) != UNLABELED
    if labeled.any() and not sum(np.array(counts)[labeled]):  # or else nothing could be said of the labels
        largest = max(np.flatnonzero(labeled), key=lambda place: len(groups[place]))
        counts[largest] = min(1, len(groups[largest]) - 1)
    if not sum(counts):
        raise ValueError(
            f"{len(train)} training images are too few to hold out some of each class: name held-out images with "
            "`--validation_dir`, or pass `--train_val_split 0`."
        )
    aside = np.zeros(len(classes), dtype=bool)
    for count, group in zip(counts, groups):
        aside[group[:count]] = True
    aside = aside[images]
    return train.select(np.flatnonzero(~aside)), train.select(np.flatnonzero(aside))


def _add_unlabeled(train: Split, validation: Split | None, sources: Sequence[str], image_column: str):
    """The training images, and those of folders of images without labels."""
    notes = []
    if not sources:
        return train, notes
    if isinstance(train, datasets.IterableDataset):
        raise ValueError(
            "`--unlabeled_dir` adds images to those of a folder, not to a stream: leave out `--streaming`."
        )
    if not isinstance(train.features[image_column], datasets.Image):
        raise ValueError("`--unlabeled_dir` adds files, but the training images are arrays.")
    known = set()
    for split in filter(None, (train, validation)):
        known |= {os.path.realpath(path) for path in _files_of(split, image_column).to_pylist() if path}
    parts = [train]
    for source in sources:
        if (idx := idx_folder(source)) is not None:
            splits, idx_notes = read_idx(idx)
            images = datasets.concatenate_datasets([split.select_columns("image") for split in splits.values()])
            notes += [*idx_notes, f"{len(images)} images without labels from {source}"]
            parts.append(images if image_column == "image" else images.rename_column("image", image_column))
            continue
        folder = read_folder(source)
        images = to_dataset(folder).select_columns("image")
        new = []
        for place, path in enumerate(map(os.path.realpath, folder.paths)):
            if path not in known:
                new.append(place)
                known.add(path)
        notes += [*folder.left_out, f"{len(new)} images without labels from {source}"]
        if len(new) < len(images):
            notes.append(f"{len(images) - len(new)} images of {source} are there already, in training or held out")
        if new:
            images = images if image_column == "image" else images.rename_column("image", image_column)
            parts.append(images.select(new))
    return datasets.concatenate_datasets(parts), notes


def take(dataset: Split, size: int | None) -> Split:
    """At most `size` images, drawn at random (of a stream: among ten times as many, or the first 10,000 more)."""
    if size is None:
        return dataset
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.shuffle(seed=_SPLIT_SEED, buffer_size=min(10 * size, 10_000)).take(size)
    return dataset if size >= len(dataset) else dataset.shuffle(seed=_SPLIT_SEED).select(range(size))


def known_number_of_images(stream: datasets.IterableDataset, split: str = "train") -> int | None:
    """The images of a stream, if it knows."""
    splits = stream.info.splits or {}
    return splits[split].num_examples or None if split in splits else None


def number_of_images(dataset: Split, max_samples: int | None = None) -> int:
    """
    The training images of an epoch.

    Args:
        max_samples: Largest number of images.

    Raises:
        ValueError: if a stream does not know, and `max_samples` does not say.
    """
    if not isinstance(dataset, datasets.IterableDataset):
        return len(dataset)
    known = known_number_of_images(dataset)
    if not known and max_samples is None:
        raise ValueError(
            "The stream does not know how many images it has: say it with `--max_train_samples`, so that epochs and "
            "schedule can be computed."
        )
    return min(count for count in (known, max_samples) if count)
