#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
The paper's claim at a scale where anyone can check it: does SupMAE get by with fewer epochs and less compute than MAE?

    python experiments/efficiency.py [--quick]

Pre-trains SupMAE and MAE on scikit-learn's handwritten digits and trains the same ViT from scratch, each for 1/8, 1/4,
1/2 and all of --epochs with several seeds, and measures on held-out digits: a linear probe, fine-tuning, and the
fine-tuned model on corrupted digits. Each method's settings are chosen beforehand among as many trials, on a part of the
training images. Prints a table, writes results.json, results.csv and efficiency.png into --output_dir. Runs are kept as
they finish: after an interruption the same command goes on.
"""

import itertools
import statistics
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import IMAGE_SIZE, SMALL_MODEL, Comparison, table_of
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.cli import run as run_script
from supmae_hf.cost import Schedule, classification_flops, pretraining_flops
from supmae_hf.data.sources import load_digits
from supmae_hf.evaluation.probes import select_probe


METHODS = ("SupMAE", "MAE", "ViT from scratch")
MEASURES = {"probe": "linear probe", "finetuned": "fine-tuned", "corrupted": "fine-tuned, on corrupted digits"}
BATCH_SIZE, WEIGHT_DECAY = 64, 0.05
MODEL = {**SMALL_MODEL, "num_labels": 10}
LAYER_DECAY = 0.75  # of fine-tuning
OPTIMIZATION = ("learning_rate", "finetuning_rate", "finetuning_epochs")  # the settings that are no model's
# as many trials for each method: learning rates, and one more setting that matters to it
TRIALS = {
    "SupMAE": [
        {"learning_rate": rate, "finetuning_rate": finetuning_rate, "classification_loss_weight": weight}
        for rate, finetuning_rate, weight in itertools.product((1e-3, 2e-3), (2e-3, 4e-3), (0.1, 1.0))
    ],
    "MAE": [
        {"learning_rate": rate, "finetuning_rate": finetuning_rate, "decoder_num_hidden_layers": num_blocks}
        for rate, finetuning_rate, num_blocks in itertools.product((1e-3, 2e-3), (2e-3, 4e-3), (1, 4))
    ],
    "ViT from scratch": [
        {"learning_rate": rate, "drop_path_rate": drop_path_rate}
        for rate, drop_path_rate in itertools.product((1e-3, 2e-3, 4e-3, 8e-3), (0.0, 0.1))
    ],
}


def config_of(method: str, settings: dict) -> SupMAEConfig:
    own = {"classification_loss_weight": 0.0} if method == "MAE" else {}
    return SupMAEConfig(
        **MODEL,
        **own,
        **{key: value for key, value in settings.items() if key not in OPTIMIZATION},
    )


def schedule_of(method: str, settings: dict, epochs: int) -> Schedule:
    """The operations that a run takes."""
    config = config_of(method, settings)
    classify = 3 * classification_flops(config)
    if method == "ViT from scratch":
        return Schedule(method, classify, epochs)
    return Schedule(method, 3 * pretraining_flops(config), epochs, classify, settings["finetuning_epochs"])


def to_inputs(images: torch.Tensor) -> torch.Tensor:
    """Scans `(num_images, 1, 8, 8)` in [0, 1] as the model takes them."""
    size = [IMAGE_SIZE, IMAGE_SIZE]
    return v2.functional.normalize(v2.functional.resize(images, size, v2.InterpolationMode.BICUBIC), [0.5], [0.5])


def load_data():
    """Training and held-out scans `(num_images, 1, 8, 8)` in [0, 1], and their labels."""
    data = load_digits()
    return [
        (
            torch.from_numpy(np.stack(data[split]["image"])).unsqueeze(1).float() / 255,
            torch.tensor(data[split]["label"]),
        )
        for split in ("train", "validation")
    ]


def corrupted_inputs(images: torch.Tensor, severities: list[int]) -> torch.Tensor:
    """Every corruption of every scan: `(corruptions * severities, num_images, 1, height, width)`."""
    pixels = ((to_inputs(images)[:, 0] + 1) * 127.5).round().clamp(0, 255).byte()  # bicubic resizing overshoots
    return torch.from_numpy(comparison.corrupted_copies(pixels.numpy(), severities)).unsqueeze(2).float() / 127.5 - 1


def crops(images: torch.Tensor, labels: torch.Tensor | None, epochs: int):
    """Batches of random resized crops, as in the demo."""
    crop = v2.RandomResizedCrop(IMAGE_SIZE, scale=(0.6, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    for _ in range(epochs):
        for ids in torch.randperm(len(images)).split(BATCH_SIZE)[: len(images) // BATCH_SIZE]:
            pixel_values = torch.stack([crop(images[i]) for i in ids]).sub(0.5).div(0.5)
            yield pixel_values, None if labels is None else labels[ids]


def train_epochs(model, images, labels, epochs: int, learning_rate: float, layer_decay: float | None = None):
    steps = epochs * (len(images) // BATCH_SIZE)
    return comparison.train(model, crops(images, labels, epochs), steps, learning_rate, WEIGHT_DECAY, layer_decay)


def probe(encoder, images, labels, test_images, test_labels) -> float:
    """A linear probe on the class token or the mean of the patch tokens, whichever cross-validation prefers."""
    best_score, result = -1.0, 0.0
    for features, test_features in zip(*(comparison.tokens(encoder, to_inputs(x)) for x in (images, test_images))):
        classifier, score = select_probe(features, labels.cpu().numpy())
        if score > best_score:
            best_score, result = score, float(classifier.score(test_features, test_labels.cpu().numpy()))
    return result


def run(job: dict, data: dict) -> dict:
    """Train once, and measure on the held-out images of a trial, or of the comparison itself."""
    (images, labels), (test_images, test_labels) = data["tuning" if job["is_trial"] else "final"]
    method, settings, epochs = job["method"], job["settings"], job["epochs"]
    torch.manual_seed(job["seed"])
    config = config_of(method, settings)
    measured = {}
    if method == "ViT from scratch":
        model = SupMAEForImageClassification(config)
        train_epochs(model, images, labels, epochs, settings["learning_rate"])
    else:
        pretrained = SupMAEForPreTraining(config)
        train_epochs(pretrained, images, None if method == "MAE" else labels, epochs, settings["learning_rate"])
        measured["probe"] = probe(pretrained.vit, images, labels, test_images, test_labels)
        model = comparison.classifier_of(pretrained)
        train_epochs(model, images, labels, settings["finetuning_epochs"], settings["finetuning_rate"], LAYER_DECAY)
    measured["finetuned"] = comparison.accuracy(model, to_inputs(test_images), test_labels)
    if not job["is_trial"]:
        measured["corrupted"] = statistics.mean(
            comparison.accuracy(model, copies, test_labels) for copies in data["corrupted"]
        )
    return measured


def prepare(severities: list[int]) -> dict:
    train_data, test_data = load_data()
    kept, held_out = train_test_split(
        np.arange(len(train_data[1])), test_size=0.2, random_state=0, stratify=train_data[1].numpy()
    )
    return {
        "final": (train_data, test_data),
        "tuning": tuple((train_data[0][ids], train_data[1][ids]) for ids in (kept, held_out)),
        "corrupted": corrupted_inputs(test_data[0], severities),
    }


def finish(jobs: list[dict], runs: Comparison) -> list[dict]:
    """The jobs with their results; long ones run first, so that no process is left idle at the end."""
    jobs = sorted(jobs, key=lambda job: -job["epochs"])
    return [{**job, **result} for job, result in zip(jobs, runs.finish(jobs))]


def tune(runs: Comparison, epochs: int, finetuning_epochs: int, num_trials: int) -> dict[str, dict]:
    """Each method's best settings: the mean of probe (where there is one) and fine-tuned accuracy decides."""
    jobs = [
        {
            "is_trial": True,
            "method": method,
            "settings": {**settings, "finetuning_epochs": finetuning_epochs},
            "epochs": epochs,
            "seed": 100,
        }
        for method in METHODS
        for settings in TRIALS[method][:num_trials]
    ]
    results = finish(jobs, runs)

    def score(row: dict) -> float:
        return statistics.mean(row[name] for name in MEASURES if name in row)

    chosen = {m: max((row for row in results if row["method"] == m), key=score)["settings"] for m in METHODS}
    print("Chosen: " + "; ".join(f"{method} {settings}" for method, settings in chosen.items()), flush=True)
    return chosen


