# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics as `evaluate.Metric`s that need no download."""

import datasets
import evaluate
import numpy as np
from transformers.trainer_utils import EvalPrediction


class TopKAccuracy(evaluate.Metric):
    """
    Share of the images whose class is among the k highest scores, for every k of `ks` below the number of classes.

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
        labeled = classes != -100
        scores, classes = scores[labeled], classes[labeled]
        # the place of the true class: how many others score higher, or as high and come first
        true_scores = np.take_along_axis(scores, classes[:, None], axis=1)
        earlier = np.arange(scores.shape[1]) < classes[:, None]
        place = ((scores > true_scores) | ((scores == true_scores) & earlier)).sum(axis=1)
        return {f"top{k}": float((place < k).mean()) for k in self.ks if k < scores.shape[1] or k == 1}


def count_pixels(predicted: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """Confusion matrix `(num_labels, num_labels)`: pixels by class in `reference` (rows) and in `predicted` (columns)."""
    counted = reference != ignore_index
    codes = reference[counted].astype(np.int64) * num_labels + predicted[counted]
    return np.bincount(codes, minlength=num_labels**2).reshape(num_labels, num_labels)


def segmentation_scores(pixels: np.ndarray) -> dict:
    """What [`SegmentationAccuracy`] returns, from the sum of the images' [`count_pixels`]."""
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


class SegmentationAccuracy(evaluate.Metric):
    """
    Mean intersection over union (mIoU), accuracy over all pixels (aAcc) and accuracy averaged over the classes (mAcc), from
    the pixels of all images together.

    `compute(predictions=maps, references=maps)`, or `add_batch` and then `compute()`, takes one map of class indices
    `(height, width)` per image; pixels whose reference is `ignore_index` are left out. Returns `{"mIoU": ..., "aAcc": ...,
    "mAcc": ..., "IoU": [...]}` in `[0, 1]`. Classes that occur neither in predictions nor in references have no IoU (NaN) and do
    not count in mIoU; those that are not in the references do not count in mAcc.

    Args:
        num_labels: Number of classes.
        ignore_index: Marks pixels without a class.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **kwargs):
        super().__init__(**kwargs)
        self.num_labels, self.ignore_index = num_labels, ignore_index

    def _info(self):
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description="Semantic segmentation: mIoU, aAcc, mAcc.",
            citation="",
            inputs_description="Maps of class indices (height, width), one per image.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions, references):
        return segmentation_scores(
            sum(
                count_pixels(np.asarray(predicted), np.asarray(reference), self.num_labels, self.ignore_index)
                for predicted, reference in zip(predictions, references)
            )
        )


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """[`TopKAccuracy`] as the `compute_metrics` of a [`~transformers.Trainer`]."""
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
