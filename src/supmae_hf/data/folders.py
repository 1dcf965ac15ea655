# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of images: which files are images, and of which class."""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets.table import InMemoryTable
from PIL import Image

from ..image_processing_supmae import pillow_heif


TRAIN_SPLITS = ("train", "training")
# the names that `datasets` knows, in the order in which one is chosen to be held out
HELD_OUT_SPLITS = ("validation", "val", "valid", "dev", "test", "testing", "eval", "evaluation")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

# what Pillow opens and is no image to learn from: documents, drawings, videos, and stubs without a decoder
_NO_IMAGES = ("PDF", "EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5")
_ARCHIVES = ("zip", "tar", "gz", "tgz", "bz2", "xz", "rar", "7z", "zst")
_OF_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
_FILES_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
# what a training run, ours or any of Transformers', or an evaluation leaves: its pictures are no images to learn from
_OF_RUNS = ("trainer_state.json", "training_args.bin", "_supmae_run.json", "results.jsonl")


def image_suffixes() -> frozenset[str]:
    """Endings of the files that are read as images, without the dot."""
    Image.init()
    known = {ending[1:] for ending, name in Image.EXTENSION.items() if name in Image.OPEN and name not in _NO_IMAGES}
    return frozenset(known | {"npy", "btf"})


def _same(name: str) -> str:
    """A form of a name in which case and the encoding of accents make no difference."""
    return unicodedata.normalize("NFC", name).casefold()


