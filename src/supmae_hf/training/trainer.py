# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Trainers: Transformers' own, with the recipes' optimisers, a log of what matters, checkpoints that survive being
killed, and runs that go on from them as if nothing had happened.
"""

import ctypes
import math
import platform
import time
from pathlib import Path

import torch
from timm.optim import Lars
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from ..data.images import EpochSampler, ImageDataset, ImageStream, MixupCollator, normalize_pixels, seed_of
from ..hub import training_card
from ..modeling_supmae import UNLABELED, SupMAEPreTrainedModel
from .objective import averages, evaluation_statistics, labeled_images, labels_per_batch, statistics, step_loss
from .optimization import create_optimizer, create_scheduler
from .resuming import RunMonitor, StopRequest, check_writer, ignore_stop_request, new_checkpoint


logger = logging.get_logger(__name__)

# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def seed_step(seed: int, step: int, process_index: int):
    """Seed what a training step draws (dropout, stochastic depth), so that it does not depend on the steps before."""
    torch.manual_seed(seed_of(seed, step, process_index))


def keep_freed_memory():
    """
    Tell glibc to keep the memory that the process frees. By default it gives large blocks back to the system, which
    has to clear them page by page when the next operation asks for them, which takes a good part of the time of a
    training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, 2**31 - 1)


def prepare_batch_norm(model: torch.nn.Module, args) -> torch.nn.Module:
    """Synchronise BatchNorm across processes if `args.sync_batchnorm`; else say whose statistics it sees."""
    if not any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules()):
        return model
    if args.sync_batchnorm:
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    batches = [f"{args.world_size} processes"] if args.world_size > 1 else []
    batches += (
        [f"{args.gradient_accumulation_steps} batches of a step"] if args.gradient_accumulation_steps > 1 else []
    )
    if batches and args.process_index == 0:
        logger.warning(
            f"The head's BatchNorm sees {args.per_device_train_batch_size} images at a time: each of the "
            f"{' and '.join(batches)} has statistics of its own."
        )
    return model


