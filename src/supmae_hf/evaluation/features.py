# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of images as a Parquet data set, and the nearest among them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm

from ..data.dataset import ImageDataset, collate
from ..data.image_data import ImageData
from ..data.labels import Labels
from ..image_processing_supmae import read_bytes, read_image
from ..preparation import Preparation
from ..records import Record, on_main_process, set_aside, unfinished_name
from ..supervision_supmae import UNLABELED
from .arguments import FeatureArguments
from .encode import ImageEncoder


@dataclass
class Part:
    """The images from `start` to `stop` of a split, which become one file."""

    split: str
    start: int
    stop: int
    path: Path


def parts_of(splits: dict[str, ImageData], folder: str | Path, images_per_file: int) -> list[Part]:
    """The files of splits."""
    sizes = {name: len(data.validation) for name, data in splits.items()}
    return [
        Part(split, start, min(start + images_per_file, size), Path(folder) / f"{split}-{number:05d}.parquet")
        for split, size in sizes.items()
        for number, start in enumerate(range(0, size, images_per_file))
    ]


def claim_parts(record: Record, parts: list[Part]):
    """Write down that a run is about to write these files."""
    record.claim(*(name for part in parts for name in (part.path.name, unfinished_name(part.path))))


def missing_parts(parts: list[Part]) -> list[Part]:
    """The files that are not there yet. One that cannot be read is moved aside, and counts as missing."""
    missing = []
    for part in parts:
        if part.path.exists():
            try:
                pq.read_metadata(part.path)
                continue
            except (OSError, pa.ArrowInvalid):
                set_aside(part.path, "is damaged")
        missing.append(part)
    return missing


def count_rows(parts: list[Part]) -> int:
    """
    Raises:
        ValueError: if the files hold no image at all.
    """
    number = sum(pq.read_metadata(part.path).num_rows for part in parts)
    if not number:
        raise ValueError("None of the images can be decoded: nothing was written but empty files.")
    return number


def _label_feature(labels: Labels):
    """The type of the column `label`: class names, numbers, or 0 and 1 for each class."""
    if not labels.columns or labels.problem_type == "single_label_classification":
        return datasets.Value("string")
    return datasets.List(datasets.Value("float32"))


@torch.no_grad()
def extract_features(
    encoder: ImageEncoder, splits: dict[str, ImageData], preparation: Preparation, args: FeatureArguments
):
    """
    Write one row per image of `splits` into `args.output_dir`: `path` (if the image is a file), `index` (its place in the
    split), `label` (class name, or what there is; `None` for an image without a label), `vector`, and, with `args.tokens`,
    `tokens` `(num_patches, hidden_size)`. Each file appears complete or not at all, and those that are there are left alone: an
    interrupted run goes on, and the processes that `accelerate launch` started share the files among them.

    Raises:
        ValueError: if the model has no tokens, or an image cannot be decoded.
    """
    accelerator = Accelerator(cpu=args.use_cpu)
    encoder.to(accelerator.device).eval()
    parts = parts_of(splits, args.output_dir, args.images_per_file)
    # what is missing is shared out, so that no process is left with files that are there
    missing = on_main_process(missing_parts, parts)
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    progress = tqdm(
        total=sum(part.stop - part.start for part in mine),
        unit=" images",
        disable=not accelerator.is_local_main_process or not mine,
    )
    for part in mine:
        data = splits[part.split]
        records = data.validation.select(range(part.start, part.stop))
        loader = torch.utils.data.DataLoader(
            ImageDataset.of(data, records, preparation),
            args.per_device_eval_batch_size,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
        )
        columns = {"vector": [], "tokens": []}
        kept = []
        for batch in loader:
            with accelerator.autocast():
                vectors, tokens = encoder.encode(batch["pixel_values"].to(accelerator.device))
            # another image is in the place of one that cannot be decoded
            keep = batch.get("skipped", torch.zeros(len(vectors))) == 0
            kept.append(keep.numpy())
            columns["vector"].append(vectors.float().cpu()[keep].numpy())
            if args.tokens:
                if tokens is None:
                    raise ValueError(f"'{encoder.name}' has no tokens of patches: leave out `--tokens`.")
                columns["tokens"].append(tokens.float().cpu()[keep].numpy())
            progress.update(len(keep))
        _write(part, data, records, np.flatnonzero(np.concatenate(kept)), columns)
    progress.close()
    accelerator.wait_for_everyone()


