# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training loss of a whole optimiser step, and the figures of its log."""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig
from ..modeling_supmae import (
    UNLABELED,
    SupMAEForPreTraining,
    SupMAEForPreTrainingOutput,
    classification_loss,
)


logger = logging.get_logger(__name__)


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


def batch_loss(
    model: torch.nn.Module,
    config: SupMAEConfig,
    outputs: SupMAEForPreTrainingOutput,
    batch: dict[str, torch.Tensor],
    labels_per_batch: torch.Tensor | float | None,
    pseudo_label_threshold: float | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    What a training batch adds to the loss of its step, [`step_loss`] and, with a threshold, the weighted
    [`pseudo_label_loss`], and to the log, [`batch_figures`].
    """
    labels = batch.get("labels")
    loss, figures = step_loss(outputs, labels, config, labels_per_batch), batch_figures(outputs, labels)
    if pseudo_label_threshold is not None:
        more, count = pseudo_label_loss(model, config, outputs, batch["pixel_values"], labels, pseudo_label_threshold)
        loss = loss + config.classification_loss_weight * more
        figures["pseudo_labeled_images"] = count.float()
    return loss, figures


def branch_gradient_share(model: SupMAEForPreTraining, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    Norm of the gradient that the encoder gets from the classification term of a batch's loss, over that of the whole loss.
    Computed on a copy, so that gradients, BatchNorm's statistics and random numbers of the run stay as they are.
    """
    model, norms = copy.deepcopy(model).train(), []
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        outputs = model(**inputs)
        for loss in (model.config.classification_loss_weight * outputs["classification_loss"], outputs["loss"]):
            model.zero_grad()
            loss.backward(retain_graph=True)
            gradients = [parameter.grad for parameter in model.vit.parameters() if parameter.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients))
    return norms[0] / norms[1]


class BranchCheck:
    """
    Warns, once, if the classification branch hardly moves the encoder. Models that are sharded over processes are not looked at.

    Args:
        max_steps: Of the run. It is looked at in its 20th step, or its last one: in the very first ones the gradient of the
            reconstruction is larger by an order of magnitude than soon after.
    """

    STEP, SMALL_SHARE = 20, 0.01

    def __init__(self, accelerator: Accelerator, max_steps: int):
        self.accelerator = accelerator
        self.step = min(self.STEP, max_steps)
        sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self.is_done = sharded

    def __call__(self, model: SupMAEForPreTraining, inputs: dict[str, torch.Tensor], steps_done: int):
        """
        To be called by every process before the forward pass of a training batch.

        Args:
            model: In no wrapper.
        """
        config, labels = model.config, inputs.get("labels")
        self.is_done = self.is_done or labels is None or not config.classification_loss_weight
        if self.is_done or steps_done + 1 < self.step:
            return
        if not self.accelerator.reduce((labels != UNLABELED).sum().float()):
            return  # perhaps the next batch has some
        self.is_done = True
        with self.accelerator.autocast():
            share = self.accelerator.reduce(branch_gradient_share(model, inputs), reduction="mean").item()
        if share < self.SMALL_SHARE and self.accelerator.is_main_process:
            logger.warning(
                f"The classification branch makes {share:.2%} of the encoder's gradient (step {steps_done + 1}): the labels "
                f"hardly matter. Raise `classification_loss_weight` ({config.classification_loss_weight:g}) or lower "
                f"`classification_temperature` ({config.classification_temperature:g}), for instance with `--model_config "
                """'{"classification_loss_weight": 0.1, "classification_temperature": 1.0}'`."""
            )