def summarize(results: list[dict], num_images: int) -> list[dict]:
    """A row per method and number of epochs: means and standard deviations over the seeds."""
    results = sorted(results, key=lambda row: (METHODS.index(row["method"]), row["epochs"]))
    keys = []
    for row in results:
        cost = schedule_of(row["method"], row["settings"], row["epochs"])
        keys.append({"method": row["method"], "epochs": row["epochs"], "TFLOPs": cost.total(num_images) / 1e12})
    return table_of(keys, results, MEASURES)


def reaches(rows: list[dict], title: str, column: str) -> float | None:
    """
    The share of MAE's longest run, in `column` (epochs or TFLOPs), at which SupMAE reaches its mean accuracy. The accuracy
    is interpolated linearly over the logarithm of the column. If SupMAE's shortest run is above it already, the share of
    that run; `None` if SupMAE stays below.
    """
    supmae, mae = ([row for row in rows if row["method"] == name] for name in ("SupMAE", "MAE"))
    target = mae[-1][title]
    for before, after in zip([None, *supmae], supmae):
        if after[title] >= target:
            if before is None:
                return after[column] / mae[-1][column]
            share = (target - before[title]) / (after[title] - before[title])
            return before[column] * (after[column] / before[column]) ** share / mae[-1][column]
    return None


