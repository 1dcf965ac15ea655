# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command lines of the scripts: `[RECIPE.yaml] [--flag value ...]`, the values that arguments may have, one-line errors."""

import argparse
import contextlib
import difflib
import functools
import json
import math
import os
import re
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, fields
from enum import Enum
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import psutil
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames
from transformers.utils import logging


logger = logging.get_logger(__name__)


# --- values ---


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`, with or without these two, and `unset`, which stands for no value."""

    low: float = 0
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True
    unset: float | None = None

    def __contains__(self, value) -> bool:
        if value == self.unset:
            return True
        above = value >= self.low if self.includes_low else value > self.low
        below = value <= self.high if self.includes_high else value < self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "a finite number"
        if self.high == math.inf:
            return f"{self.low:g} or more" if self.includes_low else f"above {self.low:g}"
        return f"{'at least' if self.includes_low else 'above'} {self.low:g} and " + (
            f"at most {self.high:g}" if self.includes_high else f"below {self.high:g}"
        )


# Types of arguments whose range is checked.
Count = Annotated[int, Range(1)]
Place = Annotated[int, Range()]
Seed = Annotated[int, Range(high=2**32 - 1)]
Workers = Annotated[int, Range(high=max(32, 4 * (os.cpu_count() or 1)))]
Number = Annotated[float, Range(-math.inf)]
NotNegative = Annotated[float, Range()]
Positive = Annotated[float, Range(includes_low=False)]
Share = Annotated[float, Range(high=1)]
ShareBelow1 = Annotated[float, Range(high=1, includes_high=False)]
ShareAbove0 = Annotated[float, Range(high=1, includes_low=False)]

# Those of Transformers' TrainingArguments.
_INHERITED = {
    Count: "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps eval_accumulation_steps "
    "torch_empty_cache_steps save_total_limit dataloader_prefetch_factor ddp_timeout ddp_bucket_cap_mb",
    Annotated[int, Range(1, unset=-1)]: "max_steps",
    Workers: "dataloader_num_workers",
    Seed: "seed data_seed",
    Positive: "num_train_epochs adam_epsilon logging_steps eval_steps save_steps",  # steps below 1: shares of the run
    NotNegative: "learning_rate warmup_steps weight_decay max_grad_norm eval_delay",
    ShareBelow1: "adam_beta1 adam_beta2 label_smoothing_factor",
}
# Those whose values the parser does not know.
_CHOICES = {
    "optim": [choice.value for choice in OptimizerNames],
    "eval_strategy": [choice.value for choice in IntervalStrategy],
    "save_strategy": [choice.value for choice in SaveStrategy],
    "train_sampling_strategy": ["random", "sequential"],
    "report_to": ["all", "none", *get_available_reporting_integrations()],
}


def _range_of(hint) -> Range | None:
    """The range in a type such as `list[Count] | None`."""
    found = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Range)]
    return found[0] if found else next(filter(None, map(_range_of, get_args(hint))), None)


@functools.cache
def _ranges(argument_class: type) -> dict[str, Range]:
    """The ranges of a dataclass of arguments, by name."""
    names = {field.name for field in fields(argument_class)}
    inherited = {name: hint for hint, listed in _INHERITED.items() for name in listed.split()}
    hints = {**inherited, **get_type_hints(argument_class, include_extras=True)}
    ranges = {name: _range_of(hint) or _range_of(inherited.get(name)) for name, hint in hints.items() if name in names}
    return {name: known for name, known in ranges.items() if known is not None}


def _find_mistakes(values: Mapping, ranges: Mapping[str, Range]) -> list[str]:
    """A line for each argument whose value is not allowed; `None` always is."""
    lines = []
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        if name in ranges:
            wrong = [x for x in several if isinstance(x, (int, float)) and x not in ranges[name]]
            lines += [f"`--{name}` must be {ranges[name]}, got {wrong[0]}."] if wrong else []
        elif name in _CHOICES and value is not None:
            texts = [x.value if isinstance(x, Enum) else str(x) for x in several]
            wrong = [text for text in texts if text not in _CHOICES[name]]
            lines += [f"`--{name}` must be {_listed(wrong[0], _CHOICES[name])}, got {wrong[0]}."] if wrong else []
    return lines


def _listed(value: str, choices: list[str]) -> str:
    """The choices, or if they are many those that look like the value."""
    if len(choices) > 12:
        choices = difflib.get_close_matches(value, choices, n=3, cutoff=0.4) or choices[:3]
        return f"one of Transformers' names, such as {', '.join(choices)}"
    return f"one of {', '.join(choices)}"


def check(arguments):
    """
    Check a dataclass of arguments.

    Raises:
        ValueError: if values are out of their ranges; the message has a line for each.
    """
    mistakes = _find_mistakes(vars(arguments), _ranges(type(arguments)))
    if mistakes:
        raise ValueError("\n".join(mistakes))
    workers = getattr(arguments, "dataloader_num_workers", 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if workers > cores:
        logger.warning_once(
            f"`--dataloader_num_workers` {workers} are more processes than the {cores} cores of this machine."
        )


def read_fields(value: str | dict | None) -> dict:
    """
    The value of `--model_config`, which may be JSON.

    Raises:
        ValueError: if it is not a mapping.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`--model_config` is not JSON ({error}): {value}. Example: --model_config '{{\"mask_ratio\": 0.6}}'."
            ) from None
    if not isinstance(value or {}, dict):
        raise ValueError(f"`--model_config` must map fields to values, as in '{{\"mask_ratio\": 0.6}}', got {value}.")
    return value or {}


# --- recipes and flags ---

# The recipes of the paper, one for each job.
_RECIPES = Path(__file__).parent / "training" / "recipes"
# Two names for one setting. Of two recipes, or a recipe and the flags, the later one has the say.
_ALTERNATIVES = (("learning_rate", "base_learning_rate"), ("warmup_steps", "warmup_epochs"))


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `no` is a word, `1e-2` a number (as in YAML 1.2)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool",)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), "-+.0123456789"
)


_MOST_USED = (
    *("train_dir", "image_dir", "dataset_name", "models", "model_name_or_path", "output_dir"),
    *("num_train_epochs", "per_device_train_batch_size", "seed"),
)


class _Parser(HfArgumentParser):
    def error(self, message):
        raise ValueError(message)

    def format_help(self) -> str:
        """The description, then the arguments in the groups of the classes that define them; Transformers' own are last."""
        arguments = {
            argument.name: (argument, next(x for x in reversed(argument_class.__mro__) if name in get_annotations(x)))
            for argument_class in self.dataclass_types
            for name, argument in argument_class.__dataclass_fields__.items()
            if argument.init
        }
        owners = [owner for argument_class in self.dataclass_types for owner in argument_class.__mro__[:-1]]
        groups = {"The most used:": [name for name in _MOST_USED if name in arguments]}
        for owner in sorted(owners, key=lambda owner: owner is TrainingArguments):
            about = owner.__doc__ if owner is not TrainingArguments else "Those of Transformers' TrainingArguments."
            groups[" ".join(about.partition("\n\n")[0].split())] = [
                name for name, (_, other) in arguments.items() if other is owner and name not in _MOST_USED
            ]
        blocks = [f"usage: {self.prog} [RECIPE.yaml] [--flag value ...]", (self.description or "").strip()]
        for about, names in groups.items():
            blocks += [about, *(self._describe(arguments[name][0]) for name in names)] if names else []
        return "\n\n".join(filter(None, blocks)) + "\n"

    def _describe(self, argument: Field) -> str:
        """The name of an argument, what it is, and the value that it has if nothing is said."""
        choices, value = argument.metadata.get("choices") or [], self.get_default(argument.name)
        kind = argument.type
        if get_origin(kind) is Literal:
            choices = get_args(kind)
        text = " ".join(str(argument.metadata.get("help") or "").split())
        if choices:
            text += f" One of {', '.join(map(str, choices))}."
        if value not in (None, "", [], {}) and "default:" not in text.lower():
            value = getattr(value, "value", value)
            text += f" Default: {' '.join(map(str, value)) if isinstance(value, list) else value}."
        return f"  --{argument.name}\n" + textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)

    def parse_said(self, words: list[str]) -> dict:
        """The values of the flags that are there, and of no others."""
        return {name: value for name, value in vars(self.parse_args(words)).items() if value is not None}


def read_recipe(path: str | Path) -> dict:
    """
    The argument names and values of a YAML recipe.

    Raises:
        ValueError: if the file is not a YAML mapping.
    """
    try:
        values = yaml.load(Path(path).read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: it must map argument names to values, as in examples/configs/.")
    return values


# What others call them.
_USUAL_NAMES = {
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "data_dir": "train_dir",
    "model": "model_name_or_path",
}


def _nearest(name: str, known: Iterable[str]) -> str:
    usual = _USUAL_NAMES.get(name)
    similar = [usual] if usual in known else difflib.get_close_matches(name, known, n=1)
    return f": did you mean `{similar[0]}`?" if similar else ""


def _parse_recipe(recipe: str | Path, parser: _Parser, known: dict) -> dict:
    """The values of a recipe as the flags of the same names would have them; None for what it resets to the default."""
    values = {}
    for name, value in read_recipe(recipe).items():
        if name not in known:
            raise ValueError(f"{recipe} sets `{name}`, which is not an argument{_nearest(str(name), known)}")
        if isinstance(value, list) and getattr(known[name], "__origin__", None) is list:
            words = [f"--{name}", *map(str, value)]
        elif value is None or isinstance(value, (dict, list)):
            values[name] = value
            continue
        else:
            words = [f"--{name}={value}"]
        try:
            values.update(parser.parse_said(words))
        except ValueError as error:
            raise ValueError(f"{recipe} sets `{name}` to {value!r}: {error}") from None
    return values


def parse_arguments(
    argument_classes,
    base: str | None = None,
    default_recipe: str | Path | None = None,
    description: str | None = None,
    argv: list[str] | None = None,
):
    """
    Parse `[RECIPE.yaml] [--flag value ...]` into one dataclass each. What is said later wins: the paper's recipe of the
    job, the recipe that is named, flags. Of `model_config` each adds or replaces the fields that it names. Mistakes end
    the program with one line.

    Args:
        base: The job, whose recipe is `recipes/{base}.yaml`.
        default_recipe: Read where neither a recipe nor a data set (`--dataset_name`, `--train_dir`) is named, so that a
            script runs as it stands. `--help` shows the defaults without it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(argument_classes, description=description, allow_abbrev=False)
    known = {
        argument.name: argument.type for argument_class in argument_classes for argument in fields(argument_class)
    }
    names_data = any(flag.split("=")[0].replace("-", "_") in ("__dataset_name", "__train_dir") for flag in argv)
    asks_for_help = bool({"-h", "--help"} & set(argv))
    recipes = [_RECIPES / f"{base}.yaml"] if base else []
    if argv and argv[0].endswith((".yaml", ".yml")):
        recipes.append(argv.pop(0))
    elif default_recipe and not names_data and not asks_for_help:
        recipes.append(default_recipe)
    try:
        if asks_for_help:
            parser.set_defaults(**{name: value for recipe in recipes for name, value in read_recipe(recipe).items()})
            parser.parse_args(argv)
        # nothing but what is said; what is not has the default of its dataclass
        parser.set_defaults(**dict.fromkeys(known))
        layers = [_parse_recipe(recipe, parser, known) for recipe in recipes]
        try:
            layers.append(parser.parse_said(argv))
        except ValueError as error:
            unknown = re.search(r"unrecognized arguments: -*([^\s=]+)", str(error))
            flags = [name.replace("-", "_") for name in known]
            raise ValueError(f"{error}{_nearest(unknown[1].replace('-', '_'), flags) if unknown else ''}") from None
        values = {}
        for layer in layers:
            for pair in _ALTERNATIVES:
                if all(map(layer.get, pair)):
                    raise ValueError(
                        f"`{pair[0]}` {layer[pair[0]]} and `{pair[1]}` {layer[pair[1]]} say the same in two ways: give one."
                    )
                for name, other in (pair, pair[::-1]):
                    if layer.get(name):
                        values.pop(other, None)
            if "model_config" in layer:
                layer["model_config"] = values.get("model_config", {}) | read_fields(layer["model_config"])
            values.update(layer)
        ranges = {name: known for x in argument_classes for name, known in _ranges(x).items()}
        if mistakes := _find_mistakes(values, ranges):
            raise ValueError("\n".join(mistakes))
        return parser.parse_dict({name: value for name, value in values.items() if value is not None})
    except (OSError, ValueError) as error:
        parser.exit(2, "".join(f"{parser.prog}: error: {line}\n" for line in str(error).splitlines()))


class Parser(argparse.ArgumentParser):
    """A parser for scripts without recipes. It reports a mistake in one line and takes no abbreviated flags."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


# what `accelerate launch`, `torchrun` and other launchers set for the processes that they start
_LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"}


def _stop_with_launcher():
    """
    Send this process SIGTERM when the launcher that started it is gone: launchers that are killed leave their processes behind,
    and accelerate's leaves its only one behind on SIGTERM, too.
    """
    launcher = os.getppid()
    if not _LAUNCHED & os.environ.keys() or os.name != "posix":
        return
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(launcher)
        # has it ended while this process was importing what it needs, and has init taken over?
        if parent.name() in ("init", "systemd", "tini") or (
            launcher == 1 and not re.search("accelerate|torch|deepspeed", " ".join(parent.cmdline()))
        ):
            launcher = None

    def watch():
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _shorten_report(record) -> bool:
    """Make one line of Transformers' table of the weights that a checkpoint does not have, or that have no place."""
    text = record.getMessage()
    rows = re.findall(r"^(\w+)\S*\s*\|\s*\W*(MISSING|UNEXPECTED)", text, re.MULTILINE)
    if "LOAD REPORT" in text and rows and "MISMATCH" not in text:
        line = f"'{text.splitlines()[0].rpartition('from: ')[2]}' is loaded"
        for status, said in (("MISSING", "new"), ("UNEXPECTED", "not used")):
            names = sorted({name for name, found in rows if found == status})
            line += f"; {said}: {', '.join(names)}" if names else ""
        record.msg, record.args = f"{line}.", ()
    return True


def run(main: Callable[[], None]):
    """
    Run a script. Errors end it with the line that says what to do, not behind a traceback, which `--debug` (on the command
    line, anywhere) shows. A script whose launcher is gone stops as on SIGTERM.
    """
    debug = [
        place
        for place, word in enumerate(sys.argv)
        if word == "--debug" and sys.argv[place + 1 : place + 2] not in [[option.value] for option in DebugOption]
    ]
    for place in reversed(debug):
        del sys.argv[place]
    _stop_with_launcher()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # said at each start of a loader; see `check`
    for handler in logging.get_logger("transformers").handlers:
        handler.addFilter(_shorten_report)
    logging.disable_progress_bar()  # of weights that are read and written, which are lines of noise in a file
    try:
        main()
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, (OSError, ValueError, ImportError, FloatingPointError))
        text = str(error) if known else f"{type(error).__name__}: {error} (`--debug` shows where)"
        if isinstance(error, ModuleNotFoundError):
            text += ": `pip install '.[onnx]'`, in a clone of the repository, installs whatever the scripts can use"
        lines = [line for line in text.splitlines() if line.strip()]
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(map(str.strip, lines))}", file=sys.stderr)
        raise SystemExit(1) from None
