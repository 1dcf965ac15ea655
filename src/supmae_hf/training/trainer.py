# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Trainers: Transformers' own, with the paper's parameter groups and a log of what matters in pre-training."""

import time

import numpy as np
import torch
from transformers import Trainer
from transformers.trainer_utils import EvalPrediction

from ..modeling_supmae import UNLABELED


class RecipeTrainer(Trainer):
    """
    [`~transformers.Trainer`] that decays matrices only and logs the images per second of training (evaluation
    excluded).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._num_images = 0
        self._interval_start = None

    def get_decay_parameter_names(self, model) -> list[str]:
        # no decay for biases, norms and other 1-D parameters; class and mask token are 3-D and do decay
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if model.training:
            self._interval_start = self._interval_start or time.perf_counter()
            self._num_images += inputs["pixel_values"].shape[0]
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def evaluate(self, *args, **kwargs):
        start = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        if self._interval_start is not None:
            self._interval_start += time.perf_counter() - start
        return metrics

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._num_images:  # a training interval, as opposed to an evaluation or the summary
            seconds = time.perf_counter() - self._interval_start
            logs["images_per_second"] = round(self._num_images * self.args.world_size / seconds, 1)
            self._num_images, self._interval_start = 0, time.perf_counter()
        super().log(logs, *args, **kwargs)


class PreTrainer(RecipeTrainer):
    """
    Trainer of [`SupMAEForPreTraining`]: logs both losses and, for single-label problems, the accuracy on visible
    patches, and evaluates the same. Classification figures are averages over labelled images.
    """

    # columns of what is summed up over training steps, and of the predictions of evaluation
    RECONSTRUCTION, CLASSIFICATION, CORRECT, LABELED, IMAGES = range(5)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=self._average_predictions, **kwargs)
        self._sums = None

    def _statistics(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """One row per image: the batch's losses, whether its class is right, whether it is labelled, and 1."""
        class_logits = outputs["class_logits"].detach()
        labeled = (labels != UNLABELED).reshape(len(labels), -1).any(dim=1).float()
        # top-1 of single-label problems; elsewhere NaN, which the log leaves out
        single_label = labels.ndim == 1 and not labels.is_floating_point()
        correct = (
            (class_logits.argmax(dim=-1) == labels).float() if single_label else torch.full_like(labeled, torch.nan)
        )
        reconstruction, classification = (
            outputs[name].detach().float().expand(len(labels))
            for name in ("reconstruction_loss", "classification_loss")
        )
        return torch.stack(
            [reconstruction, classification * labeled, correct, labeled, torch.ones_like(labeled)], dim=1
        )

    def _averages(self, sums) -> dict[str, float]:
        averages = {"reconstruction_loss": sums[self.RECONSTRUCTION] / sums[self.IMAGES]}
        if sums[self.LABELED]:
            averages["classification_loss"] = sums[self.CLASSIFICATION] / sums[self.LABELED]
            averages["accuracy"] = sums[self.CORRECT] / sums[self.LABELED]
        return {name: float(value) for name, value in averages.items() if np.isfinite(float(value)) or "loss" in name}

    def _average_predictions(self, prediction: EvalPrediction) -> dict[str, float]:
        return self._averages(np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0))

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            sums = self._statistics(outputs, inputs["labels"]).double().sum(dim=0)
            self._sums = sums if self._sums is None else self._sums + sums
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), self._statistics(outputs, inputs["labels"]), inputs["labels"]

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._sums is not None:
            sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            logs.update(self._averages(sums))
            self._sums = None
        super().log(logs, *args, **kwargs)
