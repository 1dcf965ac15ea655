#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Training images per second and core, from JPEG files in a data set to a normalised batch: this project's input path, and the
usual one (as in Transformers' `run_mae.py`): PIL, RandomResizedCrop (bicubic), flip, ToTensor, Normalize; and torchvision's
decoder and transforms without anything around them. In turn, each on one core: the process itself, or one worker of a
DataLoader. Several views (`--repeated_augmentation`) count as so many images.

    python benchmarks/bench_input.py
"""

import argparse
import io
import statistics

import datasets
import torch
from common import alternate, ratio, report
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from supmae_hf import SupMAEConfig
from supmae_hf.data.dataset import ImageDataset, collate, collate_views
from supmae_hf.data.labels import Labels
from supmae_hf.data.packing import pack_image
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.image_processing_supmae import read_image
from supmae_hf.preparation import build_image_processor
from supmae_hf.training.cpu import keep_freed_memory


def photographs(size: tuple[int, int], quality: int, count: int) -> datasets.Dataset:
    """scikit-learn's two photographs as JPEG files."""
    files = []
    for photo in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["china", "flower"])})
    return datasets.Dataset.from_dict(
        {"image": files * (count // 2), "label": [0, 1] * (count // 2)}, features=features
    )


def usual(data: datasets.Dataset) -> datasets.Dataset:
    transform = T.Compose(
        [
            T.Lambda(lambda image: image.convert("RGB") if image.mode != "RGB" else image),
            T.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return data.with_transform(
        lambda rows: {
            "pixel_values": [transform(image) for image in rows["image"]],
            "labels": [torch.tensor(label) for label in rows["label"]],
        }
    )


def plain(data: datasets.Dataset) -> datasets.Dataset:
    """torchvision's decoder and transforms alone: without seeds, masks, a look at the file's header, errors that name a file."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def read(rows):
        files = [torch.frombuffer(bytearray(image["bytes"]), dtype=torch.uint8) for image in rows["image"]]
        return {
            "pixel_values": [transform(decode_jpeg(file, ImageReadMode.RGB)) for file in files],
            "labels": [torch.tensor(label) for label in rows["label"]],
        }

    return data.cast_column("image", datasets.Image(decode=False)).with_transform(read)


def ours(data: datasets.Dataset, num_views: int = 1) -> ImageDataset:
    """As many views as there are images."""
    config, data = SupMAEConfig(), data.select(range(len(data) // num_views))
    transform = TrainTransform(build_image_processor(config), num_views=num_views)
    return ImageDataset(data, Labels.of(data), transform, seed=0, num_patches=config.num_patches)


def packed(data: datasets.Dataset) -> datasets.Dataset:
    """As `examples/pack_images.py` packs them."""
    files = data.cast_column("image", datasets.Image(decode=False))["image"][:2]
    smaller = [pack_image(read_image(file["bytes"]), file["bytes"], size=256, quality=90) for file in files]
    images = [{"bytes": file, "path": None} for file in smaller] * (len(data) // 2)
    return datasets.Dataset.from_dict({"image": images, "label": data["label"][:]}, features=data.features)


def epoch(dataset, workers: int):
    num_views = getattr(dataset, "num_views", 1)
    loader = DataLoader(
        dataset,
        64 // num_views,
        collate_fn=collate if num_views == 1 else collate_views,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def run():
        for _ in loader:
            pass

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the training scripts do; workers inherit it
    rows = []
    for size, quality, workers in [
        ((500, 375), 75, 0),
        ((500, 375), 75, 1),
        ((500, 375), 95, 0),
        ((500, 375), 95, 1),
        ((2000, 1500), 75, 0),
    ]:
        count = args.images if size[0] < 1000 else args.images // 8
        data = photographs(size, quality, count)

        runs = {"ours": epoch(ours(data), workers), "usual": epoch(usual(data), workers)}
        runs["plain torchvision"] = epoch(plain(data), workers)
        runs["ours, packed"] = epoch(ours(packed(data)), workers)
        runs |= {f"ours, {views} views": epoch(ours(data, views), workers) for views in (2, 4)}
        seconds = alternate(runs, args.rounds, warmup=1)
        kilobytes = statistics.mean(
            len(row["bytes"]) for row in data.cast_column("image", datasets.Image(decode=False))["image"]
        )
        for name, times in seconds.items():
            rows.append(
                {
                    "image": f"{size[0]}x{size[1]}",
                    "quality": quality,
                    "kB": round(kilobytes / 1000),
                    "runs in": "one worker" if workers else "the process",
                    "pipeline": name,
                    "images/s": count / statistics.median(times),
                    "faster than the usual by": ratio(seconds["usual"], times),
                }
            )
    report("input", rows)


if __name__ == "__main__":
    main()
