# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are complete or absent, the newest one that can be trusted, and leaving when asked to."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub.utils.sha import sha_fileobj
from transformers.utils import logging

from ..checkpoints.weights import find_not_finite
from .arguments import RecipeArguments
from .runs import RUN_FILE, differences, write_run


logger = logging.get_logger(__name__)

# lists a checkpoint's files with their SHA-256; written last, so that a checkpoint without one is not complete
MANIFEST = "manifest.json"
# what a run writes into its output folder beside checkpoints
_RESULTS = (
    "README.md",
    "curves.png",
    "reconstructions.png",
    "widget",
    "runs",
    RUN_FILE,
    "all_results.json",
    "eval_results.json",
)

# the exit status of a process that ends on SIGTERM
TERMINATED = 128 + signal.SIGTERM


def _checksums(checkpoint: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and MANIFEST not in path.name):
        with path.open("rb") as file:
            checksums[path.relative_to(checkpoint).as_posix()] = sha_fileobj(file).hex()
    return checksums


def _write_to_disk(folder: Path):
    """Make the operating system write what it holds back, so that not even a power cut leaves half a file."""
    for path in (*folder.rglob("*"), folder):
        with contextlib.suppress(OSError):  # not every system lets folders be opened
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def mark_complete(checkpoint: str | Path, accelerator: Accelerator):
    """Every process calls this when it has written its part: the checkpoint counts from then on."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoint = Path(checkpoint)
        manifest = checkpoint / f"{MANIFEST}.new"
        manifest.write_text(json.dumps(_checksums(checkpoint), indent=1))
        _write_to_disk(checkpoint)
        manifest.rename(checkpoint / MANIFEST)
    accelerator.wait_for_everyone()


def writing_failed(output_dir: str | Path, step: int, error: Exception) -> OSError:
    """The error of a checkpoint that cannot be written."""
    kept = [path for path in list_checkpoints(output_dir) if (path / MANIFEST).exists()]
    return OSError(
        f"The checkpoint of step {step} cannot be written to {output_dir}: {error}. "
        + (f"The last one kept is {kept[-1].name}. " if kept else "There is none before it. ")
        + "Make room or mend the folder, then start the same command again."
    )


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, oldest first."""
    matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(output_dir).glob("checkpoint-*"))
    return [Path(output_dir) / f"checkpoint-{step}" for step in sorted(int(match[1]) for match in matches if match)]


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """
    The newest checkpoint that is intact. Newer ones are put out of the way, and said: those whose writing or removal was
    interrupted are deleted, damaged ones renamed (the Hub client passes over names that begin with an underscore).
    """
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            expected, found = json.loads((checkpoint / MANIFEST).read_text()), _checksums(checkpoint)
        except (OSError, ValueError):
            expected, found = None, {}
        if expected is None or expected.keys() - found.keys():
            logger.warning(f"{checkpoint} is incomplete: deleted.")
            shutil.rmtree(checkpoint, ignore_errors=True)
            continue
        damaged = [name for name in expected if expected[name] != found[name]]
        if not damaged:
            return checkpoint
        aside = checkpoint.with_name(f"_damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        logger.warning(f"{checkpoint} is not used, because {damaged[0]} is damaged: moved to {aside.name}.")
    return None


def check_writer(checkpoint: str | Path, is_trainer: bool):
    """
    Raise a `ValueError` if a checkpoint to go on from is not the Trainer's, or not the Accelerate loop's: neither finds
    the other's optimiser state, and the Trainer would go on without.
    """
    if (Path(checkpoint) / "random_states_0.pkl").exists() == is_trainer:
        writer = "run_pretrain_no_trainer.py" if is_trainer else "the Trainer (run_pretrain.py)"
        raise ValueError(
            f"{checkpoint} was written by {writer}: go on with that script, or choose another `--output_dir`."
        )


def prepare_output_dir(args: RecipeArguments, run: dict) -> str | None:
    """
    Make sure that a run may write to `args.output_dir`, create it, and write down there what the run is.

    Args:
        run: From [`describe_run`].

    Returns:
        The checkpoint to go on from, if the folder holds the same run, unfinished; the same in every process.

    Raises:
        FileExistsError: if the folder holds another run, something else, or nothing but damaged checkpoints.
        FileNotFoundError: if there is no checkpoint as `args.resume_from_checkpoint`.
    """
    answer = [None, None]
    if args.process_index == 0:
        try:
            answer[0] = _checkpoint_to_go_on_from(args, run)
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            write_run(args.output_dir, run)
        except OSError as error:
            answer[1] = error
    checkpoint, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    return checkpoint


def _checkpoint_to_go_on_from(args: RecipeArguments, run: dict) -> str | None:
    output_dir = Path(args.output_dir)
    given = args.resume_from_checkpoint
    if given and not Path(given).is_dir():
        raise FileNotFoundError(f"There is no checkpoint '{given}': check `--resume_from_checkpoint`.")
    ways_out = "pass `--overwrite_output_dir True` to start anew there, or choose another `--output_dir`."
    if args.overwrite_output_dir and not given:
        for old in (*list_checkpoints(output_dir), *(output_dir / name for name in _RESULTS)):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        return None
    if given and Path(given).resolve() not in [path.resolve() for path in list_checkpoints(output_dir)]:
        return given
    if not output_dir.is_dir():
        return None
    checkpoint = given or find_checkpoint(output_dir)
    if checkpoint is not None:
        different = differences(output_dir, run)
        if different is None:
            raise FileExistsError(
                f"{output_dir} holds checkpoints, but not what they were trained with ({RUN_FILE}): {ways_out}"
            )
        if different:
            lines = "\n".join(f"  {line}" for line in different)
            raise FileExistsError(
                f"{output_dir} holds another run. What differs:\n{lines}\nTo go on with it, give its command again; else "
                + ways_out
            )
        logger.warning(f"Going on from {checkpoint}; pass `--overwrite_output_dir True` to start anew instead.")
        return str(checkpoint)
    if differences(output_dir, run) == []:  # the same run, which saves no checkpoints
        return None
    # what a run leaves that was stopped before its first checkpoint
    if {path.name for path in output_dir.iterdir()} - {"runs", RUN_FILE, f"{RUN_FILE}.new"}:
        raise FileExistsError(f"{output_dir} is not empty and holds no checkpoint to go on from: {ways_out}")
    return None


class StopRequest:
    """
    Whether SIGTERM has asked the run to end, as a context manager. SIGTERM may reach the processes at different
    steps, or only one of them: [`RunMonitor`] makes them agree.
    """

    def __init__(self):
        self.received = False
        self._previous = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other may have a say
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_):
        self.received = True


