# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Recipes, and command lines on top of them: `[RECIPE.yaml] [--flag value ...]`."""

import difflib
import sys
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..arguments import ModelArguments


def read_recipe(path: str | Path) -> dict:
    """
    The argument names and values of a YAML recipe.

    Raises:
        ValueError: if the file is not a YAML mapping.
    """
    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: it must map argument names to values, as in examples/configs/.")
    return {name: value for name, value in values.items() if value is not None}


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
            script runs as it stands.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(argument_classes, description=description)
    known = [argument.name for argument_class in argument_classes for argument in fields(argument_class)]
    names_data = any(flag.split("=")[0].replace("-", "_") in ("__dataset_name", "__train_dir") for flag in argv)
    try:
        recipes = [Path(__file__).parent / f"{base}.yaml"] if base else []
        if argv and argv[0].endswith((".yaml", ".yml")):
            recipes.append(argv.pop(0))
        elif default_recipe and not names_data:
            recipes.append(default_recipe)
        model_config = {}
        for recipe in recipes:
            values = read_recipe(recipe)
            for name in values:
                if name not in known:
                    similar = difflib.get_close_matches(name, known, n=1)
                    hint = f": did you mean `{similar[0]}`?" if similar else ""
                    raise ValueError(f"{recipe} sets `{name}`, which is not an argument{hint}")
            model_config.update(values.pop("model_config", {}))
            parser.set_defaults(**values)
        parsed = parser.parse_args_into_dataclasses(args=argv)
        for arguments in parsed:
            if isinstance(arguments, ModelArguments):
                arguments.model_config = {**model_config, **arguments.model_config}
                arguments.check()
        return parsed
    except (OSError, ValueError) as error:
        if "not used by the HfArgumentParser" in str(error):
            parser.error("unknown arguments: " + str(error).split(":", 1)[1].strip())
        parser.error(str(error))
