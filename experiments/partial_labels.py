#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Measure what labels add to pre-training, and when pre-training pays, if only some of the images have a label.

    python experiments/partial_labels.py [--data FOLDER] [--quick]

Takes Fashion-MNIST from the Hub, or any set in its format (28x28 grey images) from a folder, and labels for 0.5%, 2%, 10%
and 100% of its 60,000 training images, drawn three times. Every arm has the same encoder and as many FLOPs of training in
all, and chooses its settings among as many trials, on a third of its labelled images that the trials held out:

- SupMAE on all images, with the labels that there are, then fine-tuned on the labelled images;
- MAE on all images, then fine-tuned in the same way;
- SupMAE on the labelled images only, then fine-tuned on them;
- a ViT from scratch on the labelled images.

Measures on the test images a linear probe, nearest neighbours, fine-tuning, and the fine-tuned model on corrupted images;
the same with less compute for two of the shares. `--quick` is a part of the latter, with the settings that the trials of the
full run chose. `--sweep` does something else: SupMAE with other weights and temperatures
of the classification loss, and more or fewer labelled images in a batch, measured on training images. Runs are kept as they
finish: after an interruption the same command goes on. Prints tables and writes them and the figures into --output_dir.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import SMALL_MODEL, Comparison, balanced, crop_and_flip, endless, load_images, table_of, to_inputs
from matplotlib.figure import Figure
from torchvision.transforms import v2

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.cli import run as run_script
from supmae_hf.cost import classification_flops, pretraining_flops
from supmae_hf.evaluation.corruptions import SEVERITIES
from supmae_hf.supervision_supmae import UNLABELED
from supmae_hf.training.objective import BranchCheck, branch_gradient_share


MEASURES = {
    "finetuned": "fine-tuned",
    "probe": "linear probe",
    "knn": "nearest neighbours",
    "corrupted": "fine-tuned, on corrupted images",
}
SHARES = (0.005, 0.02, 0.1, 1.0)
WEIGHT_DECAY, LAYER_DECAY = 0.05, 0.75
BATCH = 64
PRETRAINING_SHARE = 2 / 3  # of a run's FLOPs; the rest is fine-tuning
LABELED_SHARE = 0.5  # of a batch at least, or else few labels are seen a few times only
DROP_PATH_RATE = 0.1  # of fine-tuning and training from scratch
MAX_HELD_OUT = 200  # images of a class that trials are measured on
MAX_BANK = 10_000  # labelled images of a probe, and among which neighbours are looked for
ARMS = SUPMAE, MAE, LABELED_ONLY, SCRATCH = "SupMAE", "MAE", "SupMAE, labelled images only", "ViT from scratch"
PIXELS = "raw pixels"
# as many trials for each arm: two settings of pre-training times two of fine-tuning, or four of training from scratch
PRETRAINING_TRIALS = {
    SUPMAE: [{"classification_loss_weight": 0.1}, {"classification_loss_weight": 0.01}],
    MAE: [{"learning_rate": 2e-3}, {"learning_rate": 1e-3}],
    LABELED_ONLY: [{"classification_loss_weight": 0.1}, {"classification_loss_weight": 0.01}],
}
PRETRAINING_DEFAULTS = {"learning_rate": 2e-3, "classification_loss_weight": 0.1}
FINETUNING_TRIALS = [{"learning_rate": 3e-3}, {"learning_rate": 1e-3}]
SCRATCH_TRIALS = [
    {"learning_rate": rate, "mixing": mixing} for mixing, rate in itertools.product((False, True), (3e-3, 1e-3))
]
SWEEP = [
    {"classification_loss_weight": weight, "classification_temperature": temperature}
    for weight, temperature in itertools.product((0.001, 0.01, 0.1, 1.0), (1.0, 10.0))
]
# and, for few labels, how many images of a batch have one
SHARE_SWEEP = [{**PRETRAINING_DEFAULTS, "labeled_share": share} for share in (0.0, 0.25, 0.75)]
SWEEP_SHARES, SWEEP_HELD_OUT = (0.02, 1.0), 500  # of each class
# of SWEEP_SHARES, what the trials of the full run chose (docs/results/partial-labels), for --quick, which has none
CHOSEN = {
    (SUPMAE, 0.02): ({"classification_loss_weight": 0.01}, {"learning_rate": 3e-3}),
    (SUPMAE, 1.0): ({"classification_loss_weight": 0.1}, {"learning_rate": 3e-3}),
    (MAE, 0.02): ({"learning_rate": 1e-3}, {"learning_rate": 3e-3}),
    (MAE, 1.0): ({"learning_rate": 2e-3}, {"learning_rate": 3e-3}),
    (LABELED_ONLY, 0.02): ({"classification_loss_weight": 0.01}, {"learning_rate": 3e-3}),
    (SCRATCH, 0.02): ({}, {"learning_rate": 1e-3, "mixing": False}),
    (SCRATCH, 1.0): ({}, {"learning_rate": 3e-3, "mixing": False}),
}


