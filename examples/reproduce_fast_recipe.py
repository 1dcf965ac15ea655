#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
What smaller images and more hidden patches in a part of the run are worth, at equal compute and at half of it.

    python examples/reproduce_fast_recipe.py [--data FOLDER] [--quick]

Pre-trains SupMAE on the images of Fashion-MNIST and their labels (from the Hub, or any set in its format from a folder): as the
paper does, with images of half, three quarters and all of the size for a third of the run each, with 85% of the patches hidden
instead of 75%, and with both, as in configs/pretrain_vit_b_fast.yaml. Runs of one budget take as many FLOPs, so that cheaper
steps are more steps. Fine-tunes all of them alike and measures on the test images. Runs are kept as they finish: after an
interruption the same command goes on. Prints a table and writes it into --output_dir.
"""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import torch

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.cost import classification_flops
from supmae_hf.evaluation.experiments import (
    SMALL_MODEL,
    accuracy,
    averaged,
    balanced,
    classifier_of,
    crop_and_flip,
    endless,
    keep_data,
    load_images,
    run_jobs,
    to_inputs,
    tokens,
    train,
    worker_data,
    worker_pool,
)
from supmae_hf.evaluation.probes import select_probe
from supmae_hf.evaluation.tables import Journal, say_written, write_table
from supmae_hf.training.recipes import Parser
from supmae_hf.training.recipes import run as run_script
from supmae_hf.training.schedules import StepSchedule, scheduled, scheduled_flops


MODEL = {**SMALL_MODEL, "patch_size": 4, "classification_loss_weight": 0.1}  # of 64 patches, 16 visible
BATCH = 64
SMALLER = StepSchedule((0.0, 0.34, 0.67), (16, 24, 32))
HIDDEN = StepSchedule((0.0,), (0.85,))
ARMS = {
    "as published": (None, None),
    "smaller images first": (SMALLER, None),
    "more hidden": (None, HIDDEN),
    "both": (SMALLER, HIDDEN),
}
MEASURES = {"finetuned": "fine-tuned", "probe": "linear probe"}


def steps_of(arm: str, config: SupMAEConfig, flops: float) -> int:
    """Steps of pre-training that take so many FLOPs."""
    return round(flops / (3 * scheduled_flops(config, *ARMS[arm]) * BATCH))


def run(job: dict, data: dict) -> dict:
    """Pre-train, fine-tune, measure."""
    start, images, labels = time.perf_counter(), data["images"], data["labels"]
    torch.manual_seed(job["seed"])
    config = SupMAEConfig(**MODEL, num_labels=data["num_labels"])
    num_steps, step = steps_of(job["arm"], config, job["flops"]), itertools.count()

    def loss_of(model, pixel_values, labels):
        inputs = {"pixel_values": pixel_values, "labels": labels}
        return model(**scheduled(inputs, config, next(step) / num_steps, *ARMS[job["arm"]])).loss

    def batches():
        for ids in endless(torch.arange(len(images)), BATCH):
            yield crop_and_flip(images[ids]), labels[ids]

    pretrained = train(SupMAEForPreTraining(config), batches(), num_steps, 2e-3, loss_of=loss_of)
    bank = balanced(labels, min(1000, labels.bincount().min().item()), seed=0).flatten()
    features, queries = (tokens(pretrained.vit, to_inputs(x))[1] for x in (images[bank], data["test_images"]))
    probe, _ = select_probe(features, labels[bank].numpy())
    num_steps = round(job["finetuning_flops"] / (3 * classification_flops(config) * BATCH))
    model = train(classifier_of(pretrained, drop_path_rate=0.1), batches(), num_steps, 1e-3, layer_decay=0.75)
    return {
        "finetuned": accuracy(model, to_inputs(data["test_images"]), data["test_labels"]),
        "probe": float(probe.score(queries, data["test_labels"].numpy())),
        "seconds": time.perf_counter() - start,
    }


def work(job: dict) -> tuple[dict, dict]:
    return job, run(job, worker_data)


def line_of(job: dict, result: dict) -> str:
    return (
        f"{job['arm']}, {job['flops'] / 1e12:g} TFLOPs, seed {job['seed']}: fine-tuned {result['finetuned']:.2%}, linear probe "
        f"{result['probe']:.2%} ({result['seconds'] / 60:.1f} minutes)"
    )


def summarize(jobs: list[dict], results: list[dict], config: SupMAEConfig) -> list[dict]:
    """A row per budget and arm: means and deviations over the seeds."""
    groups = {}
    for job, result in zip(jobs, results):
        groups.setdefault((job["flops"], job["arm"]), []).append(result)
    rows = []
    for (flops, arm), runs in groups.items():
        row = {"TFLOPs": flops / 1e12, "arm": arm, "steps": steps_of(arm, config, flops), "seeds": len(runs)}
        rows.append(row | averaged(runs, MEASURES))
    return rows


def main():
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of the compute, one seed: minutes")
    parser.add_argument(
        "--data", default="zalando-datasets/fashion_mnist", help="a data set, or a folder of IDX files"
    )
    parser.add_argument("--tflops", type=float, help="of pre-training (default: 8; quick: 1)")
    parser.add_argument("--seeds", type=int, help="how many (default: 3; quick: 1)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time; default: one per core")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/fast-recipe, or -quick")
    args = parser.parse_args()
    flops = 1e12 * (args.tflops if args.tflops is not None else 1 if args.quick else 8)
    seeds = args.seeds if args.seeds is not None else 1 if args.quick else 3
    output_dir = args.output_dir or Path("outputs") / ("fast-recipe" + "-quick" * args.quick)
    if not 0 < flops < np.inf or min(seeds, args.processes) < 1:
        parser.error("--tflops must be above 0, --seeds and --processes at least 1.")

    data, start = load_images(args.data), time.perf_counter()
    jobs = [
        {"arm": arm, "flops": budget, "finetuning_flops": flops / 4, "seed": seed}
        for seed in range(seeds)
        for budget in (flops, flops / 2)
        for arm in ARMS
    ]
    journal = Journal(output_dir / "runs.jsonl")
    with worker_pool(args.processes, keep_data, data) as pool:
        results = run_jobs(jobs, work, pool, journal, line_of)
    print()
    config = SupMAEConfig(**MODEL, num_labels=data["num_labels"])
    write_table(summarize(jobs, results, config), output_dir, "results")
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes with {args.processes} processes.")
    say_written(output_dir, "results.json", "results.csv", "runs.jsonl")


if __name__ == "__main__":
    run_script(main)