@dataclass
class ImageFolder:
    """
    The content of a folder of images.

    Args:
        root: The folder.
        names: Names of the classes: the sub-folders of `root` that hold images at any depth.
        left_out: Descriptions of everything else in it, a line each.
        parts: The images' paths, sorted, and the place of their class in `names` (-1 for those beside the class folders), by
            folder: a million strings would take much more as a Python list.
    """

    root: Path
    names: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    parts: list[tuple[pa.Array, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(paths) for paths, _ in self.parts)

    @property
    def paths(self) -> list[str]:
        return [path for paths, _ in self.parts for path in paths.to_pylist()]


def read_folder(root: str | Path) -> ImageFolder:
    """
    Find images and classes: a class is a sub-folder of `root`, its images are those below it at any depth. Links are
    followed, each folder once. Hidden folders and those of operating systems are passed over.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if names of classes differ in case only, or a name is not UTF-8.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"'{root}' is not a folder of images: check its name.")
    walk = _Walk(image_suffixes())
    folder = ImageFolder(root)
    for path in walk.enter(str(root), folder, -1):
        name = os.path.basename(path)
        before, noted = len(folder.parts), walk.odd.total()
        stack = [path]
        while stack:
            stack += reversed(walk.enter(stack.pop(), folder, len(folder.names)))
        if len(folder.parts) > before:
            folder.names.append(name)
        elif walk.odd.total() == noted:
            walk.note("folders without an image that can be read", f"{name}/")
    folder.left_out = walk.left_out()
    seen = {}
    for name in folder.names:
        other = seen.setdefault(_same(name), name)
        if other != name:
            raise ValueError(
                f"{root} has the folders '{other}' and '{name}', whose names differ in case only: rename one, or merge them."
            )
    return folder


class _Walk:
    """Reads one folder after the other, and remembers what is no image."""

    def __init__(self, suffixes: frozenset[str]):
        self.suffixes = suffixes
        self.entered = set()
        self.odd = Counter()  # files or folders by reason
        self.example = {}

    def enter(self, path: str, folder: ImageFolder, class_index: int) -> list[str]:
        """Add the images of one folder; returns its sub-folders."""
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in self.entered:
            self.note("links to folders that are read already", path)
            return []
        self.entered.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
        if class_index >= 0 and any(entry.name in _OF_RUNS for entry in entries):
            self.note("outputs of training runs", path)
            return []
        folders, images = [], []
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name.lower() in _OF_SYSTEMS or name.lower() in _FILES_OF_SYSTEMS:
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ValueError(f"The name {os.fsencode(entry.path)} is not UTF-8: rename it.") from None
            if entry.is_dir():
                folders.append(entry.path)
                continue
            suffix = name.rpartition(".")[2].lower() if "." in name else ""
            if not entry.is_file():
                self.note("broken links, or not files", name)
            elif suffix in self.suffixes:
                images.append(entry.path)
            elif suffix in _ARCHIVES:
                self.note("archives (unpack them to use their images)", name)
            elif suffix in ("heic", "heif", "hif") and pillow_heif is None:
                self.note(f".{suffix} files (pip install pillow-heif to read them)", name)
            elif suffix in ("csv", "tsv", "jsonl", "parquet", "xlsx") and name not in METADATA:
                self.note(f".{suffix} files (labels are read from metadata.csv, by its column file_name)", name)
            elif name not in METADATA:
                self.note(f".{suffix} files" if suffix else "files whose names have no ending", name)
        if images:
            folder.parts.append((pa.array(images, pa.string()), class_index))
        return folders

    def note(self, reason: str, name: str):
        self.odd[reason] += 1
        self.example.setdefault(reason, name)

    def left_out(self) -> list[str]:
        return [f"{count} {reason}, such as {self.example[reason]}" for reason, count in self.odd.items()]


def find_splits(root: str | Path) -> dict[str, Path]:
    """
    The sub-folders `train` and `validation`, `val`, `valid` or `test` of a folder that has them in the place of classes;
    else nothing.
    """
    found = {path.name.lower(): path for path in Path(root).iterdir() if path.is_dir()} if Path(root).is_dir() else {}
    train = [found[name] for name in TRAIN_SPLITS if name in found]
    held_out = {name: found[name] for name in HELD_OUT_SPLITS if name in found}
    others = {name for name in found if not name.startswith(".")} - {*TRAIN_SPLITS, *HELD_OUT_SPLITS}
    if len(train) != 1 or not (held_out or not others):
        return {}
    return {"train": train[0], **held_out}


def check_names(names: list[str], known: list[str], where: str):
    """Raise a `ValueError` if held-out images have a class that the training images lack."""
    for name in names:
        if name not in known:
            similar = next((other for other in known if _same(other) == _same(name)), None)
            raise ValueError(
                f"{where} has the class '{name}', which the training images do not have"
                + (f"; they have '{similar}': rename the folder." if similar else f", only {', '.join(known[:10])}.")
            )


def to_dataset(folder: ImageFolder, names: list[str] | None = None) -> datasets.Dataset:
    """
    A folder as a data set with the column `image` (files, not decoded), and `label` with the classes, or what the
    folder's `metadata.csv` (`.jsonl`, `.parquet`) says of its images.

    Args:
        names: Names of the classes, if others than the folder's own.

    Raises:
        ValueError: if the folder's metadata do not fit its images.
    """
    if not folder.parts:
        left_out = "; ".join(folder.left_out)
        raise ValueError(f"There is no image in {folder.root}" + (f": {left_out}." if left_out else "."))
    digest = hashlib.sha256()
    for part, _ in folder.parts:
        digest.update("\0".join(part.to_pylist()).encode())
    paths = pa.concat_arrays([part for part, _ in folder.parts])
    images = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
    columns, features = {"image": images}, {"image": datasets.Image(decode=False)}
    metadata = [folder.root / name for name in METADATA if (folder.root / name).is_file()]
    if metadata:
        try:
            table = pa.Table.from_pandas(_read_metadata(metadata, folder), preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{metadata[0]} has a column with values of several types: {error}.") from None
        columns.update(zip(table.column_names, table.columns))
        features.update(datasets.Features.from_arrow_schema(table.schema))
    elif names or folder.names:
        names = names or folder.names
        place = np.array([names.index(name) for name in folder.names] + [-1])  # the last one for the class -1
        classes = np.concatenate([np.full(len(part), place[index]) for part, index in folder.parts])
        columns["label"] = pa.array(classes, pa.int64(), mask=classes < 0)
        features["label"] = datasets.ClassLabel(names=names)
    digest.update(repr([names or folder.names, *(path.read_bytes() for path in metadata)]).encode())
    info = datasets.DatasetInfo(features=datasets.Features(features))
    table = InMemoryTable(pa.table(columns).cast(info.features.arrow_schema))
    return datasets.Dataset(table, info=info, fingerprint=digest.hexdigest()[:16])


def _read_metadata(files: list[Path], folder: ImageFolder) -> pd.DataFrame:
    """Read a row for each image of the folder, in their order; the row of an image that is not listed is empty."""
    if len(files) > 1:
        raise ValueError(f"{folder.root} has {' and '.join(file.name for file in files)}: keep one of them.")
    file = files[0]
    if file.suffix == ".csv":
        # a class may be called NA or 007: only what is empty is missing, and numbers do not begin with a zero
        options = {"keep_default_na": False, "na_values": [""]}
        text = pd.read_csv(file, dtype=str, **options)
        as_text = [name for name in text if name == "file_name" or text[name].str.match(r"0\d").any()]
        rows = pd.read_csv(file, dtype=dict.fromkeys(as_text, str), **options)
    elif file.suffix == ".jsonl":
        try:
            rows = pd.DataFrame([json.loads(line) for line in file.read_text().splitlines() if line.strip()])
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not one JSON object per line: {error}.") from None
    else:
        rows = pd.read_parquet(file)
    if "file_name" not in rows:
        raise ValueError(f"{file} has no column 'file_name', only {', '.join(map(str, rows.columns))}.")
    rows.index = [os.path.normpath(os.path.join(folder.root, str(name))) for name in rows.pop("file_name")]
    if not rows.index.is_unique:
        raise ValueError(f"{file} lists {rows.index[rows.index.duplicated()][0]} more than once.")
    normal = [os.path.normpath(path) for path in folder.paths]
    missing = rows.index.difference(normal)
    if len(missing):
        raise ValueError(
            f"{file} lists {len(missing)} files that are not there, or no images, such as {missing[0]}: correct it."
        )
    return rows.drop(columns="image", errors="ignore").reindex(normal)
