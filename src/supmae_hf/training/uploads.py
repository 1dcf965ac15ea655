# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints and results to the Hub, with time limits, which its client does not have."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..records import Record, find_checkpoint
from .arguments import RecipeArguments


logger = logging.get_logger(__name__)

_COPY = "_uploading"  # underscore: not to be published with the folder
# of a checkpoint, what `from_pretrained` needs
_MODEL_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "*.py",
)
_HELD_OUT = ("reconstructions.png", "widget/*")  # which show held-out images
# `hf`, which ends with the process that started it, however that ends
_UPLOAD = """
import os, sys, threading, time
parent = int(sys.argv.pop(1))
def watch():
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
from huggingface_hub.cli.hf import main
main()
"""
START_SECONDS = 60  # for the Hub's first answer
STOP_SECONDS = 20  # for an upload that is on its way when the run is told to stop


def within(seconds: float, call: Callable, *args, **kwargs):
    """
    The result of a call to the Hub.

    Raises:
        TimeoutError: if it takes longer; the call is left to itself.
    """
    future = Future()

    def run():
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _link(source: str, target: str):
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


class Uploads:
    """
    Sends what `--hub_strategy` asks for: when a checkpoint is complete its model (`every_save`), and all of it as
    `last-checkpoint` (`checkpoint`) or under its own name (`all_checkpoints`); when the run is over its results. `hf upload`
    does it in a process of its own, which can be ended, and from a copy, since checkpoints are deleted as the run goes on. A
    checkpoint that is ready before the one before it has gone up is passed over, unless `--hub_always_push`.

    Args:
        args: Arguments of the run.
        repo_id: The repository, which exists.
    """

    def __init__(self, args: RecipeArguments, repo_id: str):
        self.args, self.repo_id = args, repo_id
        self.strategy = HubStrategy(args.hub_strategy)
        self.folder = Path(args.output_dir)
        self.copy = self.folder / _COPY
        self._waiting = []  # folders and options of `hf upload`
        self._process, self._complaints = None, None
        self._error, self._has_hung = None, False  # of the last upload

    def start(self, checkpoint: Path):
        """Begin to send a complete checkpoint, or have it sent after those that are waiting."""
        self._advance()
        if self.strategy == HubStrategy.END or (self._process is not None and not self.args.hub_always_push):
            return
        Record(self.folder).claim(_COPY)
        copy = self.copy / checkpoint.name
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for pattern in _MODEL_FILES:
            for file in checkpoint.glob(pattern):
                _link(file, copy / file.name)
        options = ["--commit-message", f"Training in progress, step {checkpoint.name.split('-')[-1]}"]
        if self.strategy != HubStrategy.EVERY_SAVE:
            name = "last-checkpoint" if self.strategy == HubStrategy.CHECKPOINT else checkpoint.name
            shutil.copytree(checkpoint, copy / name, copy_function=_link)
            options += ["--delete", f"{name}/*"]
        self._waiting.append((copy, options))
        self._advance()

    def finish(self, is_over: bool):
        """
        Wait for what is on its way and, if the run is over, send its results; to be called when all else is done.

        Raises:
            OSError: if the results could not be sent; the message has the command that sends them.
        """
        self._wait(self.args.hub_timeout if is_over else STOP_SECONDS)
        if is_over and self._error and not self._has_hung and self.strategy != HubStrategy.EVERY_SAVE:
            if (newest := find_checkpoint(self.folder)) is not None:
                self.start(newest)
            self._wait(self.args.hub_timeout)
        shutil.rmtree(self.copy, ignore_errors=True)
        if is_over:
            self._send_results()

    def _send_results(self):
        excluded = ["_*", "checkpoint-*", *([] if self.args.widget_images else _HELD_OUT)]
        options = [word for pattern in excluded for word in ("--exclude", pattern)]
        command = self._words(self.folder, *options)
        if not self._has_hung:
            self._waiting.append((self.folder, [*options, "--commit-message", "End of training"]))
            self._wait(self.args.hub_timeout)
        if self._error:
            raise OSError(
                f"The run is over and saved in {self.folder}, but not published: {self._error} Give the same command again, or "
                f"publish the folder: {shlex.join(command)}"
            )

    def _words(self, folder: Path, *options: str) -> list[str]:
        revision = ["--revision", self.args.hub_revision] if self.args.hub_revision else []
        return ["hf", "upload", self.repo_id, str(folder), ".", *revision, *options]

    def _advance(self):
        """Begin the next upload if none is on its way."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None and self._waiting:
            folder, options = self._waiting.pop(0)
            self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe would have to be read)
            command = [sys.executable, "-c", _UPLOAD, str(os.getpid()), *self._words(folder, *options)[1:]]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._complaints)

    def _wait(self, seconds: float):
        """Wait for all uploads, which are ended after so many seconds."""
        end = time.monotonic() + seconds
        self._advance()
        while self._process is not None:
            try:
                self._process.wait(max(end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                self._waiting = []
                self._end(f"the Hub did not answer in {seconds:g} seconds.")
            self._advance()

    def _end(self, reason: str | None = None):
        """Say what became of an upload if it failed."""
        self._error, self._has_hung = reason, reason is not None
        if reason is None and self._process.returncode != 0:
            self._complaints.seek(0)
            text = self._complaints.read().rpartition("Traceback (most recent call last):")[2]
            lines = [line for line in text.splitlines() if line.strip() and not line.startswith((" ", "Hint"))]
            self._error = " ".join(lines) or "the upload was ended."
        if self._error:
            logger.warning(f"What was on its way to {self.repo_id} did not get there: {self._error}")
        self._process = None
