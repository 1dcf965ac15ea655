# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of classification, regression and segmentation, by scikit-learn."""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from transformers.trainer_utils import EvalPrediction

from ..supervision_supmae import UNLABELED


OTHER = "another class"  # that the data set does not have


class TopKAccuracy(evaluate.Metric):
    """
    Share of the images whose class is among the k highest scores, for every k of `ks` below the number of classes, as an
    `evaluate.Metric` that needs no download.

    `compute(predictions=scores, references=classes)` takes scores of shape `(num_images, num_classes)` and classes of
    shape `(num_images,)`, of which -100 is left out, and returns `{"top1": ..., "top5": ...}` in `[0, 1]`.
    """

    def __init__(self, ks: tuple[int, ...] = (1, 5), **kwargs):
        super().__init__(**kwargs)
        self.ks = ks

    def _info(self):
        return evaluate.MetricInfo(
            description="Top-k accuracy.",
            citation="",
            inputs_description="Scores (num_images, num_classes) and class indices (num_images,).",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        scores, classes = np.asarray(predictions), np.asarray(references)
        scores, classes = scores[classes != UNLABELED], classes[classes != UNLABELED]
        num_classes = scores.shape[1]
        result = {"top1": float(accuracy_score(classes, scores.argmax(axis=1)))}
        for k in self.ks:
            if 1 < k < num_classes:
                result[f"top{k}"] = float(top_k_accuracy_score(classes, scores, k=k, labels=range(num_classes)))
        return result


class MultiLabelMetrics(evaluate.Metric):
    """
    Mean average precision, macro F1 (at a probability of 1/2) and macro AUROC over the classes, as an `evaluate.Metric` that needs
    no download.

    `compute(predictions=scores, references=labels)` takes logits and labels of 0 and 1, both of shape `(num_images, num_classes)`;
    labels of -100 are left out, and so are classes without a positive or a negative image.
    """

    def _info(self):
        rows = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Metrics of several classes per image.",
            citation="",
            inputs_description="Logits and labels (num_images, num_classes).",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        rows = label_rows(range(len(references[0])), np.asarray(predictions), np.asarray(references))
        rows = [row for row in rows if row["auroc"] is not None]
        names = {"map": "average_precision", "f1": "f1", "auroc": "auroc"}
        return {name: float(np.mean([row[column] for row in rows])) for name, column in names.items()}


def label_rows(names: Sequence, scores: np.ndarray, targets: np.ndarray) -> list[dict]:
    """
    Average precision, F1 and AUROC of each of several classes an image; `None` for one without a positive or a negative image.

    Args:
        names: Names of the classes.
        scores, targets: Logits and labels of shape `(num_images, num_classes)`.
    """
    rows = []
    for name, answers, logits in zip(names, targets.T, scores.T, strict=True):
        logits, answers = logits[answers != UNLABELED], answers[answers != UNLABELED]
        row = {"class": name, "images": int(answers.sum()), "average_precision": None, "f1": None, "auroc": None}
        if len(set(answers)) == 2:
            row["average_precision"] = float(average_precision_score(answers, logits))
            row |= {"f1": float(f1_score(answers, logits > 0)), "auroc": float(roc_auc_score(answers, logits))}
        rows.append(row)
    return rows


def class_rows(names: Sequence, predicted: np.ndarray, targets: np.ndarray) -> list[dict]:
    """
    Accuracy of each class, and which classes its images are taken for.

    Args:
        names: Names of the classes.
        predicted: Predicted classes `(num_images,)`; `len(names)` for a class that the data set does not have.
        targets: Classes of the images `(num_images,)`, -100 for none.
    """
    known = targets != UNLABELED
    counts = confusion_matrix(targets[known], predicted[known], labels=range(len(names) + 1))
    totals = counts.sum(axis=1)
    return [
        {
            "class": name,
            "images": int(totals[place]),
            "accuracy": float(counts[place, place] / totals[place]) if totals[place] else None,
            "taken_for": {
                str([*names, OTHER][other]): int(counts[place, other]) for other in np.flatnonzero(counts[place])
            },
        }
        for place, name in enumerate(names)
    ]


class RegressionMetrics(evaluate.Metric):
    """
    Mean absolute error and R^2 as an `evaluate.Metric` that needs no download.

    `compute(predictions=values, references=targets)` takes numbers of shape `(num_images,)`; targets of -100 are left out.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Metrics of regression.",
            citation="",
            inputs_description="Predictions and targets (num_images,).",
            features=datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions, references):
        values, targets = np.asarray(predictions), np.asarray(references)
        values, targets = values[targets != UNLABELED], targets[targets != UNLABELED]
        return {"mae": float(mean_absolute_error(targets, values)), "r2": float(r2_score(targets, values))}


def compute_metrics(problem_type: str | None, scores: np.ndarray, targets) -> dict[str, float]:
    """
    The metrics of a classifier: [`TopKAccuracy`], [`MultiLabelMetrics`] or [`RegressionMetrics`].

    Args:
        problem_type: As in Transformers' configurations; `None` for one class per image.
        scores: Logits of shape `(num_images, num_labels)`.
        targets: Labels as the model takes them.
    """
    kinds = {"multi_label_classification": MultiLabelMetrics, "regression": RegressionMetrics}
    metric = kinds.get(problem_type, TopKAccuracy)(keep_in_memory=True)
    if problem_type == "regression":
        scores, targets = np.asarray(scores).reshape(-1), np.asarray(targets).reshape(-1)
    return metric.compute(predictions=scores, references=targets)


def accuracy_row(name: str, scores: np.ndarray, targets, problem_type: str | None = None) -> dict:
    """A row of a table: a model, how many images are labelled, and [`compute_metrics`], in percent but for regression."""
    scale = 1 if problem_type == "regression" else 100
    labeled = (np.asarray(targets).reshape(len(targets), -1) != UNLABELED).any(axis=1)
    metrics = compute_metrics(problem_type, scores, targets)
    return {"model": name, "images": int(labeled.sum())} | {key: scale * value for key, value in metrics.items()}


def evaluation_metrics(problem_type: str | None) -> Callable[[EvalPrediction], dict[str, float]]:
    """[`compute_metrics`] as the function of that name of a [`~transformers.Trainer`]."""
    return lambda prediction: compute_metrics(problem_type, prediction.predictions, prediction.label_ids)


def count_pixels(predicted: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """Confusion matrix `(num_labels, num_labels)`: pixels by class in `reference` (rows) and in `predicted` (columns)."""
    counted = reference != ignore_index
    if not counted.any():
        return np.zeros((num_labels, num_labels), dtype=np.int64)
    return confusion_matrix(reference[counted], predicted[counted], labels=range(num_labels))


def segmentation_scores(pixels: np.ndarray) -> dict:
    """
    Mean intersection over union (mIoU), accuracy over all pixels (aAcc), accuracy averaged over the classes (mAcc) and the
    IoU of every class, in `[0, 1]`, from the sum of the images' [`count_pixels`]. Classes that occur neither in predictions
    nor in references have no IoU (NaN) and do not count in mIoU; those that are not in the references do not count in mAcc.
    """
    correct, in_references, in_predictions = pixels.diagonal(), pixels.sum(axis=1), pixels.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 for classes that do not occur
        iou = correct / (in_references + in_predictions - correct)
        accuracies = correct / in_references
    return {
        "mIoU": float(np.nanmean(iou)),
        "aAcc": float(correct.sum() / pixels.sum()),
        "mAcc": float(np.nanmean(accuracies)),
        "IoU": iou.tolist(),
    }
