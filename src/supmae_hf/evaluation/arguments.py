# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments that the evaluation scripts share."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from ..training.arguments import as_flags, read_recipe
from .tables import Journal


@dataclass
class EvaluationArguments:
    """Which models to evaluate, how, and where to."""

    models: list[str] = field(metadata={"help": "Checkpoints, in folders or on the Hub: one row of the table each."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the table and the picture; default: outputs/ and the script's name."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Measure again what `--output_dir` has results for."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images at a time, per device."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that load images, per device."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True
        self.state = PartialState(cpu=self.use_cpu)
        if self.per_device_eval_batch_size < 1:
            raise ValueError(
                f"`--per_device_eval_batch_size` must be 1 or more, got {self.per_device_eval_batch_size}."
            )
        repeated = {name for name in self.models if self.models.count(name) > 1}
        if repeated:
            raise ValueError(f"`--models` names {', '.join(sorted(repeated))} more than once.")

    def prepare_output_dir(self) -> tuple[Path, Journal]:
        """
        The folder for results, and those of its `results.jsonl`.

        Raises:
            ValueError: if it holds files that an evaluation has not written.
        """
        folder = Path(self.output_dir or Path("outputs", Path(sys.argv[0]).stem))
        foreign = [path.name for path in folder.glob("*") if not path.name.startswith((".", "results"))]
        if foreign:
            raise ValueError(
                f"{folder} holds other files ({', '.join(sorted(foreign)[:3])}): name a folder for the results with "
                "`--output_dir`."
            )
        with self.state.main_process_first():
            if self.overwrite_output_dir and self.state.is_main_process:
                for path in folder.glob("results*"):
                    path.unlink()
            return folder, Journal(folder / "results.jsonl", is_writer=self.state.is_main_process)


def parse_evaluation_arguments(*argument_classes, description: str, argv: list[str] | None = None):
    """Parse `[RECIPE.yaml] [--flag value ...]` into one dataclass each; contradictions end the program with one line."""
    parser = HfArgumentParser(argument_classes, description=description)
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0].endswith((".yaml", ".yml")):
            argv = as_flags(read_recipe(argv[0])) + argv[1:]
        return parser.parse_args_into_dataclasses(args=argv)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "not used by the HfArgumentParser" in str(error):
            parser.error("unknown arguments: " + str(error).split(":", 1)[1].strip())
        parser.error(str(error))
