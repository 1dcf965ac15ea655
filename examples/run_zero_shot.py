#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Zero-shot classification: accuracy of models that have learnt from captions on classes that they know by their names alone.

    python examples/run_zero_shot.py --models a b [--dataset_name NAME | --image_dir FOLDER] [--prompts "a photo of a {}"]

A class is scored by the words of its name. Prints a table, writes results.json, results.csv and results.png into --output_dir.
After an interruption the same command goes on.
"""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.image_data import ImageData
from supmae_hf.evaluation.arguments import EvaluationArguments, evaluate_models
from supmae_hf.evaluation.encode import predict
from supmae_hf.evaluation.metrics import accuracy_row
from supmae_hf.evaluation.zero_shot import class_tokens, load_captioner, zero_shot_function
from supmae_hf.preparation import Preparation


@dataclass
class ZeroShotArguments:
    """The names of the classes."""

    prompts: list[str] = HfArg(
        default_factory=lambda: ["{}"],
        help="Texts in which {} stands for a class's name; scores are averaged over them.",
    )
    class_names: list[str] | None = HfArg(
        default=None, help="Names of the classes, in their order; default: those of the data set."
    )


def main():
    args, data_args, zero_shot = parse_arguments(
        (EvaluationArguments, EvaluationDataArguments, ZeroShotArguments), description=__doc__
    )

    def measure(name: str, data: ImageData) -> dict:
        names = zero_shot.class_names or data.labels.names
        if len(names) != len(data.labels.names):
            raise ValueError(
                f"`--class_names` names {len(names)} classes, but the data set has {len(data.labels.names)}."
            )
        model = load_captioner(name)
        function = zero_shot_function(model, class_tokens(model, names, zero_shot.prompts))
        images = ImageDataset.of(data, data.validation, Preparation.load(name))
        return accuracy_row(name, *predict(model, images, args, function))

    evaluate_models(args, data_args, (load_captioner, Preparation.load), measure, **vars(zero_shot))


if __name__ == "__main__":
    run(main)
