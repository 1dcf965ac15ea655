# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training loss of a whole optimiser step, and the figures of its log."""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig
from ..modeling_supmae import SupMAEForPreTraining, SupMAEForPreTrainingOutput
from ..supervision_supmae import UNLABELED


logger = logging.get_logger(__name__)


def predictions_of(outputs: SupMAEForPreTrainingOutput, kind: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logits and loss of a kind of supervision."""
    if kind == "labels":
        return outputs.get("class_logits"), outputs.get("classification_loss")
    return tuple((outputs.get(f"supervision_{what}") or {}).get(kind) for what in ("logits", "losses"))


def labels_of_step(
    model: SupMAEForPreTraining, batches: list[dict[str, torch.Tensor]], accelerator: Accelerator
) -> dict[str, torch.Tensor] | None:
    """
    Of every kind of supervision how much is labelled in an optimiser step, over its batches, of all processes; `None` for a step of
    one batch, whose losses are averages as they are.
    """
    num_batches = len(batches) * accelerator.num_processes
    if num_batches == 1:
        return None
    counts = {}
    for kind, head in model.heads().items():
        if head.argument in batches[0]:
            counts[kind] = sum(head.count(batch[head.argument].to(model.device)).sum() for batch in batches)
    return {kind: count / num_batches for kind, count in accelerator.reduce(counts).items()}


def step_loss(
    model: SupMAEForPreTraining,
    outputs: SupMAEForPreTrainingOutput,
    batch: dict[str, torch.Tensor],
    labels_per_batch: dict[str, torch.Tensor] | None,
) -> torch.Tensor:
    """
    A batch's loss, such that its average over the batches and processes of an optimiser step is the loss of all their
    images together: the model averages a supervised loss over the batch's labelled images, of which batches may
    have different numbers.

    Args:
        labels_per_batch: See [`labels_of_step`].
    """
    if not labels_per_batch:
        return outputs["loss"].mean()  # mean(): DataParallel returns one loss per device
    heads, weights = model.heads(), model.config.supervision_weights
    loss = model.config.reconstruction_loss_weight * outputs["reconstruction_loss"].mean()
    for kind, labels in labels_per_batch.items():
        share = heads[kind].count(batch[heads[kind].argument]).sum() / labels.clamp(min=1e-6)
        loss = loss + weights[kind] * (predictions_of(outputs, kind)[1].mean() * share)
    return loss


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


def _supervised_figures(
    model: SupMAEForPreTraining, outputs: SupMAEForPreTrainingOutput, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the heads say of every image of a batch, but for the losses."""
    figures = {}
    for kind, head in model.heads().items():
        if head.argument in batch:
            logits, targets = predictions_of(outputs, kind)[0].detach(), batch[head.argument]
            figures |= head.figures(logits, targets, outputs["mask"]) | {head.count_name: head.count(targets)}
    return figures


def batch_figures(
    model: SupMAEForPreTraining, outputs: SupMAEForPreTrainingOutput, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """
    What the log needs to know of a training batch, as numbers that can be summed over batches and processes: images, what is
    labelled of them and predicted right, and the losses times what they are averages of.
    """
    images = torch.tensor(float(len(outputs["logits"])), device=outputs["logits"].device)
    figures = {name: rows.sum(dim=0) for name, rows in _supervised_figures(model, outputs, batch).items()}
    # mean(): DataParallel returns one loss per device
    figures |= {"images": images, "reconstruction_loss": outputs["reconstruction_loss"].detach().mean() * images}
    for kind, head in model.heads().items():
        if head.argument in batch:
            loss = predictions_of(outputs, kind)[1].detach().mean()
            figures[head.loss_name] = loss * figures[head.count_name]
    return figures


def image_figures(
    model: SupMAEForPreTraining, outputs: SupMAEForPreTrainingOutput, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """
    [`batch_figures`] of every image of an evaluation batch, each of shape `(batch_size, ...)`, with the image's own losses, so
    that images can be left out: several processes repeat some to have batches of the same size.
    """
    figures, mask = _supervised_figures(model, outputs, batch), outputs["mask"]
    losses = model.patch_losses(batch["pixel_values"], outputs["logits"]) * mask
    losses = losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    figures |= {"images": torch.ones_like(losses), "reconstruction_loss": losses}
    for kind, head in model.heads().items():
        if head.argument in batch:
            losses = head.losses(predictions_of(outputs, kind)[0], batch[head.argument], mask)
            figures[head.loss_name] = losses * figures[head.count_name]
    return figures


def averages(model: SupMAEForPreTraining, sums: dict) -> dict[str, float]:
    """The log's figures from the sums of [`batch_figures`]: averages over images, or over what is labelled."""
    figures = {"reconstruction_loss": float(sums["reconstruction_loss"] / sums["images"])}
    for head in model.heads().values():
        if sums.get(head.count_name):
            figures[head.loss_name] = float(sums[head.loss_name] / sums[head.count_name])
            figures |= {name: float(value) for name, value in head.summarize(sums).items()}
    return figures


def images_per_step(sums: dict, num_steps: int) -> dict[str, float]:
    """How many images of a step were labelled, pseudo-labelled, ..., from the sums of [`batch_figures`]."""
    counted = [name for name in sums if name.endswith("_images") and name not in ("skipped_images", "repeated_images")]
    return {f"{name}_per_step": float(sums[name]) / num_steps for name in counted}


def add(sums: dict | None, figures: dict) -> dict:
    """The sum of two dictionaries of numbers with the same keys."""
    return figures if sums is None else {name: sums[name] + value for name, value in figures.items()}


def batch_loss(
    model: torch.nn.Module,
    bare_model: SupMAEForPreTraining,
    outputs: SupMAEForPreTrainingOutput,
    batch: dict[str, torch.Tensor],
    labels_per_batch: dict[str, torch.Tensor] | None,
    pseudo_label_threshold: float | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    What a training batch adds to the loss of its step, [`step_loss`] and, with a threshold, the weighted
    [`pseudo_label_loss`]; to the log, [`batch_figures`]; and its losses by name.

    Args:
        model, bare_model: In whatever it is wrapped, and in no wrapper.
    """
    loss = step_loss(bare_model, outputs, batch, labels_per_batch)
    figures = batch_figures(bare_model, outputs, batch)
    losses = {"loss": loss, "reconstruction_loss": outputs["reconstruction_loss"]}
    for kind, head in bare_model.heads().items():
        if head.argument in batch:
            losses[head.loss_name] = predictions_of(outputs, kind)[1]
    if pseudo_label_threshold is not None:
        more, count = pseudo_label_loss(
            model, bare_model.config, outputs, batch["pixel_values"], batch["labels"], pseudo_label_threshold
        )
        losses["loss"] = loss = loss + bare_model.config.supervision_weights["labels"] * more
        figures["pseudo_labeled_images"] = count.float()
    return loss, figures, losses


def branch_gradient_share(model: SupMAEForPreTraining, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    Norm of the gradient that the encoder gets from the supervised terms of a batch's loss, over that of the whole loss.
    Computed on a copy, so that gradients, BatchNorm's statistics and random numbers of the run stay as they are.
    """
    model, norms = copy.deepcopy(model).train(), []
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        outputs = model(**inputs)
        losses = {kind: predictions_of(outputs, kind)[1] for kind in model.heads()}
        weights = model.config.supervision_weights
        branch = sum(weights[kind] * loss for kind, loss in losses.items() if loss is not None)
        for loss in (branch, outputs["loss"]):
            model.zero_grad()
            loss.backward(retain_graph=True)
            gradients = [parameter.grad for parameter in model.vit.parameters() if parameter.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients))
    return norms[0] / norms[1]


class BranchCheck:
    """
    Warns, once, if the supervised branch hardly moves the encoder. Models that are sharded over processes are not looked at.

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
        if self.is_done or steps_done + 1 < self.step:
            return
        config, heads = model.config, model.heads().values()
        counts = [head.count(inputs[head.argument]).sum() for head in heads if head.argument in inputs]
        if not counts or not any(config.supervision_weights.values()):
            self.is_done = True
            return
        if not self.accelerator.reduce(sum(counts)):
            return  # perhaps the next batch has some
        self.is_done = True
        with self.accelerator.autocast():
            share = self.accelerator.reduce(branch_gradient_share(model, inputs), reduction="mean").item()
        if share < self.SMALL_SHARE and self.accelerator.is_main_process:
            logger.warning(
                f"The supervised branch makes {share:.2%} of the encoder's gradient (step {steps_done + 1}): the labels "
                f"hardly matter. Raise `classification_loss_weight` ({config.classification_loss_weight:g}) or lower "
                f"`classification_temperature` ({config.classification_temperature:g}), for instance with `--model_config "
                """'{"classification_loss_weight": 0.1, "classification_temperature": 1.0}'`."""
            )