def _write(part: Part, data: ImageData, records: datasets.Dataset, kept: np.ndarray, columns: dict[str, list]):
    columns = {name: np.concatenate(values) for name, values in columns.items() if values}
    vector = datasets.List(datasets.Value("float32"), length=columns["vector"].shape[-1])
    features = {
        "path": datasets.Value("string"),
        "index": datasets.Value("int64"),
        "label": _label_feature(data.labels),
        "vector": vector,
    }
    if "tokens" in columns:
        features["tokens"] = datasets.List(vector, length=columns["tokens"].shape[1])
    rows = records.select(kept)
    images = rows[data.image_column] if isinstance(rows.features[data.image_column], datasets.Image) else []
    table = {
        "path": [image["path"] for image in images] or [None] * len(rows),
        "index": (part.start + kept).tolist(),
        "label": [None] * len(rows)
        if not data.labels.columns
        else [_label(data.labels, record) for record in rows.select_columns(data.labels.columns)],
        **columns,
    }
    new = part.path.with_name(unfinished_name(part.path))
    pq.write_table(datasets.Dataset.from_dict(table, features=datasets.Features(features)).data.table, new)
    os.replace(new, part.path)


def _label(labels: Labels, record: dict):
    encoded = np.asarray(labels.encode(record))
    if labels.problem_type == "single_label_classification" or not labels.columns:
        return labels.names[int(encoded)] if labels.columns and int(encoded) != UNLABELED else None
    return np.atleast_1d(encoded).astype(np.float32).tolist() if (encoded != UNLABELED).any() else None


def read_features(folder: str | Path) -> datasets.Dataset:
    """All rows that [`extract_features`] wrote into a folder, with a column `split`; without the tokens."""
    tables = []
    for path in sorted(Path(folder).glob("*-[0-9][0-9][0-9][0-9][0-9].parquet")):
        table = pq.read_table(path, columns=["path", "index", "label", "vector"])
        tables.append(table.append_column("split", pa.array([path.name.rpartition("-")[0]] * len(table))))
    return datasets.Dataset(pa.concat_tables(tables).replace_schema_metadata())


@torch.no_grad()
def nearest(
    encoder: ImageEncoder, features: datasets.Dataset, pictures: list[str], preparation: Preparation, number: int
) -> Iterator[tuple[str, list[dict]]]:
    """
    Find the nearest neighbours of each file of `pictures`: the `number` rows of `features` (see [`read_features`]) with the
    largest cosine similarity, which they have as `similarity`. A file is not its own neighbour.
    """
    device = next(encoder.parameters()).device
    index = NearestNeighbors(n_neighbors=min(number + 1, len(features)), metric="cosine")
    index.fit(features.with_format("numpy")["vector"][:])
    for path in pictures:
        pixel_values = preparation(read_image(read_bytes(path))).unsqueeze(0)
        vector = encoder(pixel_values.to(device)).float().cpu().numpy()
        distances, rows = index.kneighbors(vector)
        found = features.remove_columns("vector").select(rows[0])
        others = [
            {**row, "similarity": 1 - float(distance)}
            for row, distance in zip(found, distances[0])
            if row["path"] is None or os.path.realpath(row["path"]) != os.path.realpath(path)
        ]
        yield path, others[:number]


def draw_nearest(
    picture: Image.Image | np.ndarray, neighbors: list[tuple[Image.Image | np.ndarray, str]], path: str | Path
):
    """
    Draw an image and its neighbours, as [`read_image`] gives them, each with a caption. Of images of other than 8 bits or three
    channels the first three channels, or the first, are stretched to their range.
    """
    images = [(picture, "query"), *neighbors]
    figure = Figure(figsize=(1.7 * len(images), 2.2), layout="constrained")
    for axis, (image, caption) in zip(figure.subplots(1, len(images)), images):
        pixels = np.atleast_3d(np.asarray(image.convert("RGB") if hasattr(image, "convert") else image))
        pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
        if pixels.dtype != np.uint8:
            low, high = pixels.min(), pixels.max()
            pixels = (pixels.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
        axis.imshow(pixels, cmap="gray")
        axis.set_title(caption, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=150)
