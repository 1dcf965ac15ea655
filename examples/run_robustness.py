#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Robustness of image classifiers, as in the paper: error under the corruptions of ImageNet-C and mCE, accuracy on
ImageNet-A, -R and -Sketch, and the mean of 100 - mCE and the three.

    python examples/run_robustness.py --models a b --imagenet_c DIR --imagenet_a DIR --imagenet_r DIR \
        --imagenet_sketch DIR

Each DIR is a folder with one sub-folder per class (ImageNet-C: CORRUPTION/SEVERITY/CLASS) or a data set of the Hub with
these folders. Without --imagenet_c the images that --dataset_name or --image_dir name, by default the held-out digits,
are corrupted on the fly. Prints a table, writes results.json, results.csv and results.png into --output_dir; after an
interruption the same command goes on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from transformers.hf_argparser import HfArg

from supmae_hf.cli import Range, check, parse_arguments, run
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.image_data import ImageData
from supmae_hf.data.labels import imagenet_indices
from supmae_hf.data.sources import load_evaluation_data
from supmae_hf.evaluation.arguments import EvaluationArguments, data_key
from supmae_hf.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, Corrupt
from supmae_hf.evaluation.encode import predict
from supmae_hf.evaluation.models import check_models, fingerprint, load_classifier, map_classes
from supmae_hf.evaluation.robustness import (
    corruption_errors,
    mean_corruption_error,
    robustness_score,
    subset_accuracy,
    subset_classes,
)
from supmae_hf.evaluation.tables import Journal, save_bars, say_written, write_table
from supmae_hf.preparation import Preparation


@dataclass
class RobustnessArguments:
    """The benchmarks to run."""

    imagenet_c: str | None = HfArg(
        default=None, help="ImageNet-C; default: corrupt the images of the data set on the fly."
    )
    imagenet_a: str | None = HfArg(default=None, help="ImageNet-A.")
    imagenet_r: str | None = HfArg(default=None, help="ImageNet-R.")
    imagenet_sketch: str | None = HfArg(default=None, help="ImageNet-Sketch.")
    corruptions: list[str] = HfArg(
        default_factory=lambda: list(CORRUPTIONS), help="Corruptions to measure; default: the 15 of mCE."
    )
    extra_corruptions: bool = HfArg(
        default=False, help=f"Add the 4 that mCE leaves out: {', '.join(EXTRA_CORRUPTIONS)}."
    )
    severities: list[Annotated[int, Range(1, 5)]] = HfArg(
        default_factory=lambda: list(SEVERITIES), help="Severities to measure, 1 to 5."
    )

    def __post_init__(self):
        check(self)
        if self.extra_corruptions:
            self.corruptions += [name for name in EXTRA_CORRUPTIONS if name not in self.corruptions]
        for values, known in ((self.corruptions, CORRUPTIONS + EXTRA_CORRUPTIONS), (self.severities, SEVERITIES)):
            for value in values:
                if value not in known:
                    raise ValueError(f"'{value}' is not one of {', '.join(map(str, known))}.")
        if self.imagenet_c is not None and Path(self.imagenet_c).exists():
            folders = [
                Path(self.imagenet_c, name, str(level)) for name in self.corruptions for level in self.severities
            ]
            missing = [str(folder) for folder in folders if not folder.is_dir()]
            if missing:
                raise ValueError(
                    f"`--imagenet_c` lacks {len(missing)} folders, such as {missing[0]}: complete it, or choose others by "
                    "`--corruptions` and `--severities`."
                )


def open_folder(data_args: EvaluationDataArguments, source: str, *parts: str) -> ImageData:
    """Images of a local folder, or of a folder in a repository of the Hub."""
    data_args = replace(data_args, split=None, dataset_config_name=None, max_samples=None)
    if Path(source).exists():
        return load_evaluation_data(replace(data_args, dataset_name=None, image_dir=str(Path(source, *parts))))
    data_args = replace(data_args, dataset_name=source, image_dir=None)
    return load_evaluation_data(data_args, data_dir="/".join(parts) or None)


def open_subsets(args: RobustnessArguments, data_args: EvaluationDataArguments) -> dict:
    """ImageNet-A, -R and -Sketch as far as they are given: title to source, images and classes to choose from."""
    subsets = {}
    for title, source, classes in (
        ("A", args.imagenet_a, subset_classes("a")),
        ("R", args.imagenet_r, subset_classes("r")),
        ("Sketch", args.imagenet_sketch, None),
    ):
        if source is not None:
            data = open_folder(data_args, source)
            names = data.labels.names
            if classes and imagenet_indices(names) is not None and not set(names) <= set(classes):
                raise ValueError(
                    f"{source} has classes that are not among ImageNet-{title}'s published 200: check it."
                )
            subsets[title] = source, data, classes
    return subsets


