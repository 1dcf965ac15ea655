#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Top-1 and top-5 accuracy of image classifiers: SupMAE, their stock exports, or any other that Transformers loads, timm's
among them.

    accelerate launch examples/run_eval.py --models a b c [--dataset_name NAME | --image_dir FOLDER]

Without a data set the held-out digits are classified. Prints a table, writes results.json, results.csv and results.png
into --output_dir. After an interruption the same command goes on.
"""

from supmae_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from supmae_hf.evaluation.metrics import accuracy_row
from supmae_hf.evaluation.models import (
    check_models,
    fingerprint,
    load_classifier,
    load_transform,
    map_classes,
    predict,
)
from supmae_hf.evaluation.tables import write_accuracies
from supmae_hf.training.recipes import parse_arguments, run


def main():
    args, data_args = parse_arguments((EvaluationArguments, EvaluationDataArguments), description=__doc__)
    check_models(args.models, load_classifier, load_transform)
    with args.open_output_dir(data_args.sources()) as (output_dir, journal):
        data = data_args.load()
        data_key, rows = data_args.key(data), []
        for name in args.models:
            key = {"model": fingerprint(name), "data": data_key}
            row = journal.get(key)
            if row is None:
                model = load_classifier(name)
                columns = map_classes(data.labels.names, model)
                num_channels = getattr(model.config, "num_channels", 3)  # timm models do not say
                dataset = data_args.build(data, load_transform(name), num_channels)
                scores, targets = predict(model, dataset, **args.options())
                # the data set's classes in the model's numbers
                targets = [columns[target] if target >= 0 else target for target in targets]
                row = accuracy_row(name, scores, targets)
                journal.add(key, row)
            rows.append(row)
        if args.state.is_main_process:
            write_accuracies(rows, output_dir)


if __name__ == "__main__":
    run(main)
