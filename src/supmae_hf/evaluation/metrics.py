# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy and intersection over union, by scikit-learn."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
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


def accuracy_row(name: str, scores: np.ndarray, targets) -> dict:
    """A row of a table, in percent: a model, how many images are labelled, and [`TopKAccuracy`]."""
    accuracies = TopKAccuracy(keep_in_memory=True).compute(predictions=scores, references=targets)
    row = {"model": name, "images": sum(bool(target >= 0) for target in targets)}
    return row | {metric: 100 * accuracy for metric, accuracy in accuracies.items()}


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """[`TopKAccuracy`] as the `compute_metrics` of a [`~transformers.Trainer`]."""
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)


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
