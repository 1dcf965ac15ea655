#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Features of images by any encoder that Transformers loads (SupMAE, ViT, DINOv2, CLIP, timm's, ...), as a Parquet data set
with one row per image: path, index, label, vector, and the patches' tokens on request.

    python examples/extract_features.py --model CHECKPOINT [--dataset_name NAME | --image_dir FOLDER]
        [--tokens] [--nearest IMAGE ...]

Without a data set the digits are taken. After an interruption the same command goes on. With `--nearest` it prints the images
whose vectors are nearest to that of IMAGE, and draws them.
"""

import contextlib
from pathlib import Path

from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.sources import load_splits
from supmae_hf.evaluation import features
from supmae_hf.evaluation.arguments import FeatureArguments
from supmae_hf.evaluation.encode import ImageEncoder
from supmae_hf.evaluation.models import check_models, fingerprint
from supmae_hf.evaluation.tables import say_written, write_table
from supmae_hf.image_processing_supmae import read_image
from supmae_hf.preparation import Preparation
from supmae_hf.records import output_folder, require_apart
from supmae_hf.visualization import cut


def show_nearest(encoder: ImageEncoder, splits: dict, preparation: Preparation, args: FeatureArguments, folder: Path):
    """Print the nearest images of each of `--nearest`, and draw them into a folder."""
    rows = features.read_features(args.output_dir)
    images = {name: ImageDataset.of(data, data.validation) for name, data in splits.items()}
    for path, nearest in features.nearest(encoder, rows, args.nearest, preparation, args.num_nearest):
        print(f"\nNearest to {path}:\n")
        stem = Path(path).stem
        write_table(nearest, folder, stem, float_format=".3f")
        neighbors = []
        for row in nearest:
            split = images[row["split"]]
            image, _ = split.read(split.dataset[row["index"]][split.image_column])
            label = "" if row["label"] is None else f"{cut(str(row['label']))}\n"
            neighbors.append((image, f"{label}{row['similarity']:.3f}"))
        features.draw_nearest(read_image(Path(path).read_bytes()), neighbors, folder / f"{stem}.png")
        say_written(folder, f"{stem}.png", f"{stem}.json", f"{stem}.csv")


def main():
    args, data_args = parse_arguments((FeatureArguments, EvaluationDataArguments), description=__doc__)
    require_apart(args.output_dir, [args.model, *data_args.sources()])
    check_models([args.model], Preparation.load)
    splits = load_splits(data_args)
    args.say(*splits.values())
    encoder, preparation = ImageEncoder(args.model, args.pooling), Preparation.load(args.model)
    run = {"job": "features", "model": fingerprint(args.model), "pooling": args.pooling, "tokens": args.tokens}
    run |= {"images_per_file": args.images_per_file, "on_bad_image": data_args.on_bad_image}
    run["data"] = {name: data.fingerprint() for name, data in splits.items()}
    parts = features.parts_of(splits, args.output_dir, args.images_per_file)
    pictures = Path(f"{args.output_dir.rstrip('/')}-nearest")
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(output_folder(args.output_dir, run, args.overwrite_output_dir))
        if args.nearest:
            drawn = stack.enter_context(output_folder(pictures, {"job": "nearest images"}))
        if args.state.is_main_process:
            features.claim_parts(record, parts)
        features.extract_features(encoder, splits, preparation, args)
        if args.state.is_main_process:
            number = features.count_rows(parts)
            print(
                f"\nVectors of {encoder.hidden_size} numbers for {number} images: {len(parts)} files in {args.output_dir}"
            )
            if args.nearest:
                drawn.claim(*(f"{Path(path).stem}.png" for path in args.nearest))
                show_nearest(encoder, splits, preparation, args, pictures)


if __name__ == "__main__":
    run(main)
