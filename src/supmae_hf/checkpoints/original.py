# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Parameter names of the paper's own PyTorch checkpoints and of this package, and the way between them."""

import torch


# How names begin: the authors', ours. The first that fits applies.
_PREFIXES = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("blocks.", "vit.layers."),
    ("norm.", "vit.layernorm."),
    ("mask_token", "decoder.mask_token"),
    ("decoder_blocks.", "decoder.decoder_layers."),
    ("decoder_", "decoder.decoder_"),  # decoder_embed, decoder_pos_embed, decoder_norm, decoder_pred
    ("cls_head.0.", "classification_head.fc1."),
    ("cls_head.1.", "classification_head.batch_norm."),
    ("cls_head.3.", "classification_head.fc2."),
    ("fc_norm.", "fc_norm."),
    ("head.", "classifier."),
]
_INSIDE_BLOCKS = [
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
]
_QKV = ".attn.qkv."
_PROJECTIONS = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")


def _rename(name: str, prefixes: list[tuple[str, str]], inside_blocks: list[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for old_part, new_part in inside_blocks:
                name = name.replace(old_part, new_part)
            return name
    raise KeyError(f"'{name}' is not the name of a SupMAE parameter.")


def convert_original_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    State dict of the authors' pre-training or fine-tuning model, as a state dict of [`SupMAEForPreTraining`] or
    [`SupMAEForImageClassification`]. Only names change, except that the fused query-key-value matrices are cut in
    three.

    Raises:
        KeyError: if the authors' models have no parameter of some name.
    """
    converted = {}
    for original_name, tensor in state_dict.items():
        name = _rename(original_name, _PREFIXES, _INSIDE_BLOCKS)
        if _QKV in name:
            for projection, part in zip(_PROJECTIONS, tensor.chunk(3)):
                converted[name.replace(_QKV, projection)] = part.clone()
        else:
            converted[name] = tensor
    return converted


def revert_original_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The inverse of [`convert_original_state_dict`]: a state dict of ours under the authors' names.

    Raises:
        KeyError: if the authors' models have no such parameter.
    """
    prefixes, inside_blocks = ([(new, old) for old, new in pairs] for pairs in (_PREFIXES, _INSIDE_BLOCKS))
    query, *others = _PROJECTIONS
    reverted = {}
    for name, tensor in state_dict.items():
        if any(projection in name for projection in others):
            continue  # goes into the fused matrix together with the query
        if query in name:
            tensor = torch.cat([state_dict[name.replace(query, projection)] for projection in _PROJECTIONS])
            name = name.replace(query, _QKV)
        reverted[_rename(name, prefixes, inside_blocks)] = tensor
    return reverted
