#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
From a folder of as many images as ImageNet-1K's to a data set with labels and a held-out part: this project's walk beside
`datasets`' imagefolder. Each runs in a process of its own, imagefolder with an empty cache.

    python benchmarks/bench_folder.py [--num_images 1200000] [--only ours]

The files are empty: neither of the two opens them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make_folder(root: Path, num_images: int, num_classes: int):
    for index in range(num_classes):
        (root / f"n{index:08d}").mkdir(parents=True)
    for index in range(num_images):
        label = index % num_classes
        os.close(os.open(root / f"n{label:08d}" / f"n{label:08d}_{index}.JPEG", os.O_CREAT | os.O_WRONLY))


def load(contestant: str, root: str) -> int:
    """The number of training images."""
    if contestant == "ours":
        from supmae_hf.data.arguments import DataArguments
        from supmae_hf.data.sources import load_training_data

        data = load_training_data(DataArguments(train_dir=root))
        data.table(), data.fingerprint()  # as before every run
        return len(data.train)
    import datasets

    data = datasets.load_dataset("imagefolder", data_dir=root, split="train")
    return len(data.train_test_split(0.1, seed=0, stratify_by_column="label")["train"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=1_200_000)
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--only", choices=("ours", "imagefolder"))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        contestant, root = args.run
        __import__("datasets"), __import__("supmae_hf.data.sources")  # which are not measured
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        count = load(contestant, root)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"| {contestant} | {count} | {seconds:.1f} | {peak / 2**20:.2f} | {(peak - before) / 2**20:.2f} |")
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make_folder(root, args.num_images, args.num_classes)
        print(f"{args.num_images} files in {args.num_classes} folders\n")
        print("| | training images | seconds | peak GiB | of which the imports had not taken |\n|---|---|---|---|---|")
        for contestant in [args.only] if args.only else ["ours", "imagefolder"]:
            environment = {
                **os.environ,
                "HF_HOME": str(Path(folder) / "cache"),
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            }
            command = [sys.executable, __file__, "--run", contestant, str(root)]
            print(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout, end="")


if __name__ == "__main__":
    main()