class Evaluator:
    """Top-1 accuracies of one model, looked up in the journal or measured."""

    def __init__(self, name: str, args: EvaluationArguments, data_args: EvaluationDataArguments, journal: Journal):
        self.name, self.args, self.data_args, self.journal = name, args, data_args, journal
        self.model, self.preparation = load_classifier(name), Preparation.load(name)
        if self.preparation.pixel_type != "uint8":
            raise ValueError(f"'{name}' takes images of more than 8 bits, for which no corruptions are defined.")

    def is_imagenet(self, names: list[str]) -> bool:
        return self.model.config.num_labels == 1000 and (imagenet_indices(names) is not None or len(names) == 1000)

    def accuracy(self, key: dict, data: ImageData, transform=None, subset=None) -> float:
        key = {"model": fingerprint(self.name), **key, "data": data_key(self.data_args, data)}
        return self.journal.result(key, lambda: self._measure(data, transform or self.preparation, subset))

    def _measure(self, data: ImageData, transform, subset) -> float:
        names = data.labels.names
        columns = map_classes(names, self.model)
        logits, targets = predict(self.model, ImageDataset.of(data, data.validation, transform), self.args)
        targets[targets >= 0] = [columns[target] for target in targets[targets >= 0]]
        if subset is None:
            subset = range(logits.shape[1])
        elif imagenet_indices(names) is not None and self.model.config.num_labels == 1000:
            subset = imagenet_indices(subset)
        else:  # not ImageNet: the classes that the data set has
            subset = sorted(columns)
        return subset_accuracy(logits, targets, list(subset))


def corrupted_accuracies(evaluator: Evaluator, args: RobustnessArguments) -> tuple[dict[tuple[str, int], float], bool]:
    """Error rates by (corruption, severity), and whether they are ImageNet's."""
    errors = {}
    if args.imagenet_c is None:
        data = load_evaluation_data(evaluator.data_args)
        evaluator.args.say(data)
    for name in args.corruptions:
        for severity in args.severities:
            key = {"benchmark": "corrupted", "source": args.imagenet_c, "corruption": name, "severity": severity}
            if args.imagenet_c is None:
                transform = Corrupt(evaluator.preparation, name, severity)
            else:
                data = open_folder(evaluator.data_args, args.imagenet_c, name, str(severity))
                transform = evaluator.preparation.without_crop
            errors[name, severity] = 1 - evaluator.accuracy(key, data, transform)
            if evaluator.args.state.is_main_process:
                print(f"{evaluator.name}: {name} {severity}, error {errors[name, severity]:.2%}", flush=True)
    return errors, evaluator.is_imagenet(data.labels.names)


def evaluate(evaluator: Evaluator, args: RobustnessArguments, subsets: dict) -> dict:
    """A row of the table."""
    row = {"model": evaluator.name}
    errors, is_imagenet = corrupted_accuracies(evaluator, args)
    row.update({f"{name} error": 100 * error for name, error in corruption_errors(errors).items()})
    row["mean error"] = sum(100 * error for error in errors.values()) / len(errors)
    has_all = set(CORRUPTIONS) <= set(args.corruptions) and set(SEVERITIES) <= set(args.severities)
    if is_imagenet and has_all:
        row["mCE"] = 100 * mean_corruption_error(errors)
    for title, (source, data, classes) in subsets.items():
        key = {"benchmark": title, "source": source}
        row[title] = 100 * evaluator.accuracy(key, data, subset=classes)
    if all(title in row for title in ("mCE", "A", "R", "Sketch")):
        row["score"] = robustness_score(row["mCE"], row["A"], row["R"], row["Sketch"])
    return row


def main():
    args, data_args, robustness_args = parse_arguments(
        (EvaluationArguments, EvaluationDataArguments, RobustnessArguments), description=__doc__
    )
    check_models(args.models, load_classifier, Preparation.load)
    subsets = open_subsets(robustness_args, data_args)
    published = [getattr(robustness_args, f"imagenet_{name}") for name in ("c", "a", "r", "sketch")]
    with args.open_output_dir([*data_args.sources(), *published]) as (output_dir, journal):
        rows = [evaluate(Evaluator(name, args, data_args, journal), robustness_args, subsets) for name in args.models]
        if args.state.is_main_process:
            print("Percent; errors are averaged over the severities.\n")
            write_table(rows, output_dir, "results")
            columns = dict.fromkeys(column for row in rows for column in row)
            shown = [column for column in columns if column not in ("model", "score")]
            save_bars(rows, "model", shown, output_dir / "results.png", "percent (errors and mCE: less is better)")
            say_written(output_dir, "results.json", "results.csv", "results.png")


if __name__ == "__main__":
    run(main)
