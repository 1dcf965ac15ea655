# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading checkpoints: errors that name what is wrong, and weights that are numbers."""

import pickle
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

import supmae_hf


def load_pretrained(cls: type, name: str | Path, **kwargs):
    """
    `cls.from_pretrained(name, **kwargs)` for the scripts: code that comes with a checkpoint is not run, weights are checked, and
    errors of the libraries beneath become one that names the checkpoint.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if its weights are damaged, not finite, or a pickle of other objects, if no model can have its configuration, or
            if it needs code of its own.
    """
    if cls.__module__.startswith("transformers.models.auto."):
        kwargs["trust_remote_code"] = False
    try:
        loaded = cls.from_pretrained(name, **kwargs)
    except (
        *(SafetensorError, pickle.UnpicklingError, StrictDataclassError),
        *(EOFError, KeyError, TypeError, RuntimeError, ValueError),
    ) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            reason = "needs code of its own, which is not run: use a checkpoint whose class ships with Transformers"
        elif foreign := re.search(r"GLOBAL (\S+)", text):
            reason = (
                f"holds other objects than tensors ({foreign[1]}), which are not loaded because they could run code"
            )
        elif isinstance(error, (SafetensorError, pickle.UnpicklingError, EOFError)) or "PytorchStreamReader" in text:
            reason = f"has damaged weights ({text.partition('. ')[0]}): get it anew"
        elif isinstance(error, (StrictDataclassError, KeyError, TypeError)):
            reason = f"has a configuration that no model can have ({type(error).__name__}: {text})"
        elif str(name) not in text:
            reason = f"cannot be loaded: {text.rstrip('.')}"
        else:
            raise
        raise ValueError(f"'{name}' {reason}.") from error
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if isinstance(model, torch.nn.Module):
        _require_finite(model, name)
    return loaded


def load_checkpoint(name: str | Path, encoder_only: bool = False, **kwargs):
    """
    A SupMAE checkpoint as the class that it was saved as, or its encoder alone; see [`load_pretrained`].

    Raises:
        ValueError: if it is a checkpoint of another model.
    """
    config = load_pretrained(AutoConfig, name)
    if config.model_type != "supmae":
        raise ValueError(f"'{name}' is a checkpoint of the type '{config.model_type}', not of SupMAE.")
    if not encoder_only:
        return load_pretrained(getattr(supmae_hf, (config.architectures or ["SupMAEModel"])[0]), name, **kwargs)
    model, info = load_pretrained(supmae_hf.SupMAEModel, name, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise ValueError(
            f"'{name}' has no LayerNorm after its encoder ({', '.join(sorted(info['missing_keys']))}): it can only be what it is."
        )
    return model


def find_not_finite(model: torch.nn.Module) -> str | None:
    """The name of a weight that holds NaN or infinity, if there is one."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight.to_local() if hasattr(weight, "to_local") else weight).all():
            return name
    return None


def _require_finite(model: torch.nn.Module, source: str | Path):
    name = find_not_finite(model)
    if name is not None:
        raise ValueError(f"'{source}' is damaged: its weight {name} holds NaN or infinity. Use an earlier checkpoint.")
