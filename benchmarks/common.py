# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: alternating measurements, tables, a description of the machine."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas
import torch


RESULTS = Path(__file__).parent / "results"


def synchronize():
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def alternate(runs: dict[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each run in each round: A B C A B C ..., so that a slow phase of the machine meets all of them."""
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast, by the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def machine() -> dict[str, str]:
    if torch.accelerator.is_available():
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
        )
    else:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        device = f"{names[0].split(':')[1].strip()}, {torch.get_num_threads()} threads"
    packages = ("torch", "torchvision", "transformers", "timm", "Pillow")
    return {
        "device": device,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def report(name: str, rows: list[dict]):
    """Print the rows as a Markdown table and write them, with the machine, to results/NAME.json."""
    print("\n" + pandas.DataFrame(rows).to_markdown(index=False, floatfmt=".2f", missingval=""))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    print(f"\n{machine()}\n{path}", flush=True)
