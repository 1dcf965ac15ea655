# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Trainers: Transformers' own, with the recipes' optimisers, a log of what matters, checkpoints that survive being
killed, and runs that go on from them as if nothing had happened.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalPrediction, HubStrategy
from transformers.utils import logging

from ..data.dataset import (
    ImageStream,
    MixupCollator,
    images_of_epoch,
)
from ..records import Record
from .checkpointing import (
    RESULTS,
    RunMonitor,
    StopRequest,
    check_writer,
    finish_checkpoint,
    require_sharding,
    start_checkpoint,
    writing_failed,
)
from .loop import (
    Interval,
    begin_epoch,
    build_dataloader,
    epoch_order,
    leave,
    prepare_batch_norm,
    seed_step,
    share_buffers,
    take_counts,
)
from .objective import Objective, averages, evaluation_loss, image_metrics
from .optimization import create_optimizer, create_scheduler
from .progress import Progress
from .report import write_card, write_report
from .uploads import START_SECONDS, Uploads, within


logger = logging.get_logger(__name__)


class _RunCallback(TrainerCallback):
    """The actions of a [`RecipeTrainer`] between the Trainer's steps."""

    def __init__(self, trainer: "RecipeTrainer"):
        self.trainer, self.progress = trainer, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.last_logged_step = state.global_step
        self.progress = Progress(self.trainer.model, args, state.global_step, state.max_steps)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        epoch, steps_done = divmod(state.global_step, steps)
        begin_epoch(self.trainer.order, epoch, steps_done * args.gradient_accumulation_steps)

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        seed_step(args.seed, state.global_step, args.process_index)
        self.trainer.learning_rate = max(lr_scheduler.get_last_lr())  # of the classifier, under layer-wise decay

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.progress is not None:
            self.progress.write(logs)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.progress.end_step(state.global_step)
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
        job ([`Job`], *optional*): The run, of which the trainer then writes a model card and a report of its own.
    """

    def __init__(self, *args, job=None, **kwargs):
        super().__init__(*args, **kwargs)
        require_sharding(self.accelerator)
        self.model_accepts_loss_kwargs = False  # losses are means over a batch, which the Trainer averages over a step
        self.job = job
        self.was_stopped = False
        self.monitor = None
        self.order = None
        self.learning_rate = None
        self.last_logged_step = 0
        self.interval = Interval(self.accelerator)
        self.uploads = None
        if self.args.push_to_hub and self.is_world_process_zero():
            self.uploads = Uploads(self.args, self.hub_model_id)
        # the Trainer's own uploads read checkpoints before they are complete, while others are deleted, and hide errors
        self.args.hub_strategy = HubStrategy.END
        # its way of deleting old checkpoints does not look at what they hold, and leaves half of one behind if it is killed
        self.save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        for callback in (ProgressCallback, PrinterCallback):  # which print dictionaries of strings
            self.pop_callback(callback)
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
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            self.interval.add(batch)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            take_counts(inputs)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = self.training_loss(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_loss(self, model, inputs, num_items_in_batch=None):
        """Loss and outputs of a training batch."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.monitor.add(loss=loss)
        return loss, outputs

    def evaluate(self, *args, **kwargs):
        with self.interval.paused():
            share_buffers(self.model, self.accelerator)
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self.interval:  # a training interval, as opposed to an evaluation or the summary
            logs |= {"learning_rate": self.learning_rate, **self.interval_metrics(), **self.interval.end()}
            self.last_logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def interval_metrics(self) -> dict[str, float]:
        """The metrics of the steps since the last line of the log."""
        return {}

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
        if self.job is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_card(self.job, self.state.log_history)

    def run(self, checkpoint: str | None = None) -> dict[str, float]:
        """
        Train (going on from a checkpoint), save, evaluate, report, publish: what the scripts do. Ends the process with the
        exit status of SIGTERM, and a word on how to go on, if it was asked to stop. Returns the figures of the evaluation.
        """
        if Path(self.args.output_dir, TRAINER_STATE_NAME).exists():  # it is over: nothing is left to draw curves of
            self.pop_callback(TensorBoardCallback)
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
        if self.job is not None and self.is_world_process_zero():
            write_report(self.job, self.state.log_history, metrics)
        self.finish_uploads()
        return metrics

    def finish_uploads(self):
        """Publish what is to be published, once the run's own work is done."""
        if self.uploads is not None:
            self.uploads.finish(is_over=not self.was_stopped)


