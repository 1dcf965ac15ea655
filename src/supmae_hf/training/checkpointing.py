# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are complete or absent, the newest one that can be trusted, and leaving when asked to."""

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers.utils import logging

from ..loading import find_not_finite
from ..records import (
    Record,
    begin_checkpoint,
    complete_checkpoint,
    find_checkpoint,
    find_damage,
    is_complete,
    list_checkpoints,
    on_main_process,
    output_folder,
    rotate_checkpoints,
)
from .arguments import RecipeArguments


logger = logging.get_logger(__name__)

# What a run writes into its output folder when it is over. TensorBoard's files come first, and checkpoints have manifests.
RESULTS = (
    *("README.md", "curves.png", "reconstructions.png", "masks.png", "widget/*.png"),
    *("config.json", "*_supmae.py", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("training_args.bin", "trainer_state.json", "all_results.json", "eval_results.json", "metrics.json"),
)
_LOGS = ("runs/**/events.out.tfevents.*", "runs/**/hparams.yml")


def start_checkpoint(checkpoint: str | Path, accelerator: Accelerator):
    """Every process calls this before it writes its part of a checkpoint."""
    if accelerator.is_main_process:
        begin_checkpoint(Path(checkpoint))
    accelerator.wait_for_everyone()


def finish_checkpoint(checkpoint: str | Path, accelerator: Accelerator, limit: int | None, best: str | None = None):
    """Every process calls this when it has written its part: the checkpoint counts, and older ones beyond `limit` go."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        complete_checkpoint(Path(checkpoint))
        rotate_checkpoints(Path(checkpoint).parent, limit, best)
    accelerator.wait_for_everyone()


def _last_checkpoint(output_dir: str | Path) -> Path | None:
    return next(filter(is_complete, reversed(list_checkpoints(output_dir))), None)


def writing_failed(output_dir: str | Path, step: int, error: Exception) -> OSError:
    """The error of a checkpoint that cannot be written."""
    kept = _last_checkpoint(output_dir)
    return OSError(
        f"The checkpoint of step {step} cannot be written to {output_dir}: {error}. "
        + (f"The last one kept is {kept.name}. " if kept else "There is none before it. ")
        + "Make room or mend the folder, then start the same command again."
    )


def check_writer(checkpoint: str | Path, is_trainer: bool):
    """
    Raise a `ValueError` if a checkpoint to go on from is not the Trainer's, or not the Accelerate loop's (neither finds the
    other's optimiser state, and the Trainer would go on without), or if it holds what cannot be loaded safely.
    """
    if (Path(checkpoint) / "random_states_0.pkl").exists() == is_trainer:
        writer = "run_pretrain_no_trainer.py" if is_trainer else "the Trainer (run_pretrain.py)"
        raise ValueError(
            f"{checkpoint} was written by {writer}: go on with that script, or choose another `--output_dir`."
        )
    if (Path(checkpoint) / "custom_checkpoint_0.pkl").exists():
        raise ValueError(
            f"{checkpoint} holds custom_checkpoint_0.pkl, which could run code and is not loaded: start from the weights alone "
            "(`--model_name_or_path`)."
        )


def require_sharding(accelerator: Accelerator):
    """Raise a `ValueError` if FSDP is asked for, but accelerate would give every process a whole copy of the model."""
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP needs several accelerators, and this run is {accelerator.distributed_type.value}: launch it with "
            "examples/configs/accelerate/ddp.yaml or cpu_2_processes.yaml."
        )


@contextlib.contextmanager
def open_run(args: RecipeArguments, run: dict) -> Iterator[str | None]:
    """
    Make `args.output_dir` the folder of a run until the block ends: see [`output_folder`], also for what is raised.

    Args:
        run: The result of [`~Job.describe`].

    Yields:
        The checkpoint to go on from, the same in every process: the newest one in the folder, or the one of
        `--resume_from_checkpoint` if that is newer; `None` to begin.

    Raises:
        FileNotFoundError: if there is no checkpoint as `--resume_from_checkpoint`.
        ValueError: if it is damaged, or of another run.
    """
    given = args.resume_from_checkpoint
    if given:
        on_main_process(_check_given, given, run)
    with output_folder(args.output_dir, run, args.overwrite_output_dir, given) as record:
        if args.process_index == 0:
            record.claim(*_LOGS)
        yield on_main_process(_choose_checkpoint, Path(args.output_dir), given)


def _check_given(given: str, run: dict):
    if not Path(given).is_dir():
        raise FileNotFoundError(f"There is no checkpoint '{given}': check `--resume_from_checkpoint`.")
    if damage := find_damage(Path(given)):
        raise ValueError(f"`--resume_from_checkpoint` {given} cannot be used, because {damage}.")
    if different := Record(given).differences(run):
        raise ValueError(
            f"`--resume_from_checkpoint` {given} is of another run ({'; '.join(different)}). To start from its weights alone, "
            "name it with `--model_name_or_path`."
        )


def _choose_checkpoint(output_dir: Path, given: str | None) -> str | None:
    newest = find_checkpoint(output_dir)
    if given and (newest is None or _step(Path(given)) > _step(newest)):
        return given
    if newest is None:
        return None
    instead = f" in the place of {given}, which is older" if given and not newest.samefile(given) else ""
    logger.warning(f"Going on from {newest}{instead}; pass `--overwrite_output_dir True` to start anew instead.")
    return str(newest)


def _step(checkpoint: Path) -> int:
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]


class StopRequest:
    """
    A context manager that notes a signal to end the run, SIGTERM or SIGINT (Ctrl-C; a second one ends it at once). Signals may
    reach the processes at different steps, or only one of them: [`RunMonitor`] makes them agree.

    Attributes:
        received (`signal.Signals`, *optional*): The signal.
    """

    def __init__(self):
        self.received = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other may have a say
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def ignore_stop_request(worker_id: int = 0):
    """
    Make a data-loading worker ignore signals, which would end it before the run has saved, except its parent's SIGTERM. (On
    macOS, where senders cannot be told apart, it obeys any SIGTERM.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that the thread receives it
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class RunMonitor:
    """
    Looks after a run, step by step: stops it if a loss is not finite, or when asked to.

    Losses are looked at one step late, so that accelerators need not wait for them, and before every checkpoint.
    """

    def __init__(self, args: RecipeArguments, accelerator: Accelerator, stop: StopRequest):
        self.args = args
        self.accelerator = accelerator
        self.stop = stop
        self._losses = {}
        self._num_batches = 0
        self._pending = None

    def add(self, **losses: torch.Tensor):
        """Losses of a forward pass."""
        self._num_batches += 1
        for name, loss in losses.items():
            loss = loss.detach().float().mean()  # mean(): DataParallel returns one per device
            self._losses[name] = self._losses[name] + loss if name in self._losses else loss

    def end_step(self, step: int) -> bool:
        """
        Check the step. Every process must call it after every optimiser step.

        Returns:
            Whether the run is to save and stop, the same in every process.

        Raises:
            FloatingPointError: if a loss is not finite; names the step and the losses.
        """
        previous, self._pending = self._pending, (step, self._exchange())
        if self.accelerator.num_processes == 1:
            stop = self.stop.received is not None  # nobody to agree with, so no delay
        else:
            stop = previous is not None and bool(previous[1]["stop"])
        if previous is not None:
            self._check(*previous)
        return stop

    def check(self, model: torch.nn.Module, step: int):
        """Raise a `FloatingPointError`, before a checkpoint is written, if a loss or a weight is not finite."""
        if self._pending is not None:
            self._check(*self._pending)
        name = find_not_finite(model)
        if name is not None:
            self._fail(step, f"the weight {name}")

    def _exchange(self) -> dict[str, torch.Tensor]:
        """The step's losses, averaged over batches and processes, and whether any process was asked to stop."""
        values = {name: loss / self._num_batches for name, loss in self._losses.items()}
        self._losses, self._num_batches = {}, 0
        if self.accelerator.num_processes > 1:
            values["stop"] = torch.tensor(float(self.stop.received is not None), device=self.accelerator.device)
            values = dict(zip(values, self.accelerator.reduce(torch.stack([*values.values()]), reduction="mean")))
        return values

    def _check(self, step: int, values: dict[str, torch.Tensor]):
        losses = {name: float(value) for name, value in values.items() if name != "stop"}
        if not all(map(math.isfinite, losses.values())):
            self._fail(step, "the loss", ", ".join(f"{name} {value:g}" for name, value in losses.items()))

    def _fail(self, step: int, what: str, values: str = ""):
        kept = _last_checkpoint(self.args.output_dir)
        raise FloatingPointError(
            f"Step {step}: {what} is not finite{f' ({values})' if values else ''}. "
            + (f"The last good checkpoint is {kept}. " if kept else "There is no checkpoint yet. ")
            + "Try a lower `--base_learning_rate`, more `--warmup_epochs`, `--max_grad_norm 1`, or `--bf16` instead of "
            "`--fp16`; if the first steps fail, look at the pixels of your images."
        )
