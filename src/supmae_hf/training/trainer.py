# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Trainers: Transformers' own, with the paper's parameter groups and a log of what matters in pre-training."""

import math
import time

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

    def get_eval_dataloader(self, *args, **kwargs):
        # dropping the last batch is for training: evaluation sees every image
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

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

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=self._average_predictions, **kwargs)
        self._sums = None

    @staticmethod
    def _statistics(outputs, labels: torch.Tensor) -> torch.Tensor:
        """
        One row per image: 1, the batch's reconstruction loss, whether the image is labelled, and, if so, the batch's
        classification loss and whether the class with the highest score is right (NaN unless it has just one class).
        """
        labeled = (labels != UNLABELED).reshape(len(labels), -1).any(dim=1).float()
        one = torch.ones_like(labeled)
        if labels.ndim == 1 and not labels.is_floating_point():
            correct = (outputs["class_logits"].argmax(dim=-1) == labels).float()
        else:
            correct = one * torch.nan
        # mean(): DataParallel returns one loss per device
        reconstruction_loss, classification_loss = (
            outputs[name].detach().float().mean() for name in ("reconstruction_loss", "classification_loss")
        )
        return torch.stack([one, reconstruction_loss * one, labeled, classification_loss * labeled, correct], dim=1)

    @staticmethod
    def _averages(sums) -> dict[str, float]:
        images, reconstruction_loss, labeled, classification_loss, correct = map(float, sums)
        averages = {"reconstruction_loss": reconstruction_loss / images}
        if labeled:
            averages["classification_loss"] = classification_loss / labeled
            if not math.isnan(correct):
                averages["accuracy"] = correct / labeled
        return averages

    def _average_predictions(self, prediction: EvalPrediction) -> dict[str, float]:
        return self._averages(prediction.predictions.astype("float64").sum(axis=0))

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if "labels" not in inputs:
            images = inputs["pixel_values"]
            inputs["labels"] = torch.full((len(images),), UNLABELED, device=images.device)
        return inputs

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
            logs.update(self._averages(self.accelerator.reduce(self._sums, reduction="sum")))
            self._sums = None
        super().log(logs, *args, **kwargs)
