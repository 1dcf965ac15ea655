# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The pre-training loss of a whole optimiser step, and the metrics of its log."""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from transformers.utils import logging

from ..modeling_supmae import SupMAEForPreTraining, SupMAEForPreTrainingOutput
from ..supervision_supmae import SupMAESupervision
from .checkpointing import RunMonitor


logger = logging.get_logger(__name__)

Tensors = dict[str, torch.Tensor]


def predictions_of(outputs: SupMAEForPreTrainingOutput, kind: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logits and loss of a kind of supervision."""
    if kind == "labels":
        return outputs.get("class_logits"), outputs.get("classification_loss")
    return tuple((outputs.get(f"supervision_{what}") or {}).get(kind) for what in ("logits", "losses"))


def _supervised_metrics(model: SupMAEForPreTraining, outputs: SupMAEForPreTrainingOutput, batch: Tensors) -> Tensors:
    """The metrics of the heads for every image of a batch, and what they count; without the losses."""
    metrics = {}
    for kind, head in model.heads().items():
        if head.argument in batch:
            logits, targets = predictions_of(outputs, kind)[0].detach(), batch[head.argument]
            counted = head.counted(targets, outputs["mask"])
            metrics |= head.figures(logits, targets, outputs["mask"]) | {head.count_name: counted}
    return metrics


def batch_metrics(model: SupMAEForPreTraining, outputs: SupMAEForPreTrainingOutput, batch: Tensors) -> Tensors:
    """
    The metrics of a training batch, as numbers that can be summed over batches and processes: images, labelled images,
    correct predictions, ..., and each loss times the number that it is an average over.
    """
    images = torch.tensor(float(len(outputs["logits"])), device=outputs["logits"].device)
    metrics = {name: rows.sum(dim=0) for name, rows in _supervised_metrics(model, outputs, batch).items()}
    # mean(): DataParallel returns one loss per device
    metrics |= {"images": images, "reconstruction_loss": outputs["reconstruction_loss"].detach().mean() * images}
    for kind, head in model.heads().items():
        if head.argument in batch:
            loss = predictions_of(outputs, kind)[1].detach().mean()
            metrics[head.loss_name] = loss * metrics[head.count_name]
    return metrics


def image_metrics(model: SupMAEForPreTraining, outputs: SupMAEForPreTrainingOutput, batch: Tensors) -> Tensors:
    """
    [`batch_metrics`] of every image of an evaluation batch, each of shape `(batch_size, ...)`, with the image's own losses, so
    that images can be left out: several processes repeat some to have batches of the same size.
    """
    metrics, mask = _supervised_metrics(model, outputs, batch), outputs["mask"]
    losses = model.patch_losses(batch["pixel_values"], outputs["logits"]) * mask
    losses = losses.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    metrics |= {"images": torch.ones_like(losses), "reconstruction_loss": losses}
    for kind, head in model.heads().items():
        if head.argument in batch:
            losses = head.losses(predictions_of(outputs, kind)[0], batch[head.argument], mask)
            metrics[head.loss_name] = losses * metrics[head.count_name]
    return metrics


def averages(model: SupMAEForPreTraining, sums: dict) -> dict[str, float]:
    """Metrics for people from the sums of [`batch_metrics`]: averages over images, or over what is labelled."""
    metrics = {"reconstruction_loss": float(sums["reconstruction_loss"] / sums["images"])}
    for head in model.heads().values():
        if sums.get(head.count_name):
            metrics[head.loss_name] = float(sums[head.loss_name] / sums[head.count_name])
            metrics |= {name: float(value) for name, value in head.summarize(sums).items()}
    return metrics


def evaluation_loss(model: SupMAEForPreTraining, metrics: dict[str, float]) -> float:
    """The model's objective from the averages of its losses over a whole data set."""
    losses = {kind: metrics.get(head.loss_name, 0.0) for kind, head in model.heads().items()}
    return model.weighted_loss(metrics["reconstruction_loss"], losses)


def add(sums: dict | None, metrics: dict) -> dict:
    """The sum of two dictionaries of numbers with the same keys."""
    return metrics if sums is None else {name: sums[name] + value for name, value in metrics.items()}


class Objective:
    """
    The loss of pre-training and its metrics, the same for the Trainer and the Accelerate loop.

    The model averages a supervised loss over the labelled images of a batch, of which the batches and processes of a step may
    have different numbers. The average of this loss over them is that of all images of the step together.

    Args:
        model: The model without wrappers.
        max_steps: Optimiser steps of the run.
        monitor: Monitor that gets the losses of every batch.
    """

    def __init__(self, model: SupMAEForPreTraining, accelerator: Accelerator, max_steps: int, monitor: RunMonitor):
        self.model, self.accelerator, self.monitor = model, accelerator, monitor
        self.check = BranchCheck(accelerator, max_steps)
        self._targets_per_batch, self._sums = None, None

    def begin_step(self, batches: list[Tensors], step: int) -> list[Tensors]:
        """
        The batches of an optimiser step on the device. Counts the targets (labelled images, or labels) of each kind of
        supervision over all of them and all processes, for which every process must call it; a step of a single batch needs no
        count.
        """
        batches = send_to_device(batches, self.accelerator.device)
        for batch in batches:
            self.check(self.model, batch, step)
        self._targets_per_batch = None
        num_batches = len(batches) * self.accelerator.num_processes
        if num_batches > 1:
            counts = {}
            for kind, head in self.model.heads().items():
                if head.argument in batches[0]:
                    counts[kind] = sum(self._count(head, batch) for batch in batches)
            counts = self.accelerator.reduce(counts)
            self._targets_per_batch = {kind: count / num_batches for kind, count in counts.items()}
        return batches

    def _count(self, head: SupMAESupervision, batch: Tensors) -> torch.Tensor:
        targets, noise = batch[head.argument], batch.get("noise")
        if noise is None:  # the patches that the model will hide are not known yet
            return head.count(targets).sum()
        order, num_visible = self.model.vit.embeddings.shuffle(noise.shape, noise, None, None, noise.device)
        return head.counted(targets, (order.argsort(dim=1) >= num_visible).int()).sum()

    def loss(self, outputs: SupMAEForPreTrainingOutput, batch: Tensors) -> torch.Tensor:
        """The loss of a training batch, from the outputs of the model for it."""
        losses, shares = {}, {}
        for kind, head in self.model.heads().items():
            if head.argument in batch:
                losses[kind] = predictions_of(outputs, kind)[1].mean()  # mean(): DataParallel returns one per device
                shares[kind] = losses[kind]
                if self._targets_per_batch:
                    count = head.counted(batch[head.argument], outputs["mask"]).sum()
                    shares[kind] = losses[kind] * (count / self._targets_per_batch[kind].clamp(min=1e-6))
        loss = outputs["loss"].mean()
        if self._targets_per_batch:
            loss = self.model.weighted_loss(outputs["reconstruction_loss"].mean(), shares)
        named = {head.loss_name: losses[kind] for kind, head in self.model.heads().items() if kind in losses}
        self.monitor.add(loss=loss, reconstruction_loss=outputs["reconstruction_loss"], **named)
        self._sums = add(self._sums, batch_metrics(self.model, outputs, batch))
        return loss

    def log(self, num_steps: int) -> dict[str, float]:
        """The metrics of the steps since the last call, over all processes."""
        sums = {name: value.cpu().double() for name, value in self.accelerator.reduce(self._sums).items()}
        self._sums = None
        counted = {name for head in self.model.heads().values() for name in head.counts()}
        per_step = {f"{name}_per_step": float(sums[name]) / num_steps for name in sums if name in counted}
        return {**averages(self.model, sums), **per_step}


def branch_gradient_share(model: SupMAEForPreTraining, inputs: Tensors) -> torch.Tensor:
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
    Warns, once, if the supervised branch hardly moves the encoder. Models that are sharded over processes are not checked.

    Args:
        max_steps: Steps of the run. Its 20th step is checked, or its last one: in the very first ones the gradient of the
            reconstruction is larger by an order of magnitude than soon after.
    """

    STEP, SMALL_SHARE = 20, 0.01

    def __init__(self, accelerator: Accelerator, max_steps: int):
        self.accelerator = accelerator
        self.step = min(self.STEP, max_steps)
        self.is_done = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def __call__(self, model: SupMAEForPreTraining, inputs: Tensors, steps_done: int):
        """
        Check a training batch. Every process must call it before the forward pass.

        Args:
            model: The model without wrappers.
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
