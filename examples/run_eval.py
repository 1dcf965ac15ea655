#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate image classifiers: SupMAE, their stock exports, or any other that Transformers loads, timm's among them. The metrics are
top-1 and top-5 accuracy; for several classes an image mean average precision, F1 and AUROC; for numbers their mean error and R².

    python examples/run_eval.py --models a b c [--dataset_name NAME | --image_dir FOLDER]

Without a data set the held-out digits are classified. Prints a table and writes it into --output_dir (results.json, results.csv,
results.png), with a table of the classes (classes.csv) and of what they are taken for (confusion.png). After an interruption the same command goes on.
"""

import numpy as np

from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.image_data import ImageData
from supmae_hf.evaluation.arguments import EvaluationArguments, evaluate_models
from supmae_hf.evaluation.encode import predict
from supmae_hf.evaluation.metrics import accuracy_row, class_rows, label_rows
from supmae_hf.evaluation.models import load_classifier, map_classes
from supmae_hf.preparation import Preparation


def main():
    args, data_args = parse_arguments((EvaluationArguments, EvaluationDataArguments), description=__doc__)

    def measure(name: str, data: ImageData) -> dict:
        model = load_classifier(name)
        names, problem_type = data.labels.names, data.labels.problem_type
        is_regression = problem_type == "regression"
        columns = [0] if is_regression else map_classes(names, model)
        if is_regression and model.config.num_labels != 1:
            raise ValueError(
                f"'{name}' has {model.config.num_labels} classes, but the labels are numbers: see `--label_column_name`."
            )
        scores, targets = predict(model, ImageDataset.of(data, data.validation, Preparation.load(name)), args)
        if problem_type != "single_label_classification":
            row = accuracy_row(name, scores[:, columns], targets, problem_type)
            return row if is_regression else row | {"classes": label_rows(names, scores[:, columns], targets)}
        # the data set's classes in the model's numbers
        row = accuracy_row(name, scores, [columns[target] if target >= 0 else target for target in targets])
        places = {column: place for place, column in enumerate(columns)}
        predicted = np.array([places.get(column, len(names)) for column in scores.argmax(axis=1)])
        return row | {"classes": class_rows(names, predicted, targets)}

    evaluate_models(args, data_args, (load_classifier, Preparation.load), measure, needs_classes=False)


if __name__ == "__main__":
    run(main)
