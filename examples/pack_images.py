#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pack a data set once, for many epochs: Parquet files of images whose shorter side is --size pixels at most, with the same
splits and columns; masks and boxes are resized with their image. They are smaller, and read and decoded faster, than a folder of photographs.

    python examples/pack_images.py [--image_dir FOLDER | --dataset_name NAME] --output_dir packed [--size 256]

Photographs (JPEG, WebP) become JPEG, other 8-bit images PNG, and images of more bits or bands stay as they are. Without a data
set the digits are taken. Train on the result with `--dataset_name packed`. After an interruption the same command goes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import datasets
import pyarrow.compute
from transformers.hf_argparser import HfArg

from supmae_hf.cli import Count, Range, Workers, check, parse_arguments, run
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.packing import find_pixel_boxes, write_packed
from supmae_hf.data.sources import load_splits
from supmae_hf.evaluation.features import claim_parts, count_rows, missing_parts, parts_of
from supmae_hf.records import output_folder, require_apart


@dataclass
class PackingArguments:
    """The size and quality of the images, and the folder for them."""

    output_dir: str = HfArg(default="outputs/packed", help="Folder for the Parquet files.")
    overwrite_output_dir: bool = HfArg(
        default=False, help="Begin anew even if `--output_dir` holds other images: deletes them."
    )
    size: Count = HfArg(default=256, help="Pixels of the shorter side at most; larger images are resized.")
    quality: Annotated[int, Range(1, 95)] = HfArg(default=90, help="Quality of JPEG files, 1 to 95.")
    images_per_file: Count = HfArg(
        default=10_000, help="Images of a Parquet file; an interrupted run loses those of one at most."
    )
    dataloader_num_workers: Workers = HfArg(default=0, help="Processes that decode and encode images.")

    def __post_init__(self):
        check(self)


def megabytes(data) -> float | None:
    """Size of the images' files, where it can be seen without reading them."""
    images, total = data.validation.select_columns([data.image_column]), 0
    if not isinstance(images.features[data.image_column], datasets.Image):
        return None
    for rows in images.with_format("arrow").iter(batch_size=1000):
        files = rows[data.image_column].combine_chunks()
        total += pyarrow.compute.sum(pyarrow.compute.binary_length(files.field("bytes"))).as_py() or 0
        paths = [path for path in files.field("path").to_pylist() if path is not None and Path(path).is_file()]
        total += sum(Path(path).stat().st_size for path in paths)
    return total / 1e6


def main():
    args, data_args = parse_arguments((PackingArguments, EvaluationDataArguments), description=__doc__)
    require_apart(args.output_dir, data_args.sources())
    splits = load_splits(data_args)
    print("".join(f"\n{data.table()}\n" for data in splits.values()), flush=True)
    run = {name: getattr(args, name) for name in ("size", "quality", "images_per_file")}
    run |= {"job": "packing", "on_bad_image": data_args.on_bad_image}
    run["data"] = {name: data.fingerprint() for name, data in splits.items()}
    parts, num_images = (
        parts_of(splits, args.output_dir, args.images_per_file),
        sum(len(data.validation) for data in splits.values()),
    )
    with output_folder(args.output_dir, run, args.overwrite_output_dir) as record:
        claim_parts(record, parts)
        objects = {name: find_pixel_boxes(data.validation) for name, data in splits.items()}
        for part in missing_parts(parts):
            places = range(part.start, part.stop)
            options = args.size, args.quality, args.dataloader_num_workers, objects[part.split]
            write_packed(splits[part.split], places, part.path, *options)
            print(f"{parts.index(part) + 1}/{len(parts)} {part.path}", flush=True)
        number = count_rows(parts)
    before = [megabytes(data) for data in splits.values()]
    after = sum(part.path.stat().st_size for part in parts) / 1e6
    was = "" if None in before else f" (before: {sum(before):.1f} MB)"
    left_out = f", {num_images - number} left out" if number < num_images else ""
    print(
        f"\n{number} images in {len(parts)} files of {after:.1f} MB{was}{left_out}: --dataset_name {args.output_dir}"
    )


if __name__ == "__main__":
    run(main)
