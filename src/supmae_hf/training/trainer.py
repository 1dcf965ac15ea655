# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Trainers: Transformers' own, with the recipes' optimisers, a log of what matters, checkpoints that survive being
killed, and runs that go on from them as if nothing had happened.
"""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalPrediction, HubStrategy
from transformers.utils import logging

from ..data.dataset import (
    EpochSampler,
    ImageDataset,
    ImageStream,
    MixupCollator,
    collate_views,
    images_of_epoch,
)
from ..data.transforms import seed_of
from ..records import Record
from .checkpointing import (
    RESULTS,
    RunMonitor,
    StopRequest,
    check_writer,
    finish_checkpoint,
    ignore_stop_request,
    require_sharding,
    start_checkpoint,
    writing_failed,
)
from .knn import KnnEvaluation
from .objective import BranchCheck, add, averages, batch_loss, image_figures, images_per_step, labels_of_step
from .optimization import create_optimizer, create_scheduler
from .schedules import scheduled
from .uploads import START_SECONDS, Uploads, within


logger = logging.get_logger(__name__)


def seed_step(seed: int, step: int, process_index: int):
    """Seed what a training step draws (dropout, stochastic depth), so that it does not depend on the steps before."""
    torch.manual_seed(seed_of(seed, step, process_index))


def build_dataloader(dataset, args, collate: Callable, train: bool) -> DataLoader:
    """
    Batches of an [`ImageDataset`], an [`ImageStream`] or any other data set: shuffled (unless
    `args.train_sampling_strategy` is sequential) and without an incomplete last one (if `args.dataloader_drop_last`) for
    training, all of them in order for evaluation.
    """
    sampler, num_views = None, getattr(dataset, "num_views", 1)
    if train and not isinstance(dataset, IterableDataset):
        shuffle = args.train_sampling_strategy == "random"
        if isinstance(dataset, ImageDataset) and dataset.seed is not None:
            sampler = EpochSampler(dataset, shuffle, getattr(args, "labeled_share", 0.0))
        elif shuffle:
            sampler = torch.utils.data.RandomSampler(dataset)
    num_workers = args.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_size=(args.train_batch_size if train else args.eval_batch_size) // num_views,
        sampler=sampler,
        drop_last=train and not isinstance(dataset, IterableDataset) and args.dataloader_drop_last,
        collate_fn=collate if num_views == 1 else collate_views,
        num_workers=num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers and train and num_workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor if num_workers else None,
        multiprocessing_context=args.dataloader_multiprocessing_context if num_workers else None,
        worker_init_fn=ignore_stop_request,
    )


def take_counts(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove from a batch, and add up, what is counted of its images: those that were skipped, those that came again."""
    return {f"{name}_images": batch.pop(name).sum() for name in ("skipped", "repeated") if name in batch}


def epoch_order(loader: DataLoader) -> EpochSampler | ImageStream | None:
    """What decides the order of the images, whose `epoch` is to be set before each."""
    return next((x for x in (loader.sampler, loader.dataset) if isinstance(x, (EpochSampler, ImageStream))), None)


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


