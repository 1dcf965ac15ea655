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
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, TorchDynamoPlugin, send_to_device
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import TrainerState, set_seed

from supmae_hf.data.dataset import ImageStream, collate
from supmae_hf.records import Record
from supmae_hf.training.arguments import DataArguments, ModelArguments, PreTrainingArguments, prepare_pretraining
from supmae_hf.training.checkpointing import (
    RESULTS,
    RunMonitor,
    StopRequest,
    check_writer,
    finish_checkpoint,
    open_run,
    require_sharding,
    start_checkpoint,
    writing_failed,
)
from supmae_hf.training.knn import KnnEvaluation
from supmae_hf.training.objective import (
    BranchCheck,
    add,
    averages,
    batch_loss,
    image_figures,
    images_per_step,
    labels_of_step,
)
from supmae_hf.training.optimization import create_optimizer, create_scheduler
from supmae_hf.training.recipes import parse_arguments, run
from supmae_hf.training.reports import Report
from supmae_hf.training.runs import describe_run
from supmae_hf.training.schedules import scheduled
from supmae_hf.training.trainer import (
    build_dataloader,
    epoch_order,
    leave,
    prepare_batch_norm,
    seed_step,
    share_buffers,
    take_counts,
)


# arguments that this loop would ignore
TRAINER_ONLY = (
    *("push_to_hub", "early_stopping_patience", "load_best_model_at_end", "metric_for_best_model", "eval_on_start"),
    *("deepspeed", "fsdp", "parallelism_config", "optim_target_modules", "neftune_noise_alpha", "use_liger_kernel"),
    *("activation_checkpointing", "bf16_full_eval", "fp16_full_eval", "logging_first_step", "torch_empty_cache_steps"),
)


