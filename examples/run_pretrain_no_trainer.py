#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
The same as run_pretrain.py, with the same arguments and numbers, as a plain Accelerate loop: the place to start from
if you want to change how a step works.

    accelerate launch examples/run_pretrain_no_trainer.py [RECIPE.yaml] [--flag value ...]

Of Transformers' TrainingArguments it follows those on batches, epochs and steps, learning rate, optimiser, gradient
accumulation, clipping and checkpointing, precision, compilation, data loading, logging, evaluation and saving.
"""

import contextlib
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DistributedDataParallelKwargs, TorchDynamoPlugin
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import TrainerState, set_seed

from supmae_hf import SupMAEForPreTraining
from supmae_hf.data.images import EpochSampler, ImageDataset, collate, normalize_pixels
from supmae_hf.data.sources import DataArguments
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments, parse_arguments
from supmae_hf.training.objective import (
    averages,
    evaluation_statistics,
    labeled_images,
    labels_per_batch,
    statistics,
    step_loss,
)
from supmae_hf.training.optimization import create_optimizer, create_scheduler
from supmae_hf.training.resuming import (
    RunMonitor,
    StopRequest,
    check_writer,
    ignore_stop_request,
    new_checkpoint,
    prepare_output_dir,
)
from supmae_hf.training.setup import leave, prepare_pretraining, report_pretraining
from supmae_hf.training.trainer import keep_freed_memory, prepare_batch_norm, seed_step


def build_dataloader(dataset, args: PreTrainingArguments, train: bool) -> DataLoader:
    is_stream = isinstance(dataset, IterableDataset)
    return DataLoader(
        dataset,
        batch_size=args.per_device_train_batch_size if train else args.per_device_eval_batch_size,
        sampler=EpochSampler(dataset) if train and isinstance(dataset, ImageDataset) else None,
        drop_last=train and not is_stream and args.dataloader_drop_last,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=ignore_stop_request,
    )


@torch.no_grad()
def evaluate(model, dataloader, accelerator: Accelerator) -> dict[str, float]:
    model.eval()
    bare_model = accelerator.unwrap_model(model)
    rows = []
    for batch in dataloader:
        batch.pop("skipped", None)
        batch_rows = evaluation_statistics(bare_model, model(**batch), batch["pixel_values"], batch["labels"])
        rows.append(accelerator.gather_for_metrics(batch_rows))
    return {f"eval_{name}": value for name, value in averages(torch.cat(rows).cpu().double().sum(dim=0)).items()}


class Interval:
    """What the log says of the steps since the last one."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.num_steps = self.num_images = 0
        self.sums = self.loss = self.skipped = None
        self.start = time.perf_counter()

    def add_batch(self, loss: torch.Tensor, batch_statistics: torch.Tensor, skipped: torch.Tensor | None):
        self.num_images += len(batch_statistics)
        sums = batch_statistics.sum(dim=0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.loss = loss if self.loss is None else self.loss + loss
        if skipped is not None:
            self.skipped = skipped.sum() + (0 if self.skipped is None else self.skipped)

    def figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        sums = self.accelerator.reduce(self.sums)
        figures = {
            "loss": self.accelerator.reduce(self.loss, reduction="mean").item() / self.num_steps,
            **averages(sums),
            "labeled_images_per_step": labeled_images(sums) / self.num_steps,
            "images_per_second": round(self.num_images * self.accelerator.num_processes / seconds, 1),
        }
        if self.skipped is not None:
            figures["skipped_images"] = int(self.accelerator.reduce(self.skipped))
        return figures


def train(
    args: PreTrainingArguments,
    model: SupMAEForPreTraining,
    image_processor,
    train_dataset,
    eval_dataset,
    checkpoint: str | None = None,
) -> tuple[TrainerState, dict[str, float]]:
    """Train, from a checkpoint if there is one, and save; returns the state with the log, and the last evaluation."""
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        cpu=args.use_cpu,
        log_with=args.report_to or None,
        project_dir=output_dir,
        dynamo_plugin=TorchDynamoPlugin(backend=args.torch_compile_backend) if args.torch_compile else None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(args.ddp_find_unused_parameters))],
    )
    accelerator.init_trackers("runs")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    bare_model = prepare_batch_norm(model, args)
    if args.gradient_checkpointing:
        bare_model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)

    loader = build_dataloader(train_dataset, args, train=True)
    # whose `epoch` decides the order
    order = loader.sampler if isinstance(loader.sampler, EpochSampler) else train_dataset
    model, optimizer, loader, eval_loader = accelerator.prepare(
        bare_model, create_optimizer(bare_model, args), loader, build_dataloader(eval_dataset, args, train=False)
    )
    accumulation = args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / accumulation)
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    scheduler = create_scheduler(optimizer, args, max_steps)  # not prepared: one step per optimiser step
    accelerator.register_for_checkpointing(scheduler)

    state = TrainerState()
    if checkpoint is not None:
        check_writer(checkpoint, is_trainer=False)
        accelerator.load_state(checkpoint)
        state = TrainerState.load_from_json(Path(checkpoint) / "trainer_state.json")
    state.max_steps = max_steps
    state.compute_steps(args, max_steps)  # shares of the whole run to steps

    def is_due(strategy: str, steps: int) -> bool:
        if strategy == "epoch":
            return state.global_step % steps_per_epoch == 0 or state.global_step == max_steps
        return strategy == "steps" and state.global_step % steps == 0

    def log(figures: dict[str, float]):
        state.log_history.append({**figures, "epoch": state.epoch, "step": state.global_step})
        accelerator.log(figures, step=state.global_step)

    def save():
        monitor.check(bare_model, state.global_step)
        with new_checkpoint(args, accelerator, state.global_step) as folder:
            accelerator.save_state(folder)
            if accelerator.is_main_process:  # what from_pretrained needs beside the weights
                bare_model.config.save_pretrained(folder)
                image_processor.save_pretrained(folder)
                state.save_to_json(folder / "trainer_state.json")

    def train_step(batches: list[dict[str, torch.Tensor]]):
        seed_step(args.seed, state.global_step, accelerator.process_index)
        mean_labels = labels_per_batch(batches, accelerator)
        for index, batch in enumerate(batches):
            skipped = batch.pop("skipped", None)
            batch["pixel_values"] = normalize_pixels(batch["pixel_values"])
            is_last = index == len(batches) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                outputs = model(**batch)
                loss = step_loss(outputs, batch["labels"], bare_model.config, mean_labels) / len(batches)
                accelerator.backward(loss)
            monitor.add(
                loss=loss,
                reconstruction_loss=outputs["reconstruction_loss"],
                classification_loss=outputs["classification_loss"],
            )
            interval.add_batch(loss.detach(), statistics(outputs, batch["labels"]), skipped)
        if args.max_grad_norm > 0:
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            scheduler.step()
        optimizer.zero_grad()
        interval.num_steps += 1

    progress = tqdm(
        total=max_steps,
        initial=state.global_step,
        disable=args.disable_tqdm or not accelerator.is_local_main_process,
    )
    is_stopped = False
    with StopRequest() as stop:
        monitor, interval = RunMonitor(args, accelerator, stop), Interval(accelerator)
        while state.global_step < max_steps and not is_stopped:
            order.epoch, steps_done = divmod(state.global_step, steps_per_epoch)
            batches_done = steps_done * accumulation
            batches = iter(skip_first_batches(loader, batches_done) if batches_done else loader)
            for step in range(steps_done, steps_per_epoch):
                model.train()
                learning_rate = max(scheduler.get_last_lr())
                train_step([next(batches) for _ in range(min(accumulation, len(loader) - step * accumulation))])
                state.global_step += 1
                state.epoch = state.global_step / steps_per_epoch
                progress.update()
                is_stopped = monitor.end_step(state.global_step)
                if is_due(args.logging_strategy, state.logging_steps):
                    figures = {**interval.figures(), "learning_rate": learning_rate}
                    log(figures)
                    progress.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
                    interval = Interval(accelerator)
                if not is_stopped and is_due(args.eval_strategy, state.eval_steps):
                    start = time.perf_counter()
                    log(evaluate(model, eval_loader, accelerator))
                    interval.start += time.perf_counter() - start
                is_last = is_stopped or state.global_step == max_steps
                if (
                    is_stopped
                    or is_due(args.save_strategy, state.save_steps)
                    or (is_last and args.save_strategy != "no")
                ):
                    save()
                if is_last:
                    break
    progress.close()
    if is_stopped:
        leave(args)

    metrics = evaluate(model, eval_loader, accelerator)
    bare_model.save_pretrained(
        output_dir, is_main_process=accelerator.is_main_process, state_dict=accelerator.get_state_dict(model)
    )
    if accelerator.is_main_process:
        image_processor.save_pretrained(output_dir)
        state.save_to_json(output_dir / "trainer_state.json")
    accelerator.end_training()
    state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
    return state, metrics


def main():
    model_args, data_args, args = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
    )
    checkpoint = prepare_output_dir(args)
    set_seed(args.seed)
    model, image_processor, train_dataset, eval_dataset = prepare_pretraining(model_args, data_args, args)
    state, metrics = train(args, model, image_processor, train_dataset, eval_dataset, checkpoint)
    if args.process_index == 0:
        report_pretraining(
            model, image_processor, train_dataset, eval_dataset, args, state.log_history, metrics, state.epoch
        )


if __name__ == "__main__":
    main()
