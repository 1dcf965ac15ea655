#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
How many images of a stream an epoch sees, for files of different sizes, processes and workers: Parquet files and tars.

    python benchmarks/stream_coverage.py
"""

import io
import tarfile
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.dataset import Dealing, ImageStream, collate
from supmae_hf.data.sources import load_training_data


BATCH = 4
UNEVEN = (50, 100, 150, 200, 100, 200)
CASES = [
    (UNEVEN, 2, 3),
    (UNEVEN, 1, 2),
    (UNEVEN, 4, 2),
    ((100,) * 8, 2, 2),
    ((800,), 2, 4),
]  # files, processes, workers


def write_file(path: Path, numbers: range):
    """Images whose first pixel is their number, as a Parquet file or a tar."""
    files = []
    for number in numbers:
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), [number % 256, number // 256, 0], dtype=np.uint8)).save(file, "png")
        files.append(file.getvalue())
    if path.suffix == ".parquet":
        features = datasets.Features({"image": datasets.Image(decode=False)})
        rows = {"image": [{"bytes": file, "path": None} for file in files]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        return
    with tarfile.open(path, "w") as tar:
        for number, file in zip(numbers, files):
            entry = tarfile.TarInfo(f"{number:04d}.png")
            entry.size = len(file)
            tar.addfile(entry, io.BytesIO(file))


def first_pixel(image: Image.Image) -> torch.Tensor:
    return torch.tensor(image.getpixel((0, 0)))


def images_seen(form: str, sizes: tuple[int, ...], num_processes: int, num_workers: int) -> int:
    """Different images that all processes together see in an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder) / f"test-0.{form}", range(1))
        start = 0
        for index, size in enumerate(sizes):
            write_file(Path(folder) / f"train-{index}.{form}", range(start, start + size))
            start += size
        data, seen = load_training_data(DataArguments(train_dir=folder, streaming=True)), set()
        for process_index in range(num_processes):
            dealing = Dealing(start, BATCH, process_index=process_index, num_processes=num_processes)
            stream = ImageStream.of(data, data.train, first_pixel, seed=0, dealing=dealing)
            loader = DataLoader(stream, BATCH, num_workers=num_workers, collate_fn=collate)
            for _, batch in zip(range(len(stream) // BATCH), loader):
                seen.update(map(tuple, batch["pixel_values"].tolist()))
        return len(seen)


def main():
    datasets.disable_progress_bars()
    print("| files | processes x workers | Parquet | tars |\n|---|---|---|---|")
    for sizes, processes, workers in CASES:
        seen = [images_seen(form, sizes, processes, workers) for form in ("parquet", "tar")]
        files = f"{len(sizes)}, {'even' if len(set(sizes)) == 1 else f'of {min(sizes)} to {max(sizes)}'}"
        print(f"| {files} | {processes} x {workers} | {seen[0]} | {seen[1]} |", flush=True)


if __name__ == "__main__":
    main()