def share_buffers(model: torch.nn.Module, accelerator: Accelerator):
    """
    Give every process the first one's buffers (BatchNorm's running statistics), which are those that are saved; to be called
    before an evaluation.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.clone()))


class _RunCallback(TrainerCallback):
    """Where a [`RecipeTrainer`] acts between the Trainer's steps."""

    def __init__(self, trainer: "RecipeTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.last_logged_step = state.global_step

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.trainer.order is not None:
            steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
            self.trainer.order.epoch, steps_done = divmod(state.global_step, steps)
            if isinstance(self.trainer.order, ImageStream):
                self.trainer.order.skip_batches(steps_done * args.gradient_accumulation_steps)

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        seed_step(args.seed, state.global_step, args.process_index)
        self.trainer.learning_rate = max(lr_scheduler.get_last_lr())  # of the classifier, under layer-wise decay

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.trainer.monitor.end_step(state.global_step):
            self.trainer.was_stopped = control.should_save = control.should_training_stop = True
        if control.should_save:
            self.trainer.monitor.check(model, state.global_step)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        if self.trainer.was_stopped:  # saved already; leave at once
            control.should_save = control.should_evaluate = False
        if control.should_save:
            self.trainer.monitor.check(model, state.global_step)

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            finish_checkpoint(
                checkpoint, self.trainer.accelerator, self.trainer.save_total_limit, state.best_model_checkpoint
            )
        except OSError as error:
            raise writing_failed(args.output_dir, state.global_step, error) from error
        if self.trainer.uploads is not None:
            self.trainer.uploads.start(checkpoint)


class RecipeTrainer(Trainer):
    """
    [`~transformers.Trainer`] with the optimiser and schedule of [`RecipeArguments`].

    With an [`ImageDataset`] or [`ImageStream`], a run that is killed and started again ends with the weights that it
    would have had, bit for bit on a CPU in fp32. The log has the images per second of training (evaluation excluded)
    and the number of skipped images. SIGTERM makes `train` save a checkpoint and return early, with
    `was_stopped = True`; a loss that is not finite ends it with a `FloatingPointError`, and a checkpoint that cannot be
    written with an `OSError`.

    Args:
        report ([`Report`], *optional*): Writes the model card, in the place of Transformers' own, and what [`run`] leaves.
    """

    def __init__(self, *args, report=None, **kwargs):
        super().__init__(*args, **kwargs)
        require_sharding(self.accelerator)
        self.model_accepts_loss_kwargs = False  # losses are means over a batch, which the Trainer averages over a step
        self.report = report
        self.was_stopped = False
        self.monitor = None
        self.order = None
        self.learning_rate = None
        self.last_logged_step = 0
        self._num_images = 0
        self._counts = {}
        self._interval_start = None
        self.uploads = None
        if self.args.push_to_hub and self.is_world_process_zero():
            self.uploads = Uploads(self.args, self.hub_model_id)
        # the Trainer's own uploads read checkpoints before they are complete, while others are deleted, and hide errors
        self.args.hub_strategy = HubStrategy.END
        # its way of deleting old checkpoints does not look at what they hold, and leaves half of one behind if it is killed
        self.save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.add_callback(_RunCallback(self))
        if getattr(self.args, "early_stopping_patience", None) is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    def train(self, resume_from_checkpoint=None, **kwargs):
        if isinstance(resume_from_checkpoint, str):
            check_writer(resume_from_checkpoint, is_trainer=True)
        with StopRequest() as stop:
            self.monitor = RunMonitor(self.args, self.accelerator, stop)
            try:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            except (OSError, RuntimeError, SafetensorError) as error:
                if self.control.should_save and not self.control.should_evaluate:  # which come in this order
                    raise writing_failed(self.args.output_dir, self.state.global_step, error) from error
                raise

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        if _internal_call and Path(output_dir or "").name.startswith("checkpoint-"):  # as the Trainer saves one
            start_checkpoint(output_dir, self.accelerator)
        super().save_model(output_dir, _internal_call)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = create_optimizer(self.model if model is None else model, self.args)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            self.lr_scheduler = create_scheduler(optimizer or self.optimizer, self.args, num_training_steps)
        return self.lr_scheduler

    def prepare_train_dataloader(self, loader: DataLoader) -> DataLoader:
        """Each process its share of the batches; of an [`ImageStream`] it has no others."""
        self.order = epoch_order(loader)
        return loader if isinstance(loader.dataset, ImageStream) else self.accelerator.prepare(loader)

    def get_train_dataloader(self):
        loader = build_dataloader(self.train_dataset, self.args, self.data_collator, train=True)
        return self.prepare_train_dataloader(loader)

    def get_eval_dataloader(self, eval_dataset=None):
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.accelerator.prepare(build_dataloader(dataset, self.args, self.data_collator, train=False))

    def get_batch_samples(self, *args, **kwargs):
        # a run that was killed between its last step and its end; the Trainer would train one step more
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        counts = take_counts(inputs)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._interval_start = self._interval_start or time.perf_counter()
        self._num_images += inputs["pixel_values"].shape[0]
        self._counts = {name: count + self._counts.get(name, 0) for name, count in counts.items()}
        loss, outputs = self.training_loss(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_loss(self, model, inputs, num_items_in_batch=None):
        """Loss and outputs of a training batch."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.monitor.add(loss=loss)
        return loss, outputs

    def evaluate(self, *args, **kwargs):
        start = time.perf_counter()
        share_buffers(self.model, self.accelerator)
        metrics = super().evaluate(*args, **kwargs)
        if self._interval_start is not None:
            self._interval_start += time.perf_counter() - start
        return metrics

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._num_images:  # a training interval, as opposed to an evaluation or the summary
            logs.update(self.interval_figures())
            seconds = time.perf_counter() - self._interval_start
            logs["images_per_second"] = round(self._num_images * self.args.world_size / seconds, 1)
            self._num_images, self._interval_start = 0, time.perf_counter()
            self.last_logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def interval_figures(self) -> dict[str, float]:
        """What the log says of the steps since the last one."""
        figures = {"learning_rate": self.learning_rate}
        figures |= {name: int(self.accelerator.reduce(count)) for name, count in self._counts.items()}
        self._counts = {}
        return figures

    def num_examples(self, dataloader: DataLoader) -> int:
        """Images of an epoch, over all processes."""
        is_stream = isinstance(dataloader.dataset, ImageStream)
        return images_of_epoch(dataloader.dataset) if is_stream else super().num_examples(dataloader)

    def init_hf_repo(self, *args, **kwargs):
        try:
            within(START_SECONDS, super().init_hf_repo, *args, **kwargs)
        except TimeoutError:
            raise OSError(
                f"The Hub did not answer in {START_SECONDS} seconds: try again later, or leave out `--push_to_hub` and publish "
                "with examples/publish.py."
            ) from None

    def create_model_card(self, *args, **kwargs):
        """The card of the run into the output folder."""
        if self.report is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.report.write_card(self.state.log_history)

    def run(self, checkpoint: str | None = None) -> dict[str, float]:
        """
        Train (going on from a checkpoint), save, evaluate, report, publish: what the scripts do. Ends the process with the
        exit status of SIGTERM, and a word on how to go on, if it was asked to stop. Returns the figures of the evaluation.
        """
        self.train(resume_from_checkpoint=checkpoint)
        if self.was_stopped:
            self.finish_uploads()
            leave(self.args, self.monitor.stop)
        if self.is_world_process_zero():
            Record(self.args.output_dir).claim(*RESULTS)
        self.save_model(_internal_call=True)  # or else it would be published here, before there is a card
        self.save_state()
        metrics = self.evaluate() if self.eval_dataset is not None else {}
        if metrics:
            self.save_metrics("eval", metrics)
        if self.report is not None and self.is_world_process_zero():
            self.report.write(self.state.log_history, metrics)
        self.finish_uploads()
        return metrics

    def finish_uploads(self):
        """Publish what is to be published, once the run's own work is done."""
        if self.uploads is not None:
            self.uploads.finish(is_over=not self.was_stopped)


def leave(args, stop: StopRequest):
    """End the process with the exit status of the signal that asked for it, and a word on how to go on."""
    received = stop.received or signal.SIGTERM  # which another process may have received
    if args.process_index == 0:
        print(f"\nStopped by {received.name}; saved in {args.output_dir}. The same command goes on from there.")
    raise SystemExit(128 + received)


class PreTrainer(RecipeTrainer):
    """
    Trainer of [`SupMAEForPreTraining`]: logs both losses, the labelled images per step and, for single-label problems,
    the accuracy on visible patches, and evaluates the same. Classification figures, and the classification loss of an
    optimiser step, are averages over its labelled images, in however many batches and processes they are.

    Args:
        knn ([`KnnEvaluation`], *optional*): Whose accuracy every evaluation has as `eval_knn_top1`.
    """

    def __init__(self, model, args, knn: KnnEvaluation | None = None, **kwargs):
        model = prepare_batch_norm(model, args)
        self.knn = knn
        super().__init__(model, args, compute_metrics=self._average, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that the Trainer leaves averages over a step's batches to us
        self._sums, self._labels_per_batch = None, None
        self._branch_check = None
        self._schedules = args.schedules()

    def _average(self, prediction: EvalPrediction) -> dict[str, float]:
        sums = {name: rows.astype("float64").sum(axis=0) for name, rows in prediction.predictions.items()}
        return averages(self.model, sums)

    def get_batch_samples(self, *args, **kwargs):
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if batches:
            self._labels_per_batch = labels_of_step(self.model, batches, self.accelerator)
        return batches, num_items

    def training_loss(self, model, inputs, num_items_in_batch=None):
        share = self.state.global_step / self.state.max_steps
        inputs = scheduled(inputs, self.model.config, share, *self._schedules)
        if self._branch_check is None:
            self._branch_check = BranchCheck(self.accelerator, self.state.max_steps)
        self._branch_check(self.model, inputs, self.state.global_step)
        outputs = model(**inputs)
        threshold = self.args.pseudo_label_threshold
        loss, figures, losses = batch_loss(model, self.model, outputs, inputs, self._labels_per_batch, threshold)
        self._sums = add(self._sums, figures)
        self.monitor.add(**losses)
        # the Trainer leaves the division to whoever is given the number of items
        return (loss if num_items_in_batch is None else loss / self.current_gradient_accumulation_steps), outputs

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # the Trainer's is an average over batches, of which some may have few labels
        config, metrics = self.model.config, output.metrics
        loss = config.reconstruction_loss_weight * metrics[f"{metric_key_prefix}_reconstruction_loss"]
        for kind, head in self.model.heads().items():
            loss += config.supervision_weights[kind] * metrics.get(f"{metric_key_prefix}_{head.loss_name}", 0.0)
        metrics[f"{metric_key_prefix}_loss"] = loss
        if self.knn is not None:
            model = self.model if self.args.n_gpu > 1 else self.model_wrapped  # not DataParallel's copies
            output.metrics[f"{metric_key_prefix}_knn_top1"] = self.knn(model.eval(), self.accelerator)
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        take_counts(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
            figures = image_figures(self.model, outputs, inputs)
        return outputs["loss"].mean().detach(), figures, figures["images"]

    def interval_figures(self) -> dict[str, float]:
        sums, self._sums = self.accelerator.reduce(self._sums, reduction="sum"), None
        sums = {name: value.cpu().double() for name, value in sums.items()}
        steps = self.state.global_step - self.last_logged_step
        return {**super().interval_figures(), **averages(self.model, sums), **images_per_step(sums, steps)}


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
        self.mixup = mixup

    def get_train_dataloader(self):
        collate = self.data_collator if self.mixup is None else MixupCollator(self.mixup)
        loader = build_dataloader(self.train_dataset, self.args, collate, train=True)
        return self.prepare_train_dataloader(loader)

    def training_loss(self, model, inputs, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        smoothing = 0.0 if labels.is_floating_point() else self.args.label_smoothing_factor
        loss = torch.nn.functional.cross_entropy(outputs["logits"].float(), labels, label_smoothing=smoothing)
        self.monitor.add(loss=loss)
        return loss, outputs
