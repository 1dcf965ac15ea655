#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Features of images by any encoder that Transformers loads (SupMAE, ViT, DINOv2, CLIP, timm's, ...), as a Parquet data set
with one row per image: path, index, label, vector, and the patches' tokens on request.

    accelerate launch examples/extract_features.py --model CHECKPOINT [--dataset_name NAME | --image_dir FOLDER]
        [--tokens] [--nearest IMAGE ...]

Without a data set the digits are taken. After an interruption the same command goes on. With `--nearest` it prints the images
whose vectors are nearest to that of IMAGE, and draws them.
"""

import contextlib
from pathlib import Path

from supmae_hf.data.dataset import ImageDataset
from supmae_hf.evaluation.arguments import FeatureArguments, FeatureDataArguments
from supmae_hf.evaluation.features import (
    claim_parts,
    count_rows,
    draw_nearest,
    extract_features,
    nearest,
    parts_of,
    read_features,
)
from supmae_hf.evaluation.models import ImageEncoder, check_models, fingerprint, load_transform
from supmae_hf.evaluation.tables import say_written, write_table
from supmae_hf.image_processing_supmae import read_image
from supmae_hf.records import output_folder, require_apart
from supmae_hf.training.recipes import parse_arguments, run


def show_nearest(encoder, splits, transform, num_channels: int, args: FeatureArguments, folder: Path):
    """Print the nearest images of each of `--nearest`, and draw them into a folder."""
    features = read_features(args.output_dir)
    images = {
        name: ImageDataset(data.validation, data.labels, transform, num_channels, image_column=data.image_column)
        for name, data in splits.items()
    }
    for path, rows in nearest(encoder, features, args.nearest, transform, num_channels, args.num_nearest):
        print(f"\nNearest to {path}:\n")
        stem = Path(path).stem
        write_table(rows, folder, stem, float_format=".3f")
        neighbors = []
        for row in rows:
            split = images[row["split"]]
            image, _ = split.read(split.dataset[row["index"]][split.image_column])
            label = "" if row["label"] is None else f"{row['label']}\n"
            neighbors.append((image, f"{label}{row['similarity']:.3f}"))
        draw_nearest(read_image(Path(path).read_bytes()), neighbors, folder / f"{stem}.png")
        say_written(folder, f"{stem}.png", f"{stem}.json", f"{stem}.csv")


def main():
    args, data_args = parse_arguments((FeatureArguments, FeatureDataArguments), description=__doc__)
    require_apart(args.output_dir, [args.model, *data_args.sources()])
    check_models([args.model], load_transform)
    splits = data_args.load_splits()
    encoder, transform = ImageEncoder(args.model, args.pooling), load_transform(args.model)
    num_channels = getattr(encoder.config, "num_channels", 3)  # timm models do not say
    run = {"job": "features", "model": fingerprint(args.model), "pooling": args.pooling, "tokens": args.tokens}
    run |= {"images_per_file": args.images_per_file, "on_bad_image": data_args.on_bad_image}
    run["data"] = {name: data.fingerprint() for name, data in splits.items()}
    sizes = {name: len(data.validation) for name, data in splits.items()}
    parts = parts_of(sizes, args.output_dir, args.images_per_file)
    pictures = Path(f"{args.output_dir.rstrip('/')}-nearest")
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(output_folder(args.output_dir, run, args.overwrite_output_dir))
        if args.nearest:
            drawn = stack.enter_context(output_folder(pictures, {"job": "nearest images"}))
        if args.state.is_main_process:
            claim_parts(record, parts)
        extract_features(
            encoder,
            splits,
            transform,
            args.output_dir,
            **args.options(),
            images_per_file=args.images_per_file,
            with_tokens=args.tokens,
            skip_bad_images=data_args.on_bad_image == "skip",
            num_channels=num_channels,
        )
        if args.state.is_main_process:
            print(
                f"\nVectors of {encoder.hidden_size} numbers for {count_rows(parts)} images: {len(parts)} files in "
                f"{args.output_dir}"
            )
            if args.nearest:
                drawn.claim(*(f"{Path(path).stem}.png" for path in args.nearest))
                show_nearest(encoder, splits, transform, num_channels, args, pictures)


if __name__ == "__main__":
    run(main)
