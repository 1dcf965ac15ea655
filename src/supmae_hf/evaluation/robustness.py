# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of the robustness benchmarks ImageNet-C, -A, -R and -Sketch, as SupMAE reports them."""

import importlib.resources
from collections.abc import Mapping

import numpy as np

from .corruptions import CORRUPTIONS, SEVERITIES


# error rates of AlexNet on ImageNet-C, averaged over the severities: what mCE is relative to (arXiv 1903.12261)
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def corruption_errors(errors: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """The error rate under each corruption, averaged over the severities, from that of each (corruption, severity)."""
    names = list(dict.fromkeys(name for name, _ in errors))
    return {name: float(np.mean([error for (other, _), error in errors.items() if other == name])) for name in names}


def mean_corruption_error(errors: Mapping[tuple[str, int], float]) -> float:
    """
    mCE: the error rate under each of the 15 corruptions, averaged over the 5 severities, over AlexNet's, averaged over
    the corruptions (arXiv 1903.12261, section 4). Below 1 is better than AlexNet.

    Args:
        errors: Error rate in `[0, 1]` of every (corruption, severity); others than the 15 are left out.

    Raises:
        ValueError: if a corruption or severity is missing.
    """
    missing = [key for key in ((name, level) for name in CORRUPTIONS for level in SEVERITIES) if key not in errors]
    if missing:
        raise ValueError(
            f"mCE needs all 15 corruptions at 5 severities, but {len(missing)} are missing, such as {missing[0]}."
        )
    by_corruption = corruption_errors({key: error for key, error in errors.items() if key[0] in ALEXNET_ERRORS})
    return float(np.mean([error / ALEXNET_ERRORS[name] for name, error in by_corruption.items()]))


def robustness_score(mce: float, imagenet_a: float, imagenet_r: float, imagenet_sketch: float) -> float:
    """SupMAE's overall score: the mean of 100 - mCE and three top-1 accuracies, all in percent."""
    return float(np.mean([100 - mce, imagenet_a, imagenet_r, imagenet_sketch]))


def subset_classes(name: str) -> list[str]:
    """
    WordNet identifiers of the 200 classes of ImageNet-A (`"a"`, arXiv 1907.07174) or ImageNet-R (`"r"`, arXiv
    2006.16241), in the order of ImageNet-1K.
    """
    file = importlib.resources.files("timm.data") / "_info" / f"imagenet_{name}_synsets.txt"
    return file.read_text().split()


def subset_accuracy(logits: np.ndarray, labels: np.ndarray, classes: list[int]) -> float:
    """
    Top-1 accuracy where only some of a model's classes can be predicted.

    Args:
        logits: Logits of shape `(num_images, num_labels)`.
        labels: Indices of the model's classes, of shape `(num_images,)`; images labelled -100 are left out.
        classes: Those that can be predicted.
    """
    labeled = labels != -100
    classes = np.asarray(classes)
    predicted = classes[logits[labeled][:, classes].argmax(axis=1)]
    return float((predicted == labels[labeled]).mean())
