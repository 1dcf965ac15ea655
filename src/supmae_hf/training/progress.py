# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What a run prints while it trains."""

import time
from collections.abc import Mapping
from datetime import timedelta

import psutil
import torch
from transformers import TrainingArguments

from .cpu import compilation_advice
from .report import metrics_of


_FIRST_STEPS = 10  # after which a run says how long it will take
_TIMES = ("runtime", "samples_per_second", "steps_per_second")  # of an evaluation


def _line(metrics: Mapping[str, float], model: torch.nn.Module) -> str:
    """Metrics by their titles, rounded."""
    known = metrics_of(model)
    parts = [
        known[name].format(value) if name in known else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, (int, float))
    ]
    return ", ".join(parts)


class Progress:
    """
    Prints how long a run will take, and a line for each entry of its log: the same on a terminal and in a file.

    Args:
        model: The model that is trained, whose heads name the metrics.
        args: Arguments of the run, of which the first process prints.
        first_step, max_steps: Steps that were done before, and those of the whole run.
    """

    def __init__(self, model: torch.nn.Module, args: TrainingArguments, first_step: int, max_steps: int):
        self.model, self.args, self.max_steps = model, args, max_steps
        self.first_step = self.step = first_step
        self._start = self._first = time.perf_counter()
        self._last = None

    def _say(self, text: str):
        # a run evaluates at its end what it may have evaluated just before
        if self.args.process_index == 0 and text != self._last:
            print(text, flush=True)
        self._last = text

    def _left(self, seconds: float, steps: int) -> timedelta:
        return timedelta(seconds=round(seconds / steps * (self.max_steps - self.step)))

    def end_step(self, step: int):
        """Count a step. After the first ones, say how long all of them will take."""
        self.step, done = step, step - self.first_step
        if done == 1:
            self._first = time.perf_counter()  # a first step compiles, and waits for workers
        elif done == _FIRST_STEPS + 1 and step < self.max_steps:
            left = self._left(time.perf_counter() - self._first, _FIRST_STEPS)
            if torch.cuda.is_available():
                memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the accelerator's"
            else:
                memory = f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB of"
            self._say(
                f"{self.max_steps - step} steps to go: {left} (h:mm:ss) by the first ones, without evaluations; {memory} memory."
            )
            advice = compilation_advice(self.args)
            if advice is not None and left > timedelta(hours=1):
                self._say(advice)

    def write(self, entry: Mapping[str, float]):
        """Print an entry of the log: metrics of training steps, or of held-out images (`eval_` and the name)."""
        held_out = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
        where = f"epoch {entry.get('epoch', 0):.4g}, step {self.step} of {self.max_steps}"
        if held_out:
            line = _line({name: value for name, value in held_out.items() if name not in _TIMES}, self.model)
            self._say(f"{where}, held-out images: {line}")
        elif "loss" in entry:
            metrics = {name: value for name, value in entry.items() if name not in ("epoch", "step", "grad_norm")}
            left = self._left(time.perf_counter() - self._start, max(self.step - self.first_step, 1))
            self._say(f"{where}: {_line(metrics, self.model)}" + (f", {left} left" if left else ""))
