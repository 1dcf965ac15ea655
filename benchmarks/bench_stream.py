#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
A stream of Parquet files: images per second of two processes with a part of their own each against one that reads all, and the
time to the first batch of a run that goes on in the middle of an epoch, against decoding what it had.

    python benchmarks/bench_stream.py
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import datasets
import torch
from bench_input import photographs
from common import report
from torch.utils.data import DataLoader

from supmae_hf import SupMAEConfig
from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.dataset import Dealing, ImageStream, collate
from supmae_hf.data.labels import Labels
from supmae_hf.data.sources import load_training_data
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.preparation import build_image_processor


BATCH = 32


def make_stream(folder: str, num_images: int, process_index: int = 0, num_processes: int = 1) -> ImageStream:
    config = SupMAEConfig()
    data = load_training_data(DataArguments(train_dir=folder, streaming=True))
    return ImageStream(
        data.train,
        Labels.of(data.train),
        TrainTransform(build_image_processor(config)),
        num_patches=config.num_patches,
        seed=0,
        dealing=Dealing(num_images, BATCH, 256, process_index, num_processes),
    )


def read(folder: str, num_images: int, process_index: int, num_processes: int, barrier, seconds):
    torch.set_num_threads(1)
    stream = make_stream(folder, num_images, process_index, num_processes)
    loader = DataLoader(stream, BATCH, collate_fn=collate)
    barrier.wait()
    start = time.perf_counter()
    batches = iter(loader)  # not to its end: there datasets waits 5 seconds until Parquet's threads are gone
    for _ in range(len(stream) // BATCH * 3 // 4):
        next(batches)
    seconds.put(time.perf_counter() - start)


def rate(folder: str, num_images: int, num_processes: int) -> float:
    """Images per second of all processes together."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(num_processes), context.Queue()
    processes = [
        context.Process(target=read, args=(folder, num_images, index, num_processes, barrier, seconds))
        for index in range(num_processes)
    ]
    for process in processes:
        process.start()
    slowest = max(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return num_images // num_processes // BATCH * 3 // 4 * BATCH * num_processes / slowest


def time_to_go_on(folder: str, num_images: int, passes_over: bool) -> float:
    """Seconds to the first batch after half of an epoch."""
    stream, had = make_stream(folder, num_images), num_images // BATCH // 2
    if passes_over:
        stream.skip_batches(had)
    start = time.perf_counter()
    batches = iter(DataLoader(stream, BATCH, collate_fn=collate))
    next(islice(batches, had, None))
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", args.images), ("validation", BATCH)):
            rows = photographs((500, 375), 75, count)
            for index in range(64 if split == "train" else 1):
                shard = rows.shard(64, index) if split == "train" else rows
                shard.cast_column("image", datasets.Image(decode=False)).to_parquet(
                    Path(folder) / f"{split}-{index}.parquet"
                )
        rates, times = {1: [], 2: []}, {True: [], False: []}
        for _ in range(args.rounds):
            for number in rates:
                rates[number].append(rate(folder, args.images, number))
            for passes_over in times:
                times[passes_over].append(time_to_go_on(folder, args.images, passes_over))
    gain = statistics.median(two / one for one, two in zip(rates[1], rates[2]))
    saved = statistics.median(slow / quick for quick, slow in zip(times[True], times[False]))
    report(
        "stream",
        [
            {"what": "one process, images/s", "value": statistics.median(rates[1])},
            {"what": "two processes, images/s", "value": statistics.median(rates[2]), "factor": gain},
            {
                "what": f"going on after {args.images // 2} images, decoding them: s",
                "value": statistics.median(times[False]),
            },
            {"what": "going on, passing over them: s", "value": statistics.median(times[True]), "factor": saved},
        ],
    )


if __name__ == "__main__":
    main()
