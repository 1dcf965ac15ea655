#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
`SupMAEForImageClassification` against `ViTForImageClassification`, both ViT-B/16, on whole images, in turn.

    python benchmarks/bench_inference.py
"""

import argparse
import statistics
from functools import partial

import torch
from common import alternate, ratio, report
from transformers import ViTConfig, ViTForImageClassification

from supmae_hf import SupMAEConfig, SupMAEForImageClassification


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    models = {
        "SupMAE": SupMAEForImageClassification(SupMAEConfig(num_labels=1000)),
        "ViT": ViTForImageClassification(ViTConfig(num_labels=1000)),
    }
    pixel_values = torch.randn(args.batch_size, 3, 224, 224, device=device)
    rows = []
    for dtype in ("fp32", "bf16"):

        def classify(model, enabled=dtype == "bf16"):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                model(pixel_values)

        runs = {name: partial(classify, model.to(device).eval()) for name, model in models.items()}
        seconds = alternate(runs, args.rounds)
        for name, times in seconds.items():
            row = {"model": name, "dtype": dtype, "images/s": args.batch_size / statistics.median(times)}
            rows.append({**row, "faster than ViT by": ratio(seconds["ViT"], times)})
    report("inference", rows)


if __name__ == "__main__":
    main()