class PreTrainer(RecipeTrainer):
    """
    Trainer of [`SupMAEForPreTraining`]: logs both losses, the labelled images per step and, for single-label problems,
    the accuracy on visible patches, and evaluates the same. Classification figures, and the classification loss of an
    optimiser step, are averages over its labelled images, in however many batches and processes they are.

    Args:
        knn (`Callable`, *optional*): A [`KnnEvaluation`], whose accuracy every evaluation reports as `eval_knn_top1`.
    """

    def __init__(self, model, args, knn=None, **kwargs):
        model = prepare_batch_norm(model, args)
        self.knn = knn
        super().__init__(model, args, compute_metrics=self._average, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that the Trainer leaves averages over a step's batches to us
        self._objective = None

    def _average(self, prediction: EvalPrediction) -> dict[str, float]:
        sums = {name: rows.astype("float64").sum(axis=0) for name, rows in prediction.predictions.items()}
        return averages(self.model, sums)

    def get_batch_samples(self, *args, **kwargs):
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self._objective is None or self._objective.monitor is not self.monitor:  # another call of `train`
            max_steps = self.state.max_steps
            self._objective = Objective(self.model, self.accelerator, max_steps, self.monitor)
        return self._objective.begin_step(batches, self.state.global_step), num_items

    def training_loss(self, model, inputs, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = self._objective.loss(outputs, inputs)
        # the Trainer leaves the division to whoever is given the number of items
        return (loss if num_items_in_batch is None else loss / self.current_gradient_accumulation_steps), outputs

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # the Trainer's loss is an average over batches, of which some may have few labels
        names = [name for name in output.metrics if name.startswith(f"{metric_key_prefix}_")]
        metrics = {name.removeprefix(f"{metric_key_prefix}_"): output.metrics[name] for name in names}
        output.metrics[f"{metric_key_prefix}_loss"] = evaluation_loss(self.model, metrics)
        if self.knn is not None:
            model = self.model if self.args.n_gpu > 1 else self.model_wrapped  # not DataParallel's copies
            output.metrics[f"{metric_key_prefix}_knn_top1"] = self.knn(model.eval(), self.accelerator)
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        take_counts(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
            metrics = image_metrics(self.model, outputs, inputs)
        return outputs["loss"].mean().detach(), metrics, metrics["images"]

    def interval_metrics(self) -> dict[str, float]:
        return self._objective.log(self.state.global_step - self.last_logged_step)


class FineTuner(RecipeTrainer):
    """
    Trainer of [`SupMAEForImageClassification`]. For one class per image: label smoothing, and mixup or cutmix if the arguments
    say so, while training; the plain cross entropy in evaluation. Other labels have the model's own loss.

    Args:
        mixup (`timm.data.Mixup`, *optional*): Mixes training batches and smooths their labels.
        class_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*): Weight of each class in the loss of training.
    """

    def __init__(self, *args, mixup=None, class_weights=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # done in the loss below, and only in training
        self.mixup, self.class_weights = mixup, class_weights

    def get_train_dataloader(self):
        collate = self.data_collator if self.mixup is None else MixupCollator(self.mixup)
        loader = build_dataloader(self.train_dataset, self.args, collate, train=True)
        return self.prepare_train_dataloader(loader)

    def training_loss(self, model, inputs, num_items_in_batch=None):
        problem_type = self.model.config.problem_type
        if problem_type in ("multi_label_classification", "regression"):
            outputs = model(**inputs)
            loss = outputs["loss"].mean()
        else:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            smoothing = 0.0 if labels.is_floating_point() else self.args.label_smoothing_factor
            weights = None if self.class_weights is None else self.class_weights.to(labels.device)
            loss = torch.nn.functional.cross_entropy(
                outputs["logits"].float(), labels, weights, label_smoothing=smoothing
            )
        self.monitor.add(loss=loss)
        return loss, outputs
