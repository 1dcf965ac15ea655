# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders in the format of MNIST (IDX files, gzipped or not): MNIST, Fashion-MNIST, KMNIST, EMNIST, QMNIST."""

import gzip
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor


_IMAGES = re.compile(r"(?P<set>.*?)(?P<split>train|t10k|test)[-_.]images?[-_.]idx3[-_.]ubyte(?:\.gz)?$", re.IGNORECASE)
_LABELS = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)[-_.]labels?[-_.]idx[12][-_.]\w+?(?:\.gz)?$", re.IGNORECASE
)


def idx_folder(source: str | Path) -> Path | None:
    """The folder of IDX files: `source`, or the one that torchvision makes in it; `None` if there is none."""
    folders = [Path(source), *(Path(source) / "raw", *sorted(Path(source).glob("*/raw")))]
    for folder in folders:
        if folder.is_dir() and any(_IMAGES.match(path.name) for path in folder.iterdir()):
            return folder
    return None


def _files(folder: Path, pattern: re.Pattern) -> dict[tuple[str, str], Path]:
    """Find files by the name of their set (`emnist-letters-`) and split. Of two forms, the one that is not compressed counts."""
    found = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".gz"):
        if match := pattern.match(path.name):
            split = "train" if match["split"].lower() == "train" else "test"
            found[match["set"], split] = path
    return found


def read_idx(folder: str | Path, name: str | None = None) -> tuple[datasets.DatasetDict, list[str]]:
    """
    The splits of a folder of IDX files, and what is to be known about them.

    Args:
        folder: See [`idx_folder`].
        name: Name of one of several sets in the folder, such as `letters` of EMNIST.

    Raises:
        ValueError: if a file is damaged or does not fit another one, or the folder has several sets, or not that one.
    """
    folder = Path(folder)
    images, labels = _files(folder, _IMAGES), _files(folder, _LABELS)
    sets = sorted({prefix for prefix, _ in images})
    names = {re.sub(r"^(?:emnist|qmnist)-|-$", "", prefix): prefix for prefix in sets}
    if name is None and len(sets) > 1 or name is not None and name not in names:
        raise ValueError(
            f"{folder} has the sets {', '.join(sorted(names))}: name one of them with `--dataset_config_name`."
            if len(sets) > 1
            else f"{folder} has no set '{name}' (`--dataset_config_name`): leave it out."
        )
    prefix = names[name] if name is not None else sets[0]
    class_names = _class_names(folder, prefix)
    notes, splits, codes = [], {}, {}
    is_transposed = prefix.lower().startswith("emnist")
    if is_transposed:
        notes.append("EMNIST's files hold images with rows and columns exchanged: they are put right")
    for (_, split), path in sorted((key, path) for key, path in images.items() if key[0] == prefix):
        pixels = _read(path, 3)
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 1)) if is_transposed else pixels
        splits[split] = pixels
        if (prefix, split) in labels:
            values = _read(labels[prefix, split])
            codes[split] = values if values.ndim == 1 else values[:, 0]  # QMNIST: the class, then who wrote it
            if len(codes[split]) != len(pixels):
                raise ValueError(
                    f"{labels[prefix, split]} has {len(codes[split])} labels for the {len(pixels)} images of {path.name}."
                )
    known = sorted({int(code) for values in codes.values() for code in np.unique(values)})
    if known and class_names and not set(known) <= set(class_names):
        raise ValueError(f"The mapping of {folder} does not name the classes {sorted(set(known) - set(class_names))}.")
    return datasets.DatasetDict(
        {
            split: _to_dataset(pixels, codes.get(split), known, [class_names.get(code, str(code)) for code in known])
            for split, pixels in splits.items()
        }
    ), notes


def _read(path: Path, ndim: int | None = None) -> np.ndarray:
    try:
        if path.suffix == ".gz":
            with tempfile.NamedTemporaryFile() as plain, gzip.open(path) as packed:
                shutil.copyfileobj(packed, plain)
                plain.flush()
                array = read_sn3_pascalvincent_tensor(plain.name).numpy()
        else:
            array = read_sn3_pascalvincent_tensor(str(path)).numpy()
    except (OSError, EOFError, zlib.error, AssertionError, ValueError, KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} is not an IDX file, or it is damaged: get the file anew. ({error})") from error
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{path} holds an array of shape {array.shape}, not images (number, rows, columns).")
    return array


def _class_names(folder: Path, prefix: str) -> dict[int, str]:
    """EMNIST's classes: `emnist-letters-mapping.txt` has a class and the codes of its characters in each line."""
    path = folder / f"{prefix}mapping.txt"
    if not path.is_file():
        return {}
    rows = [[int(number) for number in line.split()] for line in path.read_text().splitlines() if line.strip()]
    return {label: "/".join(map(chr, characters)) for label, *characters in rows}


def _to_dataset(pixels: np.ndarray, codes: np.ndarray | None, known: list[int], names: list[str]) -> datasets.Dataset:
    """Grey images as files of the PGM format, which are their pixels behind a line."""
    height, width = pixels.shape[1:]
    head = f"P5 {width} {height} 255\n".encode()
    files = pa.array([{"bytes": head + image.tobytes(), "path": None} for image in pixels])
    columns, features = {"image": files}, {"image": datasets.Image(decode=False)}
    if codes is not None:
        columns["label"] = pa.array(np.searchsorted(known, codes))
        features["label"] = datasets.ClassLabel(names=names)
    features = datasets.Features(features)
    return datasets.Dataset(pa.table(columns).cast(features.arrow_schema))
