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
from safetensors import SafetensorError
from transformers.utils import logging

from .arguments import RecipeArguments


logger = logging.get_logger(__name__)

# lists a checkpoint's files with their SHA-256; written last
MANIFEST = "manifest.json"
# half-written and half-deleted checkpoints are in this sub-folder of the output folder
_UNFINISHED = ".unfinished"

# the exit status of a process that ends on SIGTERM
TERMINATED = 128 + signal.SIGTERM


def _checksums(checkpoint: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
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


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
        found = _checksums(checkpoint)
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            return f"{name} is {'damaged' if name in found else 'missing'}"
    return None


def list_checkpoints(output_dir: str | Path, last_step: float = math.inf) -> list[Path]:
    """The checkpoints in a folder up to a step, oldest first."""
    matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(output_dir).glob("checkpoint-*"))
    steps = sorted(int(match[1]) for match in matches if match)
    return [Path(output_dir) / f"checkpoint-{step}" for step in steps if step <= last_step]


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that is intact; says which ones are not."""
    for checkpoint in reversed(list_checkpoints(output_dir)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning(f"{checkpoint} is not used: {damage}.")
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


def _remove(checkpoint: Path):
    doomed = checkpoint.parent / _UNFINISHED / f"old-{checkpoint.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    doomed.parent.mkdir(exist_ok=True)
    checkpoint.rename(doomed)  # in one go, so that nobody meets half a checkpoint
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def new_checkpoint(args: RecipeArguments, accelerator: Accelerator, step: int, keep: str | None = None):
    """
    Gives an empty folder to write into, the same to all processes, which becomes `checkpoint-{step}` of
    `args.output_dir` when the block ends without an error. Then older checkpoints beyond `args.save_total_limit` go,
    but for `keep`.

    Raises:
        OSError: if the checkpoint cannot be written; those before it stay.
    """
    output_dir = Path(args.output_dir)
    unfinished, checkpoint = output_dir / _UNFINISHED / f"checkpoint-{step}", output_dir / f"checkpoint-{step}"
    try:
        if not output_dir.is_dir():
            raise FileNotFoundError("the output folder has disappeared")
        if args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        yield unfinished
        accelerator.wait_for_everyone()
        if args.should_save:
            (unfinished / MANIFEST).write_text(json.dumps(_checksums(unfinished), indent=1))
            _write_to_disk(unfinished)
            if checkpoint.exists():  # damaged
                _remove(checkpoint)
            unfinished.rename(checkpoint)
    except (OSError, RuntimeError, SafetensorError) as error:
        if args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        kept = [path.name for path in list_checkpoints(output_dir)]
        raise OSError(
            f"The checkpoint of step {step} cannot be written to {output_dir}: {error}. "
            + (f"The last one kept is {kept[-1]}. " if kept else "There is none before it. ")
            + "Make room or mend the folder, then start the same command again."
        ) from error
    if args.should_save:
        if args.save_total_limit:
            # a later one is damaged, as this run would have begun with it: it does not count
            for old in list_checkpoints(output_dir, step)[: -args.save_total_limit]:
                if keep is None or old != Path(keep):
                    _remove(old)
        shutil.rmtree(unfinished.parent, ignore_errors=True)
    accelerator.wait_for_everyone()


def prepare_output_dir(args: RecipeArguments) -> str | None:
    """
    Make sure that a run may write to `args.output_dir`, and create it.

    Returns:
        The checkpoint to go on from, if the folder holds an unfinished run; the same in every process.

    Raises:
        FileExistsError: if the folder holds something else, or nothing but damaged checkpoints.
        FileNotFoundError: if there is no checkpoint as `args.resume_from_checkpoint`.
    """
    answer = [None, None]
    if args.process_index == 0:
        try:
            answer[0] = _checkpoint_to_go_on_from(args)
            shutil.rmtree(Path(args.output_dir) / _UNFINISHED, ignore_errors=True)  # of a run that was killed
        except OSError as error:
            answer[1] = error
    checkpoint, error = broadcast_object_list(answer)
    if error is not None:
        raise error
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    return checkpoint


def _checkpoint_to_go_on_from(args: RecipeArguments) -> str | None:
    output_dir = Path(args.output_dir)
    if args.resume_from_checkpoint:
        if not Path(args.resume_from_checkpoint).is_dir():
            raise FileNotFoundError(
                f"There is no checkpoint '{args.resume_from_checkpoint}': check `--resume_from_checkpoint`."
            )
        return args.resume_from_checkpoint
    if not output_dir.is_dir():
        return None
    if args.overwrite_output_dir:
        for old in list_checkpoints(output_dir):
            shutil.rmtree(old)
        return None
    checkpoint = find_checkpoint(output_dir)
    if checkpoint is not None:
        logger.warning(f"Going on from {checkpoint}; pass `--overwrite_output_dir True` to start anew instead.")
        return str(checkpoint)
    # a run that was stopped before its first checkpoint leaves its log and perhaps half a checkpoint
    if {path.name for path in output_dir.iterdir()} - {_UNFINISHED, "runs"}:
        raise FileExistsError(
            f"{output_dir} is not empty and holds no checkpoint to go on from: choose another `--output_dir`, or pass "
            "`--overwrite_output_dir True` to start anew there."
        )
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
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.to_local() if hasattr(weight, "to_local") else weight).all():
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
        kept = list_checkpoints(self.args.output_dir)
        raise FloatingPointError(
            f"Step {step}: {what} is not finite{f' ({values})' if values else ''}. "
            + (f"The last good checkpoint is {kept[-1]}. " if kept else "There is no checkpoint yet. ")
            + "Try a lower `--base_learning_rate`, more `--warmup_epochs`, `--max_grad_norm 1`, or `--bf16` instead of "
            "`--fp16`; if the first steps fail, look at the pixels of your images."
        )