def config_of(arm: str, settings: dict, num_labels: int) -> SupMAEConfig:
    names = ("classification_loss_weight", "classification_temperature")
    fields = {name: value for name, value in {**PRETRAINING_DEFAULTS, **settings}.items() if name in names}
    if arm == MAE:
        fields["classification_loss_weight"] = 0.0
    return SupMAEConfig(**{**SMALL_MODEL, **fields}, num_labels=num_labels)


def image_flops(arm: str, config: SupMAEConfig) -> tuple[int, int]:
    """FLOPs of training with one image: pre-training (0 for a ViT from scratch), and fine-tuning or from scratch."""
    pretraining = 0 if arm == SCRATCH else 3 * pretraining_flops(config)
    return pretraining, 3 * classification_flops(config)


def steps_of(arm: str, config: SupMAEConfig, flops: float) -> tuple[int, int]:
    """Steps of pre-training, and of fine-tuning or training from scratch, that take so many FLOPs together."""
    pretraining, classification = image_flops(arm, config)
    if arm == SCRATCH:
        return 0, round(flops / (classification * BATCH))
    share = PRETRAINING_SHARE
    return (
        round(share * flops / (pretraining * BATCH)),
        round((1 - share) * flops / (classification * BATCH)),
    )


def pretraining_batches(
    images, labels, pool: torch.Tensor, labeled: torch.Tensor, labeled_share: float = LABELED_SHARE
):
    """Images of `pool`, of which those that are `labeled` have their label, and make up a share of a batch at least."""
    known = torch.full_like(labels, UNLABELED)
    known[labeled] = labels[labeled]
    few = 0 < len(labeled) < labeled_share * len(pool)
    extra = round(labeled_share * BATCH) if few else 0
    for ids in zip(endless(pool, BATCH - extra), endless(labeled, extra)):
        ids = torch.cat(ids)
        yield crop_and_flip(images[ids]), known[ids]


def labeled_batches(images, labels, labeled: torch.Tensor, mixing: bool):
    num_classes = len(labels.unique())
    mix = v2.RandomChoice(
        [v2.MixUp(alpha=0.8, num_classes=num_classes), v2.CutMix(alpha=1.0, num_classes=num_classes)]
    )
    for ids in endless(labeled, BATCH):
        batch = crop_and_flip(images[ids]), labels[ids]
        yield mix(*batch) if mixing else batch


def pretrain(arm: str, settings: dict, flops: float, labeled: torch.Tensor, data: dict):
    """The model, and the share of the encoder's gradient that its classification branch had in the 20th step."""
    images, labels = data["images"], data["labels"]
    config = config_of(arm, settings, data["num_labels"])
    model = SupMAEForPreTraining(config)
    pool = labeled if arm == LABELED_ONLY else torch.arange(len(images))

    step, shares = itertools.count(1), []

    def loss_of(model, pixel_values, labels):
        if next(step) == BranchCheck.STEP and arm != MAE:
            shares.append(branch_gradient_share(model, {"pixel_values": pixel_values, "labels": labels}).item())
        return model(pixel_values, labels=None if arm == MAE else labels).loss

    comparison.train(
        model,
        pretraining_batches(
            images,
            labels,
            pool,
            labeled[:0] if arm == MAE else labeled,
            settings.get("labeled_share", LABELED_SHARE),
        ),
        steps_of(arm, config, flops)[0],
        settings.get("learning_rate", PRETRAINING_DEFAULTS["learning_rate"]),
        WEIGHT_DECAY,
        loss_of=loss_of,
    )
    return model, shares[0] if shares else 0.0


