#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Compare recipes with smaller images and more hidden patches in a part of the run, at equal compute and at half of it.

    python experiments/fast_recipe.py [--data FOLDER] [--quick]

Pre-trains SupMAE on the images of Fashion-MNIST and their labels (from the Hub, or any set in its format from a folder): as the
paper does, with images of half, three quarters and all of the size for a third of the run each, with 85% of the patches hidden
instead of 75%, and with both, as in configs/pretrain_vit_b_fast.yaml. Runs of one budget take as many FLOPs, so that cheaper
steps are more steps. Fine-tunes all of them alike and measures on the test images. Runs are kept as they finish: after an
interruption the same command goes on. Prints a table and writes it into --output_dir.
"""

import itertools

import comparison
import torch
from comparison import SMALL_MODEL, Comparison, endless, table_of, to_inputs

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.cli import run as run_script
from supmae_hf.cost import classification_flops
from supmae_hf.evaluation.probes import select_probe
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
    images, labels = data["images"], data["labels"]
    torch.manual_seed(job["seed"])
    config = SupMAEConfig(**MODEL, num_labels=data["num_labels"])
    num_steps, step = steps_of(job["arm"], config, job["flops"]), itertools.count()

    def loss_of(model, pixel_values, labels):
        inputs = {"pixel_values": pixel_values, "labels": labels}
        return model(**scheduled(inputs, config, next(step) / num_steps, *ARMS[job["arm"]])).loss

    def batches():
        for ids in endless(torch.arange(len(images)), BATCH):
            yield comparison.crop_and_flip(images[ids]), labels[ids]

    pretrained = comparison.train(SupMAEForPreTraining(config), batches(), num_steps, 2e-3, loss_of=loss_of)
    bank = comparison.balanced(labels, min(1000, labels.bincount().min().item()), seed=0).flatten()
    features, queries = (
        comparison.tokens(pretrained.vit, to_inputs(x))[1] for x in (images[bank], data["test_images"])
    )
    probe, _ = select_probe(features, labels[bank].cpu().numpy())
    num_steps = round(job["finetuning_flops"] / (3 * classification_flops(config) * BATCH))
    model = comparison.train(
        comparison.classifier_of(pretrained, drop_path_rate=0.1), batches(), num_steps, 1e-3, layer_decay=0.75
    )
    return {
        "finetuned": comparison.accuracy(model, to_inputs(data["test_images"]), data["test_labels"]),
        "probe": float(probe.score(queries, data["test_labels"].cpu().numpy())),
    }


def main():
    numbers = {"tflops": (8.0, 1.0, "10^12 operations of pre-training"), "seeds": (3, 1, "how many")}
    args = comparison.read_arguments(__doc__, "fast-recipe", numbers)
    flops = 1e12 * args.tflops
    jobs = [
        {"arm": arm, "flops": budget, "finetuning_flops": flops / 4, "seed": seed}
        for seed in range(args.seeds)
        for budget in (flops, flops / 2)
        for arm in ARMS
    ]
    data = comparison.load_images(args.data)
    config = SupMAEConfig(**MODEL, num_labels=data["num_labels"])
    with Comparison(args, run, MEASURES, dict, data) as runs:
        results = runs.finish(jobs)
        keys = [
            {"TFLOPs": job["flops"] / 1e12, "arm": job["arm"], "steps": steps_of(job["arm"], config, job["flops"])}
            for job in jobs
        ]
        runs.write(table_of(keys, results, MEASURES))


if __name__ == "__main__":
    run_script(main)
