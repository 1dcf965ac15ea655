#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Few-shot transfer of image encoders: K labelled images per class, linear probe and fine-tuning.

    python examples/run_few_shot.py --models a b c [--datasets digits cifar10 FOLDER ...]

--datasets takes names of the paper's benchmark (`benchmark` for all of them), data sets of the Hub, folders with one
sub-folder per class, and `digits`. Hyper-parameters are chosen on the K images per class alone. Prints means over the seeds
and their standard deviations, writes results.json, results.csv (per model, averaged over the data sets), results-detail.json,
results-detail.csv and results.png into --output_dir. After an interruption the same command goes on.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from transformers.hf_argparser import HfArg

from supmae_hf.cli import Count, Positive, Range, Seed, check, parse_arguments, run
from supmae_hf.evaluation.arguments import EvaluationArguments
from supmae_hf.evaluation.few_shot import BENCHMARK, FewShotTask, FineTuning, load_few_shot_data
from supmae_hf.evaluation.models import check_models, fingerprint
from supmae_hf.evaluation.tables import Journal, save_bars, say_written, write_table
from supmae_hf.preparation import Preparation


@dataclass
class FewShotArguments:
    """Data sets and protocol."""

    datasets: list[str] = HfArg(default_factory=lambda: ["digits"], help="Data sets, see above.")
    shots: list[Annotated[int, Range(2)]] = HfArg(default_factory=lambda: [5, 20, 50], help="Images per class.")
    seeds: list[Seed] = HfArg(default_factory=lambda: [0, 1, 2], help="Each draws other images.")
    methods: list[str] = HfArg(default_factory=lambda: ["probe", "finetune"], help="probe, finetune.")
    pooling: str = HfArg(default="model", help="Features: cls, mean, or model, as the model's own classifier has it.")
    epochs: Count = HfArg(default=FineTuning.epochs, help="Epochs of fine-tuning.")
    train_batch_size: Count = HfArg(default=FineTuning.batch_size, help="Batch size of fine-tuning.")
    learning_rates: list[Positive] = HfArg(
        default_factory=lambda: list(FineTuning.learning_rates), help="Learning rates of fine-tuning to choose from."
    )
    horizontal_flip: bool = HfArg(default=True, help="Mirror half of the images that are fine-tuned on.")

    def __post_init__(self):
        check(self)
        for method in self.methods:
            if method not in ("probe", "finetune"):
                raise ValueError(f"`--methods` are probe and finetune, got '{method}'.")
        if self.pooling not in ("model", "cls", "mean"):
            raise ValueError(f"`--pooling` must be model, cls or mean, got '{self.pooling}'.")
        if "benchmark" in self.datasets:
            others = [name for name in self.datasets if name != "benchmark" and name not in BENCHMARK]
            self.datasets = [*BENCHMARK, *others]


def measure(args: EvaluationArguments, few_shot: FewShotArguments, data: dict, journal: Journal):
    """Yield every (model, data set, method, shots) with its accuracies, one per seed."""
    settings = FineTuning(
        few_shot.epochs, few_shot.train_batch_size, tuple(few_shot.learning_rates), flip=few_shot.horizontal_flip
    )
    fingerprints = {dataset: images.fingerprint() for dataset, images in data.items()}
    for name in args.models:
        for dataset in data:
            task = None
            for method in few_shot.methods:
                for shots in few_shot.shots:
                    accuracies = []
                    for seed in few_shot.seeds:
                        key = {"model": fingerprint(name), "dataset": dataset, "pooling": few_shot.pooling}
                        key.update(method=method, shots=shots, seed=seed, data=fingerprints[dataset])
                        if method == "finetune":
                            key["settings"] = {**vars(settings), "learning_rates": few_shot.learning_rates}
                        result = journal.get(key)
                        if result is None:
                            if task is None:
                                task = FewShotTask(name, few_shot.pooling, data[dataset], args)
                            run = task.probe if method == "probe" else task.finetune
                            result = run(shots, seed) if method == "probe" else run(shots, seed, settings)
                            journal.add(key, result)
                            print(f"{name}, {dataset}, {method}, {shots} shots, seed {seed}: {result}", flush=True)
                        accuracies.append(100 * result["accuracy"])
                    yield name, dataset, method, shots, accuracies


def report(args: EvaluationArguments, few_shot: FewShotArguments, results: list[tuple], output_dir: Path):
    """Write the tables and the picture."""
    detail, rows = {}, []
    for name, dataset, method, shots, accuracies in results:
        row = detail.setdefault((name, dataset, method), {"model": name, "data set": dataset, "method": method})
        row[f"{shots} shots"] = statistics.mean(accuracies)
        row[f"{shots} shots std"] = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    for model in args.models:
        row = {"model": model}
        for method in few_shot.methods:
            for shots in few_shot.shots:
                # the average over the data sets, for each seed
                runs = [values for name, _, m, k, values in results if (name, m, k) == (model, method, shots)]
                means = [statistics.mean(values) for values in zip(*runs)]
                row[f"{method}, {shots} shots"] = statistics.mean(means)
                row[f"{method}, {shots} shots std"] = statistics.stdev(means) if len(means) > 1 else 0.0
        rows.append(row)
    print(f"\nTop-1 accuracy in percent, {len(few_shot.seeds)} seeds.\n")
    write_table(list(detail.values()), output_dir, "results-detail")
    print(f"\nAveraged over the {len(few_shot.datasets)} data sets:\n")
    write_table(rows, output_dir, "results")
    shown = [column for column in rows[0] if column != "model" and not column.endswith(" std")]
    save_bars(rows, "model", shown, output_dir / "results.png", "top-1 accuracy (%)", errors=" std")
    say_written(output_dir, "results.json", "results.csv", "results-detail.json", "results-detail.csv", "results.png")


def main():
    args, few_shot = parse_arguments((EvaluationArguments, FewShotArguments), description=__doc__)
    if args.state.num_processes > 1:
        raise SystemExit(
            f"run_few_shot.py runs in one process, not {args.state.num_processes}: start it by `python`, and give each "
            "device some of the `--models` and an `--output_dir` of its own."
        )
    check_models(args.models, Preparation.load)
    data = {name: load_few_shot_data(name) for name in few_shot.datasets}
    with args.open_output_dir(few_shot.datasets) as (output_dir, journal):
        report(args, few_shot, list(measure(args, few_shot, data, journal)), output_dir)


if __name__ == "__main__":
    run(main)