def finetune(pretrained: SupMAEForPreTraining | None, settings: dict, flops: float, labeled: torch.Tensor, data: dict):
    """A classifier from a pre-trained model, or from scratch."""
    arm = SCRATCH if pretrained is None else SUPMAE
    if pretrained is None:
        config = config_of(arm, {}, data["num_labels"])
        config.drop_path_rate = DROP_PATH_RATE
        model = SupMAEForImageClassification(config)
    else:
        model = comparison.classifier_of(pretrained, drop_path_rate=DROP_PATH_RATE)
    batches = labeled_batches(data["images"], data["labels"], labeled, settings.get("mixing", False))
    layer_decay = None if pretrained is None else LAYER_DECAY
    steps = steps_of(arm, model.config, flops)[1]
    return comparison.train(model, batches, steps, settings["learning_rate"], WEIGHT_DECAY, layer_decay)


def measure_features(encoder, labeled: torch.Tensor, data: dict) -> dict:
    """[`comparison.measure_features`] of at most [`MAX_BANK`] labelled images `(classes, per_class)`."""
    return comparison.measure_features(encoder, data, labeled[:, : MAX_BANK // len(labeled)].flatten())


def hold_out(labeled: torch.Tensor, data: dict) -> tuple[torch.Tensor, dict]:
    """A third of the labelled images `(classes, per_class)` in the place of the test images, and the others."""
    number = min(labeled.shape[1] // 3, MAX_HELD_OUT)
    ids = labeled[:, :number].flatten()
    return labeled[:, number:], {**data, "test_images": data["images"][ids], "test_labels": data["labels"][ids]}


def run(job: dict, data: dict) -> list[dict]:
    """Pre-train once (if the arm does), and fine-tune and measure for each of the job's fine-tunings."""
    if job["stage"] == "pixels":
        start, number = time.perf_counter(), job["finetunings"][0]["labels_per_class"]
        result = measure_features(None, balanced(data["labels"], number, job["draw"]), data)
        return [{**result, "seconds": time.perf_counter() - start}]
    arm, pretrained, results = job["arm"], None, []
    for finetuning in job["finetunings"]:
        start, here = time.perf_counter(), data
        labeled = balanced(data["labels"], finetuning["labels_per_class"], job["draw"])
        if job["stage"] == "trial":
            labeled, here = hold_out(labeled, data)
        torch.manual_seed(job["draw"])
        if arm != SCRATCH and pretrained is None:
            pretrained, gradient_share = pretrain(arm, job["pretraining"], job["flops"], labeled.flatten(), here)
        model = finetune(pretrained, finetuning["settings"], job["flops"], labeled.flatten(), here)
        result = {"finetuned": comparison.accuracy(model, to_inputs(here["test_images"]), here["test_labels"])}
        if pretrained is not None and job["stage"] != "trial":
            result |= measure_features(pretrained.vit, labeled, here)
            result["gradient_share"] = gradient_share
        if job["stage"] == "final":
            answers = here["test_labels"][: len(here["corrupted"][0])]
            result["corrupted"] = statistics.mean(
                comparison.accuracy(model, to_inputs(torch.tensor(copies).unsqueeze(1)), answers)
                for copies in here["corrupted"]
            )
        results.append({**result, "seconds": time.perf_counter() - start})
    return results


def run_job(job: dict, data: dict) -> list[dict]:
    """[`run`] with the images that the job's stage is measured on."""
    if job["stage"] == "sweep":
        held_out = balanced(data["labels"], SWEEP_HELD_OUT, seed=0).flatten()
        is_kept = torch.ones(len(data["labels"]), dtype=torch.bool).index_fill(0, held_out, False)
        data = {
            **data,
            "images": data["images"][is_kept],
            "labels": data["labels"][is_kept],
            "test_images": data["images"][held_out],
            "test_labels": data["labels"][held_out],
        }
    elif job["stage"] == "final":
        data = {**data, "corrupted": np.load(data["corrupted"], mmap_mode="c")}
    return run(job, data)


def arms_at(per_class: int, data: dict) -> list[str]:
    """The arms that differ from each other: if all images are labelled, the one on these alone equals SupMAE."""
    all_labeled = per_class * data["num_labels"] >= len(data["images"])
    return [arm for arm in ARMS if not (all_labeled and arm == LABELED_ONLY)]


def job_of(stage: str, arm: str, pretraining: dict, flops: float, draw: int, finetunings: list[dict]) -> dict:
    return {
        "stage": stage,
        "arm": arm,
        "pretraining": pretraining,
        "flops": flops,
        "draw": draw,
        "finetunings": finetunings,
    }


def trials(per_class: list[int], flops: float, data: dict) -> list[dict]:
    """As many for every arm and number of labels; MAE, which takes no labels, pre-trains once for all numbers."""
    jobs = []
    for arm in ARMS:
        numbers = [number for number in per_class if arm in arms_at(number, data)]
        settings = SCRATCH_TRIALS if arm == SCRATCH else FINETUNING_TRIALS
        for pretraining in [{}] if arm == SCRATCH else PRETRAINING_TRIALS[arm]:
            for group in [numbers] if arm == MAE else [[number] for number in numbers]:
                finetunings = [{"labels_per_class": number, "settings": x} for number in group for x in settings]
                jobs.append(job_of("trial", arm, pretraining, flops, 0, finetunings))
    return jobs


def choose(jobs: list[dict], results: list[list[dict]]) -> dict[tuple[str, int], tuple[dict, dict]]:
    """The settings of pre-training and fine-tuning with the best accuracy on held-out images, by arm and number of labels."""
    scores = {}
    for job, measured in zip(jobs, results):
        for finetuning, result in zip(job["finetunings"], measured):
            trial = result["finetuned"], job["pretraining"], finetuning["settings"]
            scores.setdefault((job["arm"], finetuning["labels_per_class"]), []).append(trial)
    return {key: max(trials, key=lambda trial: trial[0])[1:] for key, trials in scores.items()}


def final_jobs(chosen: dict, per_class: list[int], flops: float, draw: int) -> list[dict]:
    """Every arm at these numbers of labels; MAE pre-trains once for those with the same settings."""
    jobs = []
    for arm in ARMS:
        groups = {}
        for number in [number for number in per_class if (arm, number) in chosen]:
            pretraining, settings = chosen[arm, number]
            group = json.dumps(pretraining) if arm == MAE else number
            groups.setdefault(group, (pretraining, []))[1].append({"labels_per_class": number, "settings": settings})
        jobs += [job_of("final", arm, pretraining, flops, draw, group) for pretraining, group in groups.values()]
    return jobs


def sweep_jobs(per_class: list[int], flops: float, draws: int) -> list[dict]:
    return [
        job_of(
            "sweep", SUPMAE, settings, flops, draw, [{"labels_per_class": number, "settings": FINETUNING_TRIALS[0]}]
        )
        for draw in range(draws)
        for number in per_class
        for settings in (SWEEP + SHARE_SWEEP if number == min(per_class) else SWEEP)
    ]


def summarize(jobs: list[dict], results: list[list[dict]], num_labels: int) -> list[dict]:
    """A row per arm, settings that a sweep varies, number of labels and budget: means and deviations over the draws."""
    keys, measured = [], []
    for job, parts in zip(jobs, results):
        varied = job["pretraining"] if job["stage"] == "sweep" else {}
        for finetuning, result in zip(job["finetunings"], parts):
            labels = finetuning["labels_per_class"] * num_labels
            keys.append({"arm": job["arm"], **varied, "labels": labels, "TFLOPs": job["flops"] / 1e12})
            measured.append(result)
    rows = table_of(keys, measured, {**MEASURES, "gradient_share": "share of the gradient"}, "draws")
    return sorted(rows, key=lambda row: (-row["TFLOPs"], row["labels"], [*ARMS, PIXELS].index(row["arm"])))


def say_best(rows: list[dict]) -> list[str]:
    """The arms in the order of their accuracy, a line for each number of labels."""
    lines = []
    for labels in sorted({row["labels"] for row in rows}):
        ranked = sorted((row for row in rows if row["labels"] == labels), key=lambda row: -row["fine-tuned"])
        lines.append(f"{labels} labels: " + ", ".join(f"{row['arm']} {row['fine-tuned']:.1%}" for row in ranked))
    return lines


def draw_figures(rows: list[dict], folder: Path):
    """Accuracy over labels at the largest budget, a panel for each measure; and over compute, one for each number of labels."""
    largest = max(row["TFLOPs"] for row in rows)
    panels = [("labels", title, [row for row in rows if row["TFLOPs"] == largest]) for title in MEASURES.values()]
    save_panels(panels, [title for _, title, _ in panels], folder / "partial_labels.png")
    numbers = sorted({row["labels"] for row in rows if row["TFLOPs"] < largest})
    panels = [("TFLOPs", "fine-tuned", [row for row in rows if row["labels"] == number]) for number in numbers]
    if panels:
        save_panels(panels, [f"fine-tuned on {number} labels" for number in numbers], folder / "compute.png")


def save_panels(panels: list[tuple[str, str, list[dict]]], titles: list[str], path: Path):
    figure = Figure(figsize=(8, 7 if len(panels) > 2 else 4), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flatten()
    for axis, title, (x, y, rows) in zip(axes, titles, panels):
        comparison.draw_lines(axis, rows, ARMS, "arm", x, y)
        axis.set_xticks(sorted({row[x] for row in rows}))
        axis.minorticks_off()
        axis.set_title(title)
    for axis in axes[::2]:
        axis.set_ylabel("accuracy on test images (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ARMS), frameon=False)
    figure.savefig(path, dpi=150)


def main():
    tflops, draws = (4.0, 2) if "--sweep" in sys.argv else (8.0, 3)
    numbers = {
        "tflops": (tflops, 2.0, "10^12 operations of a run, all training"),
        "draws": (draws, 1, "draws of the labelled images, each with a seed"),
    }
    sweep = "compare weights and temperatures of the classification loss instead"
    pixels = "measure raw pixels instead of features, with the fewest labels"
    args = comparison.read_arguments(__doc__, "partial-labels", numbers, sweep=sweep, pixels=pixels)
    flops, data = 1e12 * args.tflops, load_images(args.data)
    num_labels = data["num_labels"]
    shares = SWEEP_SHARES if args.quick or args.sweep else SHARES
    counts = data["labels"].bincount() - (SWEEP_HELD_OUT if args.sweep else 0)
    if counts.min() < 3:
        raise ValueError(f"{args.data} has too few images of a class: {counts.min()} to train on.")
    per_class = [max(3, round(share * counts.min().item())) for share in shares]
    corrupted = args.output_dir / "corrupted.npy"
    with Comparison(args, run_job, MEASURES, dict, {**data, "corrupted": corrupted}) as runs:
        if args.pixels:
            labels = [{"labels_per_class": per_class[0], "settings": {}}]
            jobs = [job_of("pixels", PIXELS, {}, 0.0, draw, labels) for draw in range(args.draws)]
        elif args.sweep:
            jobs = sweep_jobs(per_class, flops, args.draws)
        else:
            images, severities = (
                (data["test_images"][:200], [3]) if args.quick else (data["test_images"][:500], SEVERITIES)
            )
            comparison.corrupt_images(images, severities, runs.pool, corrupted)
            if args.quick:
                chosen = {(arm, per_class[shares.index(share)]): settings for (arm, share), settings in CHOSEN.items()}
            else:
                tried = trials(per_class, flops / 4, data)
                chosen = choose(tried, runs.finish(tried))
            for (arm, number), settings in chosen.items():
                print(f"Chosen for {arm} at {number * num_labels} labels: {settings}", flush=True)
            jobs = [job for draw in range(args.draws) for job in final_jobs(chosen, per_class, flops, draw)]
            if not args.quick:
                some = [number for number, share in zip(per_class, shares) if share in SWEEP_SHARES]
                jobs += [
                    job
                    for part in (2, 4)
                    for draw in range(args.draws)
                    for job in final_jobs(chosen, some, flops / part, draw)
                ]
        rows = summarize(jobs, runs.finish(jobs), num_labels)
        runs.write(rows)
        if not args.sweep and not args.pixels:
            print("\n" + "\n".join(say_best([row for row in rows if row["TFLOPs"] == args.tflops])))
            draw_figures(rows, args.output_dir)


if __name__ == "__main__":
    run_script(main)
