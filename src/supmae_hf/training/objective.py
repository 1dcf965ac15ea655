# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training loss of a whole optimiser step, and the figures of its log."""

import math

import torch
from accelerate import Accelerator

from ..configuration_supmae import SupMAEConfig
from ..modeling_supmae import (
    UNLABELED,
    SupMAEForPreTraining,
    SupMAEForPreTrainingOutput,
    classification_loss,
)


def labels_per_batch(batches: list[dict[str, torch.Tensor]], accelerator: Accelerator) -> torch.Tensor | None:
    """
    Labels per batch and process, averaged over an optimiser step's `batches` and all processes; `None` if there is
    just one batch. Every process has to call it.
    """
    num_batches = len(batches) * accelerator.num_processes
    if num_batches <= 1:
        return None
    counts = [(batch["labels"] != UNLABELED).sum() for batch in batches if "labels" in batch]
    total = torch.stack(counts).sum() if counts else torch.tensor(0)
    return accelerator.reduce(total.float().to(accelerator.device)) / num_batches


def step_loss(
    outputs: SupMAEForPreTrainingOutput,
    labels: torch.Tensor,
    config: SupMAEConfig,
    mean_labels: torch.Tensor | None,
) -> torch.Tensor:
    """
    A batch's loss, such that its average over the batches and processes of an optimiser step is the loss of all their
    images together: the model averages the classification loss over the batch's labelled images, of which batches may
    have different numbers.

    Args:
        mean_labels (`torch.FloatTensor` of shape `()`, *optional*): From [`labels_per_batch`].
    """
    if mean_labels is None:
        return outputs["loss"].mean()  # mean(): DataParallel returns one loss per device
    share = (labels != UNLABELED).sum() / mean_labels.clamp(min=1e-6)
    reconstruction_loss, classification_loss = (
        outputs[name].mean() for name in ("reconstruction_loss", "classification_loss")
    )
    return config.reconstruction_loss_weight * reconstruction_loss + config.classification_loss_weight * (
        classification_loss * share
    )


def _rows(outputs, labels, reconstruction_loss, classification_loss) -> torch.Tensor:
    num_labels = (labels != UNLABELED).reshape(len(labels), -1).sum(dim=1).float()
    one = torch.ones_like(num_labels)
    if labels.ndim == 1 and not labels.is_floating_point():
        correct = (outputs["class_logits"].argmax(dim=-1) == labels).float()
    else:
        correct = one * torch.nan
    return torch.stack(
        [
            one,
            reconstruction_loss.detach().float() * one,
            (num_labels > 0).float(),
            num_labels,
            classification_loss.detach().float() * num_labels,
            correct,
        ],
        dim=1,
    )


def statistics(outputs: SupMAEForPreTrainingOutput, labels: torch.Tensor) -> torch.Tensor:
    """
    What the log needs to know of a training batch, one row per image: 1, the batch's reconstruction loss, whether the
    image is labelled, its labels, their number times the batch's classification loss, and whether the class with the
    highest score is right (NaN unless it has just one class). Rows of several batches and processes can be summed.
    """
    # mean(): DataParallel returns one loss per device
    return _rows(outputs, labels, outputs["reconstruction_loss"].mean(), outputs["classification_loss"].mean())


def evaluation_statistics(
    model: SupMAEForPreTraining,
    outputs: SupMAEForPreTrainingOutput,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """
    [`statistics`] with each image's own losses, so that rows can be left out: several processes repeat some images to
    have batches of the same size.
    """
    mask = outputs["mask"]
    reconstruction_losses = (model.patch_losses(pixel_values, outputs["logits"]) * mask).sum(dim=1)
    temperature = model.config.classification_temperature
    classification_losses = [
        classification_loss(scores[None], label[None], model.config, temperature)
        for scores, label in zip(outputs["class_logits"], labels)
    ]
    return _rows(
        outputs,
        labels,
        reconstruction_losses / mask.sum(dim=1).clamp(min=1),
        torch.stack(classification_losses),
    )


def averages(sums) -> dict[str, float]:
    """The log's figures from the sum of the rows of [`statistics`]: averages over images, or over labelled images."""
    images, reconstruction_loss, labeled, num_labels, classification_loss, correct = map(float, sums)
    figures = {"reconstruction_loss": reconstruction_loss / images}
    if labeled:
        figures["classification_loss"] = classification_loss / num_labels
        if not math.isnan(correct):
            figures["accuracy"] = correct / labeled
    return figures


def labeled_images(sums) -> float:
    """Number of labelled images from the sum of the rows of [`statistics`]."""
    return float(sums[2])
