# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether a model's weights are numbers."""

import torch


def find_not_finite(model: torch.nn.Module) -> str | None:
    """The name of a weight that holds NaN or infinity, if there is one."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight.to_local() if hasattr(weight, "to_local") else weight).all():
            return name
    return None


def require_finite(model: torch.nn.Module, source: str):
    """
    To be called with every checkpoint that was loaded.

    Raises:
        ValueError: if one of its weights is not finite.
    """
    name = find_not_finite(model)
    if name is not None:
        raise ValueError(f"'{source}' is damaged: its weight {name} holds NaN or infinity. Use an earlier checkpoint.")
