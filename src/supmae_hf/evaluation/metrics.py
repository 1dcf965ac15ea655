# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of classification, regression and segmentation, by scikit-learn."""

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
        scores, classes = scores[classes != -100], classes[classes != -100]
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
        columns = [
            (answers[answers != -100], scores[answers != -100])
            for scores, answers in zip(np.asarray(predictions).T, np.asarray(references).T)
        ]
        columns = [(answers, scores) for answers, scores in columns if len(set(answers)) == 2]
        names = {"map": average_precision_score, "f1": lambda y, x: f1_score(y, x > 0), "auroc": roc_auc_score}
        return {name: float(np.mean([score(*column) for column in columns])) for name, score in names.items()}


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
        values, targets = values[targets != -100], targets[targets != -100]
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
    labeled = (np.asarray(targets).reshape(len(targets), -1) != -100).any(axis=1)
    metrics = compute_metrics(problem_type, scores, targets)
    return {"model": name, "images": int(labeled.sum())} | {key: scale * value for key, value in metrics.items()}


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """[`TopKAccuracy`] as the `compute_metrics` of a [`~transformers.Trainer`]."""
    return compute_metrics(None, prediction.predictions, prediction.label_ids)


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
