#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Zero-shot classification: accuracy of models that have learnt from captions on classes that they know by their names alone.

    accelerate launch examples/run_zero_shot.py --models a b [--dataset_name NAME | --image_dir FOLDER] [--prompts "a photo of a {}"]

A class is scored by the words of its name. Prints a table, writes results.json, results.csv and results.png into --output_dir.
After an interruption the same command goes on.
"""

from dataclasses import dataclass, field

from supmae_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from supmae_hf.evaluation.metrics import accuracy_row
from supmae_hf.evaluation.models import check_models, fingerprint, load_transform, predict
from supmae_hf.evaluation.tables import write_accuracies
from supmae_hf.evaluation.zero_shot import class_tokens, load_captioner, zero_shot_function
from supmae_hf.training.recipes import parse_arguments, run


@dataclass
class ZeroShotArguments:
    """How the classes are named."""

    prompts: list[str] = field(
        default_factory=lambda: ["{}"],
        metadata={"help": "Texts in which {} stands for a class's name; scores are averaged over them."},
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes, in their order; default: those of the data set."}
    )


def main():
    args, data_args, zero_shot = parse_arguments(
        (EvaluationArguments, EvaluationDataArguments, ZeroShotArguments), description=__doc__
    )
    check_models(args.models, load_captioner, load_transform)
    with args.open_output_dir(data_args.sources()) as (output_dir, journal):
        data = data_args.load()
        names = zero_shot.class_names or data.labels.names
        if len(names) != len(data.labels.names):
            raise ValueError(
                f"`--class_names` names {len(names)} classes, but the data set has {len(data.labels.names)}."
            )
        data_key, rows = data_args.key(data), []
        for name in args.models:
            key = {"model": fingerprint(name), "data": data_key, **vars(zero_shot)}
            row = journal.get(key)
            if row is None:
                model = load_captioner(name)
                function = zero_shot_function(model, class_tokens(model, names, zero_shot.prompts))
                dataset = data_args.build(data, load_transform(name), model.config.num_channels)
                scores, targets = predict(model, dataset, **args.options(), function=function)
                row = accuracy_row(name, scores, targets)
                journal.add(key, row)
            rows.append(row)
        if args.state.is_main_process:
            write_accuracies(rows, output_dir)


if __name__ == "__main__":
    run(main)
