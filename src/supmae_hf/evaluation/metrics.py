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


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """[`TopKAccuracy`] as the `compute_metrics` of a [`~transformers.Trainer`]."""
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
