# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints to the Hub while a run goes on."""

import os
import shutil
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from .arguments import RecipeArguments
from .checkpointing import find_checkpoint


logger = logging.get_logger(__name__)

# of a checkpoint, what `from_pretrained` needs
_MODEL_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "*.py",
]


def _link(source: str, target: str):
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


class CheckpointUploads:
    """
    What `--hub_strategy` sends when a checkpoint is complete: its model (`every_save`), and all of it as `last-checkpoint`
    (`checkpoint`) or under its own name (`all_checkpoints`). In the background, and from a copy, since checkpoints are deleted
    as the run goes on. A checkpoint that is ready before the one before it has gone up is passed over, unless
    `--hub_always_push`.

    Args:
        repo_id: Of the repository, which exists.
    """

    def __init__(self, args: RecipeArguments, repo_id: str):
        self.args, self.repo_id, self.api = args, repo_id, HfApi()
        self.strategy = HubStrategy(args.hub_strategy)
        self.copy = Path(args.output_dir) / "_uploading"  # underscore: not to be published with the folder
        self._jobs: list[Future] = []
        self._failed = False

    def start(self, checkpoint: Path):
        """Begin to send a complete checkpoint."""
        if self.strategy == HubStrategy.END:
            return
        if not all(job.done() for job in self._jobs):
            if not self.args.hub_always_push:
                return
            self._wait()
        self._look()
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(checkpoint, self.copy, copy_function=_link)
        common = {"repo_id": self.repo_id, "revision": self.args.hub_revision, "run_as_future": True}
        message = f"Training in progress, step {checkpoint.name.split('-')[-1]}"
        self._jobs = [
            self.api.upload_folder(
                folder_path=self.copy, allow_patterns=_MODEL_FILES, commit_message=message, **common
            )
        ]
        if self.strategy != HubStrategy.EVERY_SAVE:
            name = "last-checkpoint" if self.strategy == HubStrategy.CHECKPOINT else checkpoint.name
            self._jobs.append(
                self.api.upload_folder(
                    folder_path=self.copy,
                    path_in_repo=name,
                    delete_patterns="*",
                    commit_message=f"{message}, checkpoint",
                    **common,
                )
            )

    def finish(self, try_again: bool):
        """Wait for what is on its way; after a failure perhaps send the newest checkpoint again. A second one is only said."""
        self._wait()
        self._look()
        if self._failed and try_again and self.strategy != HubStrategy.EVERY_SAVE:
            if checkpoint := find_checkpoint(self.args.output_dir):
                self.start(checkpoint)
            self._wait()
            self._look()
        shutil.rmtree(self.copy, ignore_errors=True)

    def _wait(self):
        for job in self._jobs:
            job.exception()  # which waits

    def _look(self):
        """Say what has failed of the jobs, which are done."""
        errors = [job.exception() for job in self._jobs if job.exception() is not None]
        if errors:
            self._failed = True
            logger.warning(
                f"A checkpoint could not be sent to {self.repo_id}: {errors[0]} The run goes on; the end tries again."
            )
        elif self._jobs:
            self._failed = False
        self._jobs = []