def train_step(model, batches: list[dict], optimizer, args, accelerator: Accelerator, monitor: RunMonitor) -> dict:
    """Forward and backward passes of an optimiser step's batches, and the step; returns what the log needs to know."""
    bare_model = accelerator.unwrap_model(model)
    labels_per_batch = labels_of_step(bare_model, batches, accelerator)
    sums = None
    for index, batch in enumerate(batches):
        is_last = index == len(batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            outputs = model(**batch)
            loss, figures, losses = batch_loss(
                model, bare_model, outputs, batch, labels_per_batch, args.pseudo_label_threshold
            )
            accelerator.backward(loss / len(batches))
        monitor.add(**losses)
        figures["loss"] = loss.detach() / (len(batches) * accelerator.num_processes)
        sums = add(sums, figures)
    if args.max_grad_norm > 0:
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return sums


@torch.no_grad()
def evaluate(model, dataloader, accelerator: Accelerator, knn: KnnEvaluation | None) -> dict[str, float]:
    """The figures of the held-out images."""
    bare_model, sums = accelerator.unwrap_model(model), None
    share_buffers(bare_model, accelerator)
    model.eval()
    for batch in dataloader:
        take_counts(batch)
        figures = image_figures(bare_model, model(**batch), batch)
        rows = {name: row.double().cpu() for name, row in accelerator.gather_for_metrics(figures).items()}
        sums = add(sums, {name: row.sum(dim=0) for name, row in rows.items()})
    metrics = averages(bare_model, sums)
    if knn is not None:
        metrics["knn_top1"] = knn(model, accelerator)
    model.train()
    return {f"eval_{name}": value for name, value in metrics.items()}


def train(
    args: PreTrainingArguments,
    model,
    image_processor,
    train_dataset,
    eval_dataset,
    checkpoint: str | None,
    knn: KnnEvaluation | None = None,
):
    """Train, from a checkpoint if there is one, and save; returns the log and the last evaluation."""
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
    bare_model = prepare_batch_norm(model, args)
    if args.gradient_checkpointing:
        bare_model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    loader = build_dataloader(train_dataset, args, collate, train=True)
    order = epoch_order(loader)
    model, optimizer, shared = accelerator.prepare(bare_model, create_optimizer(bare_model, args), loader)
    if not isinstance(order, ImageStream):  # of which every process has its own part
        loader = shared
    eval_loader = None
    if eval_dataset is not None:
        eval_loader = accelerator.prepare(build_dataloader(eval_dataset, args, collate, train=False))
    accumulation = args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / accumulation)
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    scheduler = create_scheduler(optimizer, args, max_steps)  # not prepared: one step per optimiser step
    require_sharding(accelerator)
    # weights are saved and loaded under their own names, for `from_pretrained`, and not under those of what wraps the model
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    state = TrainerState()
    if checkpoint is not None:
        check_writer(checkpoint, is_trainer=False)
        accelerator.load_state(checkpoint)
        if accelerator.distributed_type != DistributedType.FSDP:
            bare_model.load_state_dict(load_file(Path(checkpoint) / "model.safetensors"))
        scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
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

    def save_pretrained(folder: Path):
        """What `from_pretrained` needs, and the log."""
        state_dict = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            bare_model.save_pretrained(folder, state_dict=state_dict)
            image_processor.save_pretrained(folder)
            state.save_to_json(folder / "trainer_state.json")

    def save():
        monitor.check(bare_model, state.global_step)
        folder = output_dir / f"checkpoint-{state.global_step}"
        try:
            start_checkpoint(folder, accelerator)
            accelerator.save_state(folder)
            save_pretrained(folder)
            if accelerator.is_main_process:
                torch.save(scheduler.state_dict(), folder / "scheduler.pt")
            finish_checkpoint(folder, accelerator, args.save_total_limit)
        except (OSError, RuntimeError) as error:
            raise writing_failed(output_dir, state.global_step, error) from error

    hide_progress = args.disable_tqdm or not accelerator.is_local_main_process
    progress = tqdm(total=max_steps, initial=state.global_step, disable=hide_progress)
    with StopRequest() as stop:
        monitor = RunMonitor(args, accelerator, stop)
        branch_check, schedules = BranchCheck(accelerator, max_steps), args.schedules()
        is_stopped, sums, counts, num_steps, start = False, None, None, 0, time.perf_counter()
        while state.global_step < max_steps and not is_stopped:
            epoch, steps_done = divmod(state.global_step, steps_per_epoch)
            if order is not None:
                order.epoch = epoch
            batches_done = steps_done * accumulation
            if isinstance(order, ImageStream):
                order.skip_batches(batches_done)
            batches = iter(skip_first_batches(loader, batches_done) if batches_done else loader)
            for step in range(steps_done, steps_per_epoch):
                model.train()
                learning_rate = max(scheduler.get_last_lr())
                step_batches = [next(batches) for _ in range(min(accumulation, len(loader) - step * accumulation))]
                share = state.global_step / max_steps
                step_batches = send_to_device(step_batches, accelerator.device)  # streams are not prepared
                for batch in step_batches:
                    counts = add(counts, take_counts(batch))
                step_batches = [scheduled(batch, bare_model.config, share, *schedules) for batch in step_batches]
                seed_step(
                    args.seed, state.global_step, accelerator.process_index
                )  # the first batch draws from it, too
                branch_check(bare_model, step_batches[0], state.global_step)
                sums = add(sums, train_step(model, step_batches, optimizer, args, accelerator, monitor))
                if not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                state.global_step += 1
                state.epoch = state.global_step / steps_per_epoch
                num_steps += 1
                progress.update()
                is_stopped = monitor.end_step(state.global_step)
                if is_due(args.logging_strategy, state.logging_steps):
                    sums = {name: value.cpu().double() for name, value in accelerator.reduce(sums).items()}
                    figures = {
                        "loss": float(sums["loss"]) / num_steps,
                        "learning_rate": learning_rate,
                        **averages(bare_model, sums),
                        **images_per_step(sums, num_steps),
                        "images_per_second": round(float(sums["images"]) / (time.perf_counter() - start), 1),
                        **{name: int(count) for name, count in accelerator.reduce(counts).items()},
                    }
                    log(figures)
                    progress.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
                    sums, counts, num_steps, start = None, None, 0, time.perf_counter()
                if not is_stopped and is_due(args.eval_strategy, state.eval_steps):
                    began = time.perf_counter()
                    log(evaluate(model, eval_loader, accelerator, knn))
                    start += time.perf_counter() - began
                is_last = is_stopped or state.global_step == max_steps
                is_save_due = is_due(args.save_strategy, state.save_steps)
                if is_stopped or is_save_due or (is_last and args.save_strategy != "no"):
                    save()
                if is_last:
                    break
    progress.close()
    if is_stopped:
        leave(args, stop)

    metrics = {} if eval_loader is None else evaluate(model, eval_loader, accelerator, knn)
    if accelerator.is_main_process:
        Record(output_dir).claim(*RESULTS)
    save_pretrained(output_dir)
    accelerator.end_training()
    return [*state.log_history, {**metrics, "epoch": state.epoch, "step": state.global_step}], metrics


def main():
    model_args, data_args, args = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        base="pretrain",
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
    )
    for name in TRAINER_ONLY:
        if getattr(args, name, None):
            raise ValueError(f"`--{name}` is the Trainer's: use run_pretrain.py (to publish, examples/publish.py).")
    if args.save_strategy == "best":
        raise ValueError("`--save_strategy` best is the Trainer's: use run_pretrain.py.")
    data = data_args.load(args.output_dir, model_args.model_config, [model_args.model_name_or_path, args.mask_dir])
    set_seed(args.seed)
    model, image_processor, train_dataset, eval_dataset = prepare_pretraining(model_args, data_args, args, data)
    knn = None
    if args.knn_eval:
        knn = KnnEvaluation(data, train_dataset, image_processor, data_args.label_column_name, args)
    with open_run(args, describe_run("pre-training", model_args, data_args, args, data)) as checkpoint:
        log_history, metrics = train(args, model, image_processor, train_dataset, eval_dataset, checkpoint, knn)
        if args.process_index == 0:
            report = Report("Pre-trained", model, args, data_args, data, train_dataset, eval_dataset, image_processor)
            report.write(log_history, metrics)


if __name__ == "__main__":
    run(main)
