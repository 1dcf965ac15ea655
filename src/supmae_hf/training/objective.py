# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training loss of a whole optimiser step, and the figures of its log."""

import torch

from ..configuration_supmae import SupMAEConfig
from ..modeling_supmae import (
    UNLABELED,
    SupMAEForPreTraining,
    SupMAEForPreTrainingOutput,
    classification_loss,
)


def step_loss(
    outputs: SupMAEForPreTrainingOutput,
    labels: torch.Tensor | None,
    config: SupMAEConfig,
    labels_per_batch: torch.Tensor | float | None,
) -> torch.Tensor:
    """
    A batch's loss, such that its average over the batches and processes of an optimiser step is the loss of all their
    images together: the model averages the classification loss over the batch's labelled images, of which batches may
    have different numbers.

    Args:
        labels_per_batch: Labels in the step over its batches, of all processes; `None` for a step of one batch.
    """
    if labels is None or labels_per_batch is None:
        return outputs["loss"].mean()  # mean(): DataParallel returns one loss per device
    share = (labels != UNLABELED).sum() / torch.as_tensor(labels_per_batch, device=labels.device).clamp(min=1e-6)
    reconstruction_loss, class_loss = (outputs[name].mean() for name in ("reconstruction_loss", "classification_loss"))
    return config.reconstruction_loss_weight * reconstruction_loss + config.classification_loss_weight * (
        class_loss * share
    )


def pseudo_label_loss(
    model: torch.nn.Module,
    config: SupMAEConfig,
    outputs: SupMAEForPreTrainingOutput,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The classification loss of unlabelled images on what the model itself, in evaluation mode, says of them unmasked, where it
    is confident (FixMatch, arXiv 2001.07685, equation 4, with masking as the strong augmentation; SSMAE, arXiv 2601.20072).

    Args:
        model: [`SupMAEForPreTraining`], in whatever it is wrapped.
        outputs: Of the training step: its `class_logits` are those that learn.
        labels: Of shape `(batch_size,)`; -100 for the images that are meant.
        threshold: Probability, of logits over the temperature, from which the model counts as confident.

    Returns:
        The sum of the losses over the batch's images, over their number, so that batches of one size can be averaged; and how
        many images were pseudo-labelled.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        visible = torch.zeros(len(pixel_values), config.num_patches, device=pixel_values.device)
        logits = model(pixel_values=pixel_values, mask=visible)["class_logits"].float()
        probabilities, guesses = (logits / config.classification_temperature).softmax(dim=-1).max(dim=-1)
        confident = (probabilities >= threshold) & (labels == UNLABELED)
    model.train(was_training)
    scores = outputs["class_logits"].float() / config.classification_temperature
    losses = torch.nn.functional.cross_entropy(scores, guesses, reduction="none")
    return (losses * confident).sum() / len(labels), confident.sum()


def _labels_and_correct(outputs, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Per image: whether it is labelled, its labels, and whether the class with the highest score is right."""
    if labels is None:
        return {}
    num_labels = (labels != UNLABELED).reshape(len(labels), -1).sum(dim=1).float()
    figures = {"labeled_images": (num_labels > 0).float(), "labels": num_labels}
    if labels.ndim == 1 and not labels.is_floating_point():  # one class per image
        figures["correct"] = (outputs["class_logits"].argmax(dim=-1) == labels).float()
    return figures


def batch_figures(outputs: SupMAEForPreTrainingOutput, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """
    What the log needs to know of a training batch, as numbers that can be summed over batches and processes: images,
    labelled images, labels and right answers, and the losses times the images or labels that they are averages of.
    """
    images = torch.tensor(float(len(outputs["logits"])), device=outputs["logits"].device)
    figures = {name: rows.sum() for name, rows in _labels_and_correct(outputs, labels).items()}
    # mean(): DataParallel returns one loss per device
    figures |= {"images": images, "reconstruction_loss": outputs["reconstruction_loss"].detach().mean() * images}
    if labels is not None:
        figures["classification_loss"] = outputs["classification_loss"].detach().mean() * figures["labels"]
    return figures


def image_figures(
    model: SupMAEForPreTraining,
    outputs: SupMAEForPreTrainingOutput,
    pixel_values: torch.Tensor,
    labels: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """
    [`batch_figures`] of every image of an evaluation batch, each of shape `(batch_size,)`, with the image's own losses, so
    that images can be left out: several processes repeat some to have batches of the same size.
    """
    figures, mask = _labels_and_correct(outputs, labels), outputs["mask"]
    losses = (model.patch_losses(pixel_values, outputs["logits"]) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    figures |= {"images": torch.ones_like(losses), "reconstruction_loss": losses}
    if labels is not None:
        config = model.config

        def loss(scores: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return classification_loss(scores[None], label[None], config, config.classification_temperature)

        figures["classification_loss"] = torch.vmap(loss)(outputs["class_logits"], labels) * figures["labels"]
    return figures


def averages(sums: dict) -> dict[str, float]:
    """The log's figures from the sums of [`batch_figures`]: averages over images, or over labelled images."""
    sums = {name: float(value) for name, value in sums.items()}
    figures = {"reconstruction_loss": sums["reconstruction_loss"] / sums["images"]}
    if sums.get("labels"):
        figures["classification_loss"] = sums["classification_loss"] / sums["labels"]
        if "correct" in sums:
            figures["accuracy"] = sums["correct"] / sums["labeled_images"]
    return figures


def add(sums: dict | None, figures: dict) -> dict:
    """The sum of two dictionaries of numbers with the same keys."""
    return figures if sums is None else {name: sums[name] + value for name, value in figures.items()}
