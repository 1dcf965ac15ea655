#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate image classifiers: SupMAE, their stock exports, or any other that Transformers loads, timm's among them. The metrics are
top-1 and top-5 accuracy; for several classes an image mean average precision, F1 and AUROC; for numbers their mean error and R².

    accelerate launch examples/run_eval.py --models a b c [--dataset_name NAME | --image_dir FOLDER]

Without a data set the held-out digits are classified. Prints a table, writes results.json, results.csv and results.png
into --output_dir. After an interruption the same command goes on.
"""

from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.image_data import ImageData
from supmae_hf.evaluation.arguments import EvaluationArguments, evaluate_models
from supmae_hf.evaluation.encode import predict
from supmae_hf.evaluation.metrics import accuracy_row
from supmae_hf.evaluation.models import load_classifier, map_classes
from supmae_hf.preparation import Preparation


def main():
    args, data_args = parse_arguments((EvaluationArguments, EvaluationDataArguments), description=__doc__)

    def measure(name: str, data: ImageData) -> dict:
        model = load_classifier(name)
        problem_type = data.labels.problem_type
        scores, targets = predict(model, ImageDataset.of(data, data.validation, Preparation.load(name)), args)
        if problem_type == "regression":
            return accuracy_row(name, scores, targets, problem_type)
        columns = map_classes(data.labels.names, model)
        if problem_type == "multi_label_classification":
            return accuracy_row(name, scores[:, columns], targets, problem_type)
        # the data set's classes in the model's numbers
        return accuracy_row(name, scores, [columns[target] if target >= 0 else target for target in targets])

    evaluate_models(args, data_args, (load_classifier, Preparation.load), measure, needs_classes=False)


if __name__ == "__main__":
    run(main)