def say_where(rows: list[dict], title: str) -> str:
    shares = {column: reaches(rows, title, column) for column in ("epochs", "TFLOPs")}
    if shares["epochs"] is None:
        return f"{title}: SupMAE reaches MAE's final accuracy in none of its runs."
    shortest = min(row["epochs"] for row in rows) / max(row["epochs"] for row in rows)
    bound = " or less" if shares["epochs"] == shortest else ""
    return f"{title}: SupMAE reaches MAE's final accuracy at " + " and ".join(
        f"{share:.1%} of its {column}{bound}" for column, share in shares.items()
    )


def draw(rows: list[dict], path: Path):
    titles = list(MEASURES.values())
    figure = Figure(figsize=(4 * len(titles), 6.4), layout="constrained")
    for line, column in zip(figure.subplots(2, len(titles)), ("epochs", "TFLOPs")):
        for axis, title in zip(line, titles):
            comparison.draw_lines(axis, rows, METHODS, "method", column, title)
            if column == "epochs":
                axis.set_title(title)
            axis.set_xlabel(
                "epochs of pre-training, or from scratch" if column == "epochs" else "TFLOPs, all training"
            )
        line[0].set_ylabel("accuracy on held-out digits (%)")
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main():
    numbers = {
        "epochs": (128, 24, "epochs of the longest runs, a multiple of 8"),
        "finetuning_epochs": (10, 5, "epochs of fine-tuning"),
        "seeds": (5, 2, "how many"),
        "trials": (8, 8, "settings to try for each method, 1 to 8"),
    }
    args = comparison.read_arguments(__doc__, "efficiency", numbers, sources={})
    if args.epochs % 8:
        raise ValueError(f"--epochs must be a multiple of 8, got {args.epochs}.")
    with Comparison(args, run, MEASURES, prepare, [3] if args.quick else [1, 2, 3, 4, 5]) as runs:
        chosen = tune(runs, args.epochs // 4, args.finetuning_epochs, args.trials)
        jobs = [
            {"is_trial": False, "method": m, "settings": chosen[m], "epochs": args.epochs // part, "seed": seed}
            for seed in range(args.seeds)
            for m in METHODS
            for part in (1, 2, 4, 8)
        ]
        rows = summarize(finish(jobs, runs), num_images=len(load_data()[0][1]))
        runs.write(rows)
        print()
        for title in MEASURES.values():
            print(say_where(rows, title))
        draw(rows, args.output_dir / "efficiency.png")


if __name__ == "__main__":
    run_script(main)
