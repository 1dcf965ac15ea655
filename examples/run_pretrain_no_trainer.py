#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
The same as run_pretrain.py, with the same arguments and numbers, as a plain Accelerate loop: the place to start from
if you want to change how a step works.

    python examples/run_pretrain_no_trainer.py [RECIPE.yaml] [--flag value ...]

Of Transformers' TrainingArguments it follows those on batches, epochs and steps, learning rate, optimiser, gradient
accumulation, clipping and checkpointing, precision, compilation, data loading, logging, evaluation and saving.
"""

import contextlib
import math
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, TorchDynamoPlugin
from safetensors.torch import load_file
from transformers import TrainerState

from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.dataset import ImageStream, collate
from supmae_hf.evaluation.encode import KnnEvaluation
from supmae_hf.records import Record
from supmae_hf.training import checkpointing, loop
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments
from supmae_hf.training.job import Job, prepare_pretraining
from supmae_hf.training.objective import Objective, add, averages, image_metrics
from supmae_hf.training.optimization import create_optimizer, create_scheduler
from supmae_hf.training.progress import Progress
from supmae_hf.training.report import write_report


# arguments that this loop would ignore
TRAINER_ONLY = (
    *("push_to_hub", "early_stopping_patience", "load_best_model_at_end", "metric_for_best_model", "eval_on_start"),
    *("deepspeed", "fsdp", "parallelism_config", "optim_target_modules", "neftune_noise_alpha", "use_liger_kernel"),
    *("activation_checkpointing", "bf16_full_eval", "fp16_full_eval", "logging_first_step", "torch_empty_cache_steps"),
)


def train_step(model, batches: list[dict], optimizer, objective: Objective, max_grad_norm: float) -> torch.Tensor:
    """Forward and backward passes of an optimiser step's batches, and the step; returns this process's part of the loss."""
    accelerator, step_loss = objective.accelerator, 0.0
    for index, batch in enumerate(batches):
        is_last = index == len(batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            outputs = model(**batch)
            loss = objective.loss(outputs, batch)
            accelerator.backward(loss / len(batches))
        step_loss += loss.detach() / (len(batches) * accelerator.num_processes)
    if max_grad_norm > 0:
        accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return step_loss


@torch.no_grad()
def evaluate(model, dataloader, accelerator: Accelerator, knn) -> dict[str, float]:
    """The metrics of the held-out images."""
    bare_model, sums = accelerator.unwrap_model(model), None
    loop.share_buffers(bare_model, accelerator)
    model.eval()
    for batch in dataloader:
        loop.take_counts(batch)
        metrics = image_metrics(bare_model, model(**batch), batch)
        rows = {name: row.double().cpu() for name, row in accelerator.gather_for_metrics(metrics).items()}
        sums = add(sums, {name: row.sum(dim=0) for name, row in rows.items()})
    metrics = averages(bare_model, sums)
    if knn is not None:
        metrics["knn_top1"] = knn(model, accelerator)
    model.train()
    return {f"eval_{name}": value for name, value in metrics.items()}


def train(job: Job, checkpoint: str | None, knn: KnnEvaluation | None = None):
    """Train, from a checkpoint if there is one, and save; returns the log and the last evaluation."""
    args = job.args
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        cpu=args.use_cpu,
        log_with=args.report_to or None,
        project_dir=output_dir,
        dynamo_plugin=TorchDynamoPlugin(backend=args.torch_compile_backend) if args.torch_compile else None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(args.ddp_find_unused_parameters))],
    )
    if not (output_dir / "trainer_state.json").exists():  # of a run that is over
        accelerator.init_trackers("runs")
    bare_model = loop.prepare_batch_norm(job.model, args)
    if args.gradient_checkpointing:
        bare_model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    loader = loop.build_dataloader(job.train_dataset, args, collate, train=True)
    order = loop.epoch_order(loader)
    model, optimizer, shared = accelerator.prepare(bare_model, create_optimizer(bare_model, args), loader)
    if not isinstance(order, ImageStream):  # of which every process has its own part
        loader = shared
    eval_loader = None
    if job.eval_dataset is not None:
        eval_loader = accelerator.prepare(loop.build_dataloader(job.eval_dataset, args, collate, train=False))
    accumulation = args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / accumulation)
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    scheduler = create_scheduler(optimizer, args, max_steps)  # not prepared: one step per optimiser step
    checkpointing.require_sharding(accelerator)
    # weights are saved and loaded under their own names, for `from_pretrained`, and not under those of what wraps the model
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    state = TrainerState()
    if checkpoint is not None:
        checkpointing.check_writer(checkpoint, is_trainer=False)
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

    def log(metrics: dict[str, float]):
        state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
        accelerator.log(metrics, step=state.global_step)
        progress.write(state.log_history[-1])

    def save_pretrained(folder: Path):
        """Save the model, the image processor and the log."""
        state_dict = accelerator.get_state_dict(model)
        # names of a compiled model begin so
        state_dict = {name.removeprefix("_orig_mod."): value for name, value in state_dict.items()}
        if accelerator.is_main_process:
            bare_model.save_pretrained(folder, state_dict=state_dict)
            job.image_processor.save_pretrained(folder)
            state.save_to_json(folder / "trainer_state.json")

    def save():
        monitor.check(bare_model, state.global_step)
        folder = output_dir / f"checkpoint-{state.global_step}"
        try:
            checkpointing.start_checkpoint(folder, accelerator)
            accelerator.save_state(folder)
            save_pretrained(folder)
            if accelerator.is_main_process:
                torch.save(scheduler.state_dict(), folder / "scheduler.pt")
            checkpointing.finish_checkpoint(folder, accelerator, args.save_total_limit)
        except (OSError, RuntimeError) as error:
            raise checkpointing.writing_failed(output_dir, state.global_step, error) from error

    progress = Progress(bare_model, args, state.global_step, max_steps)
    with checkpointing.StopRequest() as stop:
        monitor = checkpointing.RunMonitor(args, accelerator, stop)
        objective = Objective(bare_model, accelerator, max_steps, monitor)
        interval, loss, num_steps, is_stopped = loop.Interval(accelerator), 0.0, 0, False
        while state.global_step < max_steps and not is_stopped:
            epoch, steps_done = divmod(state.global_step, steps_per_epoch)
            batches_done = steps_done * accumulation
            loop.begin_epoch(order, epoch, batches_done)
            batches = iter(skip_first_batches(loader, batches_done) if batches_done else loader)
            for step in range(steps_done, steps_per_epoch):
                model.train()
                learning_rate = max(scheduler.get_last_lr())
                step_batches = [next(batches) for _ in range(min(accumulation, len(loader) - step * accumulation))]
                for batch in step_batches:
                    interval.add(batch)
                # the first batch draws from it, too
                loop.seed_step(args.seed, state.global_step, accelerator.process_index)
                step_batches = objective.begin_step(step_batches, state.global_step)
                loss += train_step(model, step_batches, optimizer, objective, args.max_grad_norm)
                if not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                state.global_step += 1
                state.epoch = state.global_step / steps_per_epoch
                num_steps += 1
                progress.end_step(state.global_step)
                is_stopped = monitor.end_step(state.global_step)
                if is_due(args.logging_strategy, state.logging_steps):
                    metrics = {"loss": float(accelerator.reduce(loss)) / num_steps, "learning_rate": learning_rate}
                    metrics |= {**objective.log(num_steps), **interval.end()}
                    log(metrics)
                    loss, num_steps = 0.0, 0
                if not is_stopped and is_due(args.eval_strategy, state.eval_steps):
                    with interval.paused():
                        log(evaluate(model, eval_loader, accelerator, knn))
                is_last = is_stopped or state.global_step == max_steps
                is_save_due = is_due(args.save_strategy, state.save_steps)
                if is_stopped or is_save_due or (is_last and args.save_strategy != "no"):
                    save()
                if is_last:
                    break
    if is_stopped:
        loop.leave(args, stop)

    metrics = {} if eval_loader is None else evaluate(model, eval_loader, accelerator, knn)
    if accelerator.is_main_process:
        Record(output_dir).claim(*checkpointing.RESULTS)
    save_pretrained(output_dir)
    accelerator.end_training()
    return [*state.log_history, {**metrics, "epoch": state.epoch, "step": state.global_step}], metrics


def main():
    arguments = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        base="pretrain",
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
        description=__doc__,
    )
    args = arguments[-1]
    for name in TRAINER_ONLY:
        if getattr(args, name, None):
            raise ValueError(f"`--{name}` is the Trainer's: use run_pretrain.py (to publish, examples/publish.py).")
    if args.save_strategy == "best":
        raise ValueError("`--save_strategy` best is the Trainer's: use run_pretrain.py.")
    job = prepare_pretraining(arguments)
    knn = KnnEvaluation(job) if args.knn_eval else None
    with checkpointing.open_run(args, job.describe()) as checkpoint:
        log_history, metrics = train(job, checkpoint, knn)
        if args.process_index == 0:
            write_report(job, log_history, metrics)


if __name__ == "__main__":
    run(main)