def ignore_stop_request(worker_id: int = 0):
    """
    For data-loading workers, which SIGTERM would kill before the run has saved: they obey only that of their parent,
    which ends them. (On macOS, where senders cannot be told apart, they obey any.)
    """
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
        To be called by every process after every optimiser step.

        Returns:
            Whether the run is to save and stop, the same in every process.

        Raises:
            FloatingPointError: if a loss is not finite; names the step and the losses.
        """
        previous, self._pending = self._pending, (step, self._exchange())
        if self.accelerator.num_processes == 1:
            stop = self.stop.received  # nobody to agree with, so no delay
        else:
            stop = previous is not None and bool(previous[1]["stop"])
        if previous is not None:
            self._check(*previous)
        return stop

    def check(self, model: torch.nn.Module, step: int):
        """To be called before a checkpoint is written: raises if a loss or a weight is not finite."""
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
            values["stop"] = torch.tensor(float(self.stop.received), device=self.accelerator.device)
            values = dict(zip(values, self.accelerator.reduce(torch.stack([*values.values()]), reduction="mean")))
        return values

    def _check(self, step: int, values: dict[str, torch.Tensor]):
        losses = {name: float(value) for name, value in values.items() if name != "stop"}
        if not all(map(math.isfinite, losses.values())):
            self._fail(step, "the loss", ", ".join(f"{name} {value:g}" for name, value in losses.items()))

    def _fail(self, step: int, what: str, values: str = ""):
        kept = [path for path in list_checkpoints(self.args.output_dir) if (path / MANIFEST).exists()]
        raise FloatingPointError(
            f"Step {step}: {what} is not finite{f' ({values})' if values else ''}. "
            + (f"The last good checkpoint is {kept[-1]}. " if kept else "There is no checkpoint yet. ")
            + "Try a lower `--base_learning_rate`, more `--warmup_epochs`, `--max_grad_norm 1`, or `--bf16` instead of "
            "`--fp16`; if the first steps fail, look at the pixels of your images."
        )