class _RunCallback(TrainerCallback):
    """Where a [`RecipeTrainer`] acts between the Trainer's steps."""

    def __init__(self, trainer: "RecipeTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._last_logged_step = state.global_step

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.trainer._order is not None:
            steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
            self.trainer._order.epoch = state.global_step // steps

    def on_step_begin(self, args, state, control, **kwargs):
        seed_step(args.seed, state.global_step, args.process_index)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer._monitor.end_step(state.global_step):
            self.trainer.was_stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.was_stopped:  # saved already; leave at once
            control.should_save = control.should_evaluate = False


class RecipeTrainer(Trainer):
    """
    [`~transformers.Trainer`] with the optimiser and schedule of [`RecipeArguments`].

    With an [`ImageDataset`] or [`ImageStream`], a run that is killed and started again ends with the weights that it
    would have had, bit for bit on a CPU in fp32. The log has the images per second of training (evaluation excluded)
    and the number of skipped images. SIGTERM makes `train` save a checkpoint and return early, with
    `was_stopped = True`; a loss that is not finite ends it with a `FloatingPointError`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.was_stopped = False
        self._num_images = 0
        self._num_skipped = None
        self._interval_start = None
        self._last_logged_step = 0
        self._order = None
        self._unfinished = None
        self.add_callback(_RunCallback(self))

    def train(self, resume_from_checkpoint=None, **kwargs):
        if isinstance(resume_from_checkpoint, str):
            check_writer(resume_from_checkpoint, is_trainer=True)
        with StopRequest() as stop:
            self._monitor = RunMonitor(self.args, self.accelerator, stop)
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = create_optimizer(self.model if model is None else model, self.args)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            self.lr_scheduler = create_scheduler(optimizer or self.optimizer, self.args, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self):
        if isinstance(self.train_dataset, ImageStream):
            self._order = self.train_dataset
        dataloader = super().get_train_dataloader()
        getattr(dataloader, "base_dataloader", dataloader).worker_init_fn = ignore_stop_request
        return dataloader

    def get_batch_samples(self, *args, **kwargs):
        # a run that was killed between its last step and its end; the Trainer would train one step more
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(train_dataset, ImageDataset):
            self._order = EpochSampler(train_dataset)
            return self._order
        return super()._get_train_sampler(train_dataset)

    def _get_learning_rate(self) -> float:
        return max(self.lr_scheduler.get_last_lr())  # of the classifier, under layer-wise decay

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        inputs["pixel_values"] = normalize_pixels(inputs["pixel_values"])
        skipped = inputs.pop("skipped", None)
        if skipped is not None and self.model.training:
            self._num_skipped = skipped.sum() + (0 if self._num_skipped is None else self._num_skipped)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if model.training:
            self._interval_start = self._interval_start or time.perf_counter()
            self._num_images += inputs["pixel_values"].shape[0]
        loss, outputs = self._loss_and_outputs(model, inputs, **kwargs)
        return (loss, outputs) if return_outputs else loss

    def _loss_and_outputs(self, model, inputs, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self._monitor.add(loss=loss)
        return loss, outputs

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
            logs.update(self._interval_figures())
            seconds = time.perf_counter() - self._interval_start
            logs["images_per_second"] = round(self._num_images * self.args.world_size / seconds, 1)
            self._num_images, self._interval_start = 0, time.perf_counter()
            self._last_logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def _interval_figures(self) -> dict[str, float]:
        """What the log says of the steps since the last one."""
        if self._num_skipped is None:
            return {}
        skipped, self._num_skipped = int(self.accelerator.reduce(self._num_skipped)), None
        return {"skipped_images": skipped}

    def create_model_card(self, *args, **kwargs):
        """The card of [`training_card`] into the output folder; the Trainer's own for other models and data."""
        if not isinstance(self.model, SupMAEPreTrainedModel) or not isinstance(
            self.train_dataset, (ImageDataset, ImageStream)
        ):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            card = training_card(self.model, self.args, self.train_dataset, self.eval_dataset, self.state.log_history)
            card.save(Path(self.args.output_dir) / "README.md")

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    def _save_checkpoint(self, model, trial):
        step = self.state.global_step
        self._monitor.check(self.model, step)
        with new_checkpoint(self.args, self.accelerator, step, keep=self.state.best_model_checkpoint) as folder:
            self._unfinished = folder.parent  # where the Trainer now writes `checkpoint-{step}`
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._unfinished = None
            if self.state.best_global_step == step:
                self.state.best_model_checkpoint = str(Path(self.args.output_dir) / folder.name)
                if self.args.should_save:
                    self.state.save_to_json(folder / TRAINER_STATE_NAME)


class PreTrainer(RecipeTrainer):
    """
    Trainer of [`SupMAEForPreTraining`]: logs both losses, the labelled images per step and, for single-label problems,
    the accuracy on visible patches, and evaluates the same. Classification figures, and the classification loss of an
    optimiser step, are averages over its labelled images, in however many batches and processes they are.
    """

    def __init__(self, model, args, **kwargs):
        model = prepare_batch_norm(model, args)
        super().__init__(model, args, compute_metrics=self._average_predictions, **kwargs)
        self._sums = None
        self._mean_labels = None

    @staticmethod
    def _average_predictions(prediction: EvalPrediction) -> dict[str, float]:
        return averages(prediction.predictions.astype("float64").sum(axis=0))

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if "labels" not in inputs:
            images = inputs["pixel_values"]
            inputs["labels"] = torch.full((len(images),), UNLABELED, device=images.device)
        return inputs

    def get_batch_samples(self, *args, **kwargs):
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._mean_labels = labels_per_batch(batches, self.accelerator)
        return batches, num_items

    def _loss_and_outputs(self, model, inputs, **kwargs):
        outputs = model(**inputs)
        if not model.training:
            return outputs["loss"].mean(), outputs
        loss = step_loss(outputs, inputs["labels"], self.model.config, self._mean_labels)
        sums = statistics(outputs, inputs["labels"]).sum(dim=0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._monitor.add(
            reconstruction_loss=outputs["reconstruction_loss"], classification_loss=outputs["classification_loss"]
        )
        return loss, outputs

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            rows = evaluation_statistics(self.model, outputs, inputs["pixel_values"], inputs["labels"])
        return loss.detach(), rows, inputs["labels"]

    def _interval_figures(self) -> dict[str, float]:
        sums, self._sums = self.accelerator.reduce(self._sums, reduction="sum"), None
        per_step = labeled_images(sums) / (self.state.global_step - self._last_logged_step)
        return {**super()._interval_figures(), **averages(sums), "labeled_images_per_step": per_step}


class FineTuner(RecipeTrainer):
    """
    Trainer of [`SupMAEForImageClassification`] on single-label images: label smoothing, and mixup or cutmix if the
    arguments say so, while training; the plain cross entropy in evaluation.

    Args:
        mixup (`timm.data.Mixup`, *optional*): Mixes training batches and smooths their labels.
    """

    def __init__(self, *args, mixup=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # done in the loss below, and only in training
        self._mixup = mixup

    def get_train_dataloader(self):
        plain_collator = self.data_collator
        if self._mixup is not None:
            self.data_collator = MixupCollator(self._mixup)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain_collator

    def _loss_and_outputs(self, model, inputs, **kwargs):
        if not model.training:
            return super()._loss_and_outputs(model, inputs, **kwargs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        smoothing = 0.0 if labels.is_floating_point() else self.args.label_smoothing_factor
        loss = torch.nn.functional.cross_entropy(outputs["logits"].float(), labels, label_smoothing=smoothing)
        self._monitor.add(loss=loss)
        return loss, outputs


class LinearProbeTrainer(RecipeTrainer):
    """Trainer of a [`LinearProbe`], with LARS (arXiv 1708.03888) as in MoCo v3: trust ratio for the weight only."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            classifier = self.model.classifier
            self.optimizer = Lars(
                [
                    {"params": [classifier.weight], "always_adapt": True},
                    {"params": [classifier.bias], "weight_decay": 0.0},
                ],
                lr=self.args.learning_rate,
                momentum=0.9,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer
