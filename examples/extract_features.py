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

from pathlib import Path

from supmae_hf.data.dataset import ImageDataset
from supmae_hf.evaluation.arguments import FeatureArguments, FeatureDataArguments
from supmae_hf.evaluation.features import (
    draw_nearest,
    extract_features,
    nearest,
    parts_of,
    prepare_output_dir,
    read_features,
)
from supmae_hf.evaluation.models import ImageEncoder, check_models, fingerprint, load_transform
from supmae_hf.evaluation.tables import say_written, write_table
from supmae_hf.image_processing_supmae import read_image
from supmae_hf.training.recipes import parse_arguments, run


def show_nearest(encoder, splits, transform, num_channels: int, args: FeatureArguments):
    """Print the nearest images of each of `--nearest`, and draw them beside the folder of features."""
    features, folder = read_features(args.output_dir), Path(args.output_dir)
    images = {
        name: ImageDataset(data.validation, data.labels, transform, num_channels, image_column=data.image_column)
        for name, data in splits.items()
    }
    for path, rows in nearest(encoder, features, args.nearest, transform, num_channels, args.num_nearest):
        print(f"\nNearest to {path}:\n")
        stem = f"{folder.name}-nearest-{Path(path).stem}"
        write_table(rows, folder.parent, stem, float_format=".3f")
        neighbors = []
        for row in rows:
            split = images[row["split"]]
            image, _ = split.read(split.dataset[row["index"]][split.image_column])
            label = "" if row["label"] is None else f"{row['label']}\n"
            neighbors.append((image, f"{label}{row['similarity']:.3f}"))
        draw_nearest(read_image(Path(path).read_bytes()), neighbors, folder.parent / f"{stem}.png")
        say_written(folder.parent, f"{stem}.png", f"{stem}.json", f"{stem}.csv")


def main():
    args, data_args = parse_arguments((FeatureArguments, FeatureDataArguments), description=__doc__)
    check_models([args.model], load_transform)
    splits = data_args.load_splits(args.output_dir)
    encoder, transform = ImageEncoder(args.model, args.pooling), load_transform(args.model)
    num_channels = getattr(encoder.config, "num_channels", 3)  # timm models do not say
    with args.state.main_process_first():
        if args.state.is_main_process:
            facts = {"model": fingerprint(args.model), "pooling": args.pooling, "tokens": args.tokens}
            facts |= {"images_per_file": args.images_per_file, "on_bad_image": data_args.on_bad_image}
            facts["data"] = {name: data.fingerprint() for name, data in splits.items()}
            prepare_output_dir(args.output_dir, facts, args.overwrite_output_dir)
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
        sizes = {name: len(data.validation) for name, data in splits.items()}
        files = parts_of(sizes, args.output_dir, args.images_per_file)
        print(
            f"\nVectors of {encoder.hidden_size} numbers for {sum(sizes.values())} images: {len(files)} files in "
            f"{args.output_dir}"
        )
        if args.nearest:
            show_nearest(encoder, splits, transform, num_channels, args)


if __name__ == "__main__":
    run(main)
