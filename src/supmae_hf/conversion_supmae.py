# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Checkpoints of other plain ViTs as SupMAE: what their configurations, the names of their tensors and the tensors themselves
become, and which models SupMAE cannot be.
"""

import contextlib
import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files
from transformers.utils.peft_utils import find_adapter_config_file


logger = logging.get_logger(__name__)


@dataclass
class Source:
    """
    The description of a checkpoint of another ViT as SupMAE.

    Args:
        fields: Fields of [`SupMAEConfig`].
        has_classifier: Whether its classifier reads the class token, or the mean of the patch tokens before a LayerNorm.
        is_distilled: Whether it has a distillation token, which is left out.
        is_folded: Whether it has LayerScale, which is multiplied into the projections.
        remarks: Parts that are left out or folded in, in words.
        model_type: The type of the other model; `None` for SupMAE itself.
    """

    fields: dict
    has_classifier: bool = False
    is_distilled: bool = False
    is_folded: bool = False
    remarks: list[str] = field(default_factory=list)
    model_type: str | None = None

    def __post_init__(self):
        if self.is_folded:
            self.remarks.append("LayerScale folded into the projections")
        if self.is_distilled:
            self.remarks.append("without its distillation token")

    @property
    def is_foreign(self) -> bool:
        return self.model_type is not None

    def check(self, loading_info: dict, name: str, class_name: str):
        """Raise a `ValueError` if tensors of the encoder were missing or had no place; else say what was read, and how."""
        encoder = re.compile(r"^(?:vit\.)?(?:embeddings|layers)\.")
        missing = sorted(key for key in loading_info["missing_keys"] if encoder.match(key))
        unexpected = sorted(key for key in loading_info["unexpected_keys"] if encoder.match(key))
        if missing or unexpected:
            listed = [f"{key} is missing" for key in missing[:3]] + [f"{key} has no place" for key in unexpected[:3]]
            raise ValueError(
                f"The tensors of '{name}' are not those of the ViT that the configuration describes: {', '.join(listed)}."
            )
        new = sorted({re.sub(r"^((?:vit\.)?\w+)\..*", r"\1", key) for key in loading_info["missing_keys"]})
        remarks = [*self.remarks, *([f"new: {', '.join(new)}"] if new else [])]
        read = f"'{name}' is a checkpoint of the type '{self.model_type}', read as {class_name}"
        logger.warning("; ".join([read, *remarks]) + ".")


def find_source(name: str, **options) -> Source | None:
    """Describe the checkpoint `name` by its `config.json`. Returns `None` if there is none, as for an adapter of PEFT."""
    try:
        config = PreTrainedConfig.get_config_dict(name, **options)[0]
    except OSError:
        return None
    is_ours = config.get("model_type", "supmae") == "supmae"
    return (Source(config) if is_ours else read_config(config, str(name))) if config else None


def find_adapted(name: str, **options) -> str | None:
    """The checkpoint that an adapter of PEFT in the folder or repository `name` belongs to, if that is of another model."""
    file = find_adapter_config_file(name, **options)
    if file is None:
        return None
    base = json.loads(Path(file).read_text()).get("base_model_name_or_path")
    source = None if base is None else find_source(base)
    return base if source is not None and source.is_foreign else None


def load_adapter(model, name: str, source: Source, **options):
    """
    Load an adapter of the model that `source` describes into its conversion.

    Raises:
        ValueError: if the layers that it adapts are others here.
    """
    problem = "LayerScale" if source.is_folded else "fused layers" if source.model_type == "timm_wrapper" else None
    if problem is None:
        try:
            info = model.load_adapter(name, adapter_kwargs=options)
            strange = sorted(info.missing_keys | info.unexpected_keys)
            problem = f"other layers ({', '.join(strange[:3])})" if strange else None
        except ValueError as error:  # PEFT finds none of them
            problem = f"other layers ({str(error).partition('. ')[0]})"
    if problem:
        raise ValueError(
            f"'{name}' is an adapter of a model with {problem}, which it would not fit here: merge it there (PEFT's "
            "`merge_and_unload`), save that model, and load the result."
        )


@contextlib.contextmanager
def without_load_report():
    """Keep back Transformers' table of missing and unexpected tensors, in the place of which [`Source.check`] says a line."""

    def is_shown(record) -> bool:
        return "LOAD REPORT" not in (text := record.getMessage()) or "MISMATCH" in text

    reports = logging.get_logger("transformers.modeling_utils")
    reports.addFilter(is_shown)
    try:
        yield
    finally:
        reports.removeFilter(is_shown)


def refuse(name: str, part: str):
    """Raise the `ValueError` for a model that SupMAE cannot be."""
    raise ValueError(
        f"SupMAE cannot take over the weights of '{name}': it has {part}, unlike SupMAE's encoder. Choose a ViT of the types ViT, "
        "DeiT, DINO, DINOv2 (with registers, too), DINOv3, ViTMAE, ViT-MSN, CLIP, SigLIP or I-JEPA, or timm's vit_* and deit_*."
    )


# Fields that all configurations of the ViT family have.
SHARED_FIELDS = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
]
DECODER_FIELDS = [
    "decoder_num_attention_heads",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
]
# Fields that some have, under the same names.
_OTHER_FIELDS = [
    "intermediate_size",
    "qkv_bias",
    "num_register_tokens",
    "use_absolute_position_embeddings",
    "rope_theta",
    "use_gated_mlp",
    "apply_layernorm",
]
# What the models of Transformers that SupMAE can be have, and their configurations do not say.
_FAMILIES = {
    **dict.fromkeys(["vit", "deit", "vit_mae", "vit_msn", "beit", "dinov2"], {}),
    "dinov2_with_registers": {"interpolate_antialias": True},
    "dinov3_vit": {"use_absolute_position_embeddings": False},
    "clip_vision_model": {"use_pre_layernorm": True},
    **dict.fromkeys(["siglip_vision_model", "ijepa"], {"use_cls_token": False}),
}
# What else their classifiers read than ours.
_OTHER_POOLING = {
    **dict.fromkeys(["dinov2", "dinov2_with_registers"], "the class token and the mean of the others together"),
    "clip_vision_model": "the mean of tokens that are not normalised",
    **dict.fromkeys(["siglip_vision_model", "ijepa"], "the mean of normalised tokens"),
}
_OTHER_PARTS = {
    "data2vec-vision": "relative position biases",
    **dict.fromkeys(["siglip2", "siglip2_vision_model"], "patches of images of any shape (NaFlex)"),
}


def read_config(config: dict, name: str) -> Source:
    """
    Describe the checkpoint `name` of another model by its `config.json`.

    Raises:
        ImportError: for timm's models, if timm is not installed.
        ValueError: if SupMAE cannot be that model; the message names the part.
    """
    model_type = config["model_type"]
    if model_type == "timm_wrapper":
        return _read_timm_config(config, name)
    family = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(model_type, model_type)
    if family not in _FAMILIES:
        refuse(name, _OTHER_PARTS.get(model_type, f"an architecture of its own ('{model_type}')"))
    try:
        other = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config))
    except StrictDataclassError as error:
        raise ValueError(
            f"'{name}' has a configuration that no model can have: {' '.join(str(error).split())}"
        ) from error
    vit = getattr(other, "vision_config", other)
    if getattr(vit, "use_relative_position_bias", False) or getattr(vit, "use_shared_relative_position_bias", False):
        refuse(name, "relative position biases")
    fields = {key: getattr(vit, key) for key in (*SHARED_FIELDS, *_OTHER_FIELDS) if hasattr(vit, key)}
    fields |= _FAMILIES[family]
    if hasattr(vit, "attention_dropout"):
        fields["attention_probs_dropout_prob"] = vit.attention_dropout
    if hasattr(vit, "mlp_ratio"):
        fields["intermediate_size"] = int(vit.hidden_size * vit.mlp_ratio)
        if vit.use_swiglu_ffn:
            size = (int(fields["intermediate_size"] * 2 / 3) + 7) // 8 * 8  # DINOv2's rounding
            fields |= {"intermediate_size": size, "use_gated_mlp": True, "hidden_act": "silu"}
    if hasattr(vit, "query_bias"):
        fields["qkv_bias"] = vit.query_bias or vit.key_bias or vit.value_bias
    if family == "vit_mae":
        fields |= {name: getattr(other, name) for name in DECODER_FIELDS}
    dtype = other.dtype if other.dtype is not None else vit.dtype
    if dtype is not None:
        fields["dtype"] = dtype
    labels = ["id2label", "label2id"] if "id2label" in config else []
    for key in (*labels, "problem_type", "out_features"):
        if config.get(key) is not None:
            fields[key] = getattr(other, key)
    is_classifier = any("ImageClassification" in name for name in other.architectures or ())
    source = Source(
        fields,
        has_classifier=is_classifier and family not in _OTHER_POOLING,
        is_distilled=family == "deit",
        is_folded=hasattr(vit, "layerscale_value") or getattr(vit, "layer_scale_init_value", 0) > 0,
        model_type=model_type,
    )
    if source.has_classifier:
        is_mean = family == "beit" and vit.use_mean_pooling
        fields |= {"use_mean_pooling": is_mean, "id2label": other.id2label, "label2id": other.label2id}
        source.remarks.append(_read_by(is_mean))
    elif is_classifier:
        source.remarks.append(f"without its classifier, which reads {_OTHER_POOLING[family]}")
    return source


def _read_by(is_mean: bool) -> str:
    return f"its classifier reads the {'mean of the patch tokens' if is_mean else 'class token'} (`use_mean_pooling={is_mean}`)"


def create_timm_model(config: dict, name: str) -> tuple[nn.Module, PreTrainedConfig]:
    """The model, with new weights, and the configuration of a folder or repository of timm; see [`read_config`]."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"'{name}' is a timm model: `pip install timm` to read it.") from error
    other = CONFIG_MAPPING["timm_wrapper"].from_dict(copy.deepcopy(config))
    # what timm itself saves has the number of classes twice
    arguments = {"num_classes": other.num_labels, **(other.model_args or {})}
    try:
        return timm.create_model(other.architecture, pretrained=False, **arguments), other
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"timm {timm.__version__} cannot make '{other.architecture}', which '{name}' is: {error}"
        ) from error


_TIMM_ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh", "SiLU": "silu"}


def _read_timm_config(config: dict, name: str) -> Source:
    with torch.device("meta"):
        model, other = create_timm_model(config, name)
    if type(model).__name__ not in ("VisionTransformer", "VisionTransformerDistilled", "Eva"):
        refuse(name, f"the architecture of timm's {type(model).__name__}")
    rope, block = getattr(model, "rope", None), model.blocks[0]
    if rope is not None and (type(rope).__name__ != "RotaryEmbeddingDinoV3" or not rope.rotate_half):
        refuse(name, "rotary positions of another kind than DINOv3's")
    tensors = model.state_dict()
    require_plain_vit(tensors, name)
    if type(block).__name__ not in ("Block", "EvaBlock"):
        refuse(name, f"blocks of another kind ({type(block).__name__})")
    activation = _TIMM_ACTIVATIONS.get(type(block.mlp.act).__name__)
    if activation is None or getattr(block.mlp, "gate_last", False):
        refuse(name, f"the activation {type(block.mlp.act).__name__}")
    height, width = model.patch_embed.img_size
    fields = {
        **fields_of_tensors(rename_tensors(tensors)),
        "num_attention_heads": block.attn.num_heads,
        "image_size": height if height == width else (height, width),
        "layer_norm_eps": block.norm1.eps,
        "hidden_act": activation,
        "rope_theta": None if rope is None else rope.temperature,
        "interpolate_antialias": True,
    }
    source = Source(
        fields,
        is_distilled="dist_token" in tensors,
        is_folded=any(name.endswith((".ls1.gamma", ".gamma_1")) for name in tensors),
        model_type="timm_wrapper",
    )
    if "norm.weight" not in tensors:
        source.remarks.append("without a LayerNorm after the last block")
    if "head.weight" in tensors:
        has_norm, has_pooled_norm = "norm.weight" in tensors, "fc_norm.weight" in tensors
        is_mean = model.global_pool == "avg" and has_pooled_norm and not has_norm
        is_token = model.global_pool == "token" and has_norm and not has_pooled_norm
        is_linear = isinstance(model.head, nn.Linear) and not getattr(model, "pool_include_prefix", False)
        source.has_classifier = is_linear and (is_mean or is_token)
        if source.has_classifier:
            fields |= {"use_mean_pooling": is_mean, "id2label": other.id2label, "label2id": other.label2id}
            source.remarks.append(_read_by(is_mean))
        else:
            source.remarks.append(f"without its classifier, which pools otherwise ({model.global_pool})")
    return source


# Parts that SupMAE's encoder does not have, by the names of their tensors.
_OTHER_TENSORS = {
    r"rel_pos|relative_position": "relative position biases",
    r"\.rope\.(?!periods)|rope_(?!embed\.periods)": "rotary positions of another kind than DINOv3's",
    r"[qk]_norm\.": "normalised queries and keys",
    r"\.(?:attn|mlp)\.norm\.": "a LayerNorm inside of its attention or MLPs",
    r"patch_embed\.(?:backbone|norm)\.": "other layers before its patch projection",
}


def require_plain_vit(tensors: Mapping[str, torch.Tensor], name: str):
    """Raise a `ValueError` that names the part if tensors are not those of a ViT that SupMAE can be."""
    for pattern, part in _OTHER_TENSORS.items():
        if any(re.search(pattern, key) for key in tensors):
            refuse(name, part)


def fields_of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict:
    """
    The fields of [`SupMAEConfig`] that the shapes of an encoder's tensors tell (see [`rename_tensors`]): all but attention heads,
    image size and what has no parameters.

    Raises:
        KeyError: if a tensor is missing; the message is its name.
    """
    hidden_size, num_channels, *patch_size = tensors["vit.embeddings.patch_embeddings.projection.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("vit.layers.")}
    registers = tensors.get("vit.embeddings.register_tokens")
    fields = {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
        "num_hidden_layers": len(layers),
        "intermediate_size": tensors["vit.layers.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "vit.layers.0.attention.q_proj.bias" in tensors,
        "use_cls_token": "vit.embeddings.cls_token" in tensors,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "use_absolute_position_embeddings": "vit.embeddings.position_embeddings" in tensors,
        "use_pre_layernorm": "vit.embeddings.pre_layernorm.weight" in tensors,
        "use_gated_mlp": "vit.layers.0.mlp.gate_proj.weight" in tensors,
    }
    return fields


# --- tensors ---

# How names begin in the authors', MAE's and timm's files, and in ours. The first that fits applies.
ORIGINAL_PREFIXES = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("reg_token", "vit.embeddings.register_tokens"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("norm_pre.", "vit.embeddings.pre_layernorm."),
    ("blocks.", "vit.layers."),
    ("norm.", "vit.layernorm."),
    ("mask_token", "decoder.mask_token"),
    ("decoder_blocks.", "decoder.decoder_layers."),
    ("decoder_", "decoder.decoder_"),  # decoder_embed, decoder_pos_embed, decoder_norm, decoder_pred
    ("cls_head.0.", "classification_head.fc1."),
    ("cls_head.1.", "classification_head.batch_norm."),
    ("cls_head.3.", "classification_head.fc2."),
    ("cls_head.", "classification_head.fc2."),  # a linear head
    ("fc_norm.", "fc_norm."),
    ("head.", "classifier."),
]
# Inside a block: the fused projections are cut in three.
ORIGINAL_PARTS = [
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
]
# Inside a block in published checkpoints of ViT, DeiT, DINOv2, ViTMAE, ViT-MSN and BEiT.
PUBLISHED_PARTS = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
]
# Patterns of other names, one after the other.
_RENAMINGS = {
    r"^(?:timm_model|vision_model|deit|beit|ijepa|dinov2|dinov2_with_registers)\.": "",
    r"^head\.(?=probe|attention|layernorm|mlp)": "attn_pool.",  # SigLIP's
    **{f"^{re.escape(original)}": ours for original, ours in ORIGINAL_PREFIXES},
    r"^dist_token$": "vit.embeddings.distillation_token",
    r"^storage_tokens$": "vit.embeddings.register_tokens",  # in the files of DINOv3, as are w1 and w2 below
    r"^register_tokens$": "vit.embeddings.register_tokens",
    r"^patch_embed\.projection\.": "vit.embeddings.patch_embeddings.projection.",  # in mmpretrain's, as are ln1 and ffn below
    r"^ln1\.": "vit.layernorm.",
    r"^pooler\.layernorm\.": "fc_norm.",
    r"^cls_classifier\.": "classifier.",
    r"^(?:vit\.)?(?:encoder\.|model\.)?layers?\.": "vit.layers.",
    r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers.",  # as Transformers 5.23 saves ViTMAE's
    r"^(?:norm|layernorm|post_layernorm)\.": "vit.layernorm.",
    r"^pre_layrnorm\.": "vit.embeddings.pre_layernorm.",
    r"^embeddings\.": "vit.embeddings.",
    r"embeddings\.class_embedding$": "embeddings.cls_token",
    r"embeddings\.position_embedding\.weight$": "embeddings.position_embeddings",
    r"embeddings\.(?:patch_embedding|patch_embeddings)\.(?=weight$|bias$)": "embeddings.patch_embeddings.projection.",
    **{re.escape(theirs): ours for theirs, ours in PUBLISHED_PARTS + ORIGINAL_PARTS},
    r"\.(?:layer_norm1|ln1)\.": ".layernorm_before.",
    r"\.(?:layer_norm2|ln2)\.": ".layernorm_after.",
    r"\.(?:self_attn|attn)\.": ".attention.",
    r"\.attention\.out_proj\.": ".attention.o_proj.",
    r"\.attention\.([qkv])_bias$": r".attention.\1_proj.bias",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
    r"\.mlp\.(?:fc1_g|w1)\.": ".mlp.gate_proj.",
    r"\.mlp\.(?:fc1_x|up_proj|w2)\.": ".mlp.fc1.",
    r"\.mlp\.(?:down_proj|weights_out|w3)\.": ".mlp.fc2.",
    r"\.mlp\.(?:weights_in|w12)\.": ".mlp.gate_and_fc1.",
    r"\.(?:layer_scale1\.lambda1|ls1\.gamma|gamma_1|lambda_1|attention\.gamma1\.weight)$": ".attention.o_proj.layer_scale",
    r"\.(?:layer_scale2\.lambda1|ls2\.gamma|gamma_2|lambda_2|ffn\.gamma2\.weight)$": ".mlp.fc2.layer_scale",
}
# Tensors that nothing here has a place for: poolers that no classifier reads, tokens in the place of masked patches, text models,
# and what belongs to a distillation token.
_LEFT_OUT = re.compile(
    r"pooler\.|attn_pool\.|embeddings\.(?:mask_token|position_ids)$|^distillation_classifier\.|^head_dist\.|^text_model\."
    r"|^(?:visual|text)_projection\.|^logit_|rope_embed\.|bias_mask$"
)
# Layers of an encoder that always have a bias here. That of others is 0, if none of their layers of that kind has one.
_BIASED = ("patch_embeddings.projection", "attention.o_proj", "mlp.fc1", "mlp.fc2", "mlp.gate_proj")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def rename_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of another ViT, of MAE or of SupMAE's authors under the names of [`SupMAEForPreTraining`] and
    [`SupMAEForImageClassification`]. Fused queries, keys and values are cut in three, gated layers in two, LayerScale (CaiT, arXiv
    2103.17239) is multiplied into the projection before it, and biases that a model does not have are 0.
    """
    renamed, scales = {}, {}
    for original, tensor in tensors.items():
        name = original
        for pattern, ours in _RENAMINGS.items():
            name = re.sub(pattern, ours, name, count=1)
        if _LEFT_OUT.search(name) or not tensor.numel():  # DINOv3's register tokens, of which there may be none
            continue
        if f"{original}_mask" in tensors:  # DINOv3's, of the keys' bias
            tensor = tensor * tensors[f"{original}_mask"].nan_to_num(0)
        if ".attention.qkv." in name:
            parts = zip(_PROJECTIONS, tensor.chunk(3))
            renamed |= {name.replace(".qkv.", f".{part}."): value.clone() for part, value in parts}
        elif ".gate_and_fc1." in name:
            for part, value in zip(("gate_proj", "fc1"), tensor.chunk(2)):
                renamed[name.replace("gate_and_fc1", part)] = value.clone()
        elif name.endswith(".layer_scale"):
            scales[name.removesuffix("layer_scale")] = tensor.flatten()
        else:
            renamed[name] = tensor
    for name in [name for name in renamed if name.endswith(".mlp.fc1.weight")]:
        layer = name.removesuffix("fc1.weight")
        output = renamed.get(f"{layer}fc2.weight")
        if output is not None and len(renamed[name]) == 2 * output.shape[1]:  # timm's gated layers
            for part in ("weight", "bias"):
                gate, value = renamed[f"{layer}fc1.{part}"].chunk(2)
                renamed |= {f"{layer}gate_proj.{part}": gate.clone(), f"{layer}fc1.{part}": value.clone()}
    _add_biases(renamed)
    for projection, scale in scales.items():
        # in float32, whatever the file's precision: it is loading that rounds
        weight, bias = (renamed[projection + part].float() for part in ("weight", "bias"))
        renamed |= {
            f"{projection}weight": weight * scale.float().unsqueeze(1),
            f"{projection}bias": bias * scale.float(),
        }
    for name, num_dims in (("cls_token", 3), ("position_embeddings", 3)):
        if (token := renamed.get(f"vit.embeddings.{name}")) is not None and token.ndim < num_dims:
            renamed[f"vit.embeddings.{name}"] = token.reshape(1, -1, token.shape[-1])
    return renamed


def _add_biases(tensors: dict[str, torch.Tensor]):
    def has_bias(kinds: Sequence[str]) -> bool:
        return any(
            name.endswith(tuple(f".{kind}.bias" for kind in kinds)) for name in tensors if name.startswith("vit.")
        )

    missing = [kind for kind in _BIASED if not has_bias([kind])]
    if has_bias(_PROJECTIONS):
        missing += [kind for kind in _PROJECTIONS if not has_bias([kind])]
    for name in [name for name in tensors if name.startswith("vit.")]:
        if name.endswith(tuple(f".{kind}.weight" for kind in missing)):
            tensors[name.removesuffix("weight") + "bias"] = tensors[name].new_zeros(len(tensors[name]))


def convert_tensors(
    tensors: Mapping[str, torch.Tensor], num_patches: int, has_classifier: bool = True
) -> dict[str, torch.Tensor]:
    """
    [`rename_tensors`], with position embeddings of class token and patches.

    Args:
        num_patches: Number of patches of the source's images.
        has_classifier: See [`Source`]; without it the source's is left out.
    """
    converted = rename_tensors(tensors)
    if not has_classifier:
        converted = {
            name: tensor for name, tensor in converted.items() if not name.startswith(("classifier.", "fc_norm."))
        }
    return fit_positions(converted, num_patches)


def fit_positions(tensors: dict[str, torch.Tensor], num_patches: int) -> dict[str, torch.Tensor]:
    """The result of [`rename_tensors`] with a position for the class token and for each patch, and for nothing else."""
    key, tensors = "vit.embeddings.", dict(tensors)
    is_distilled = tensors.pop(key + "distillation_token", None) is not None
    positions = tensors.get(key + "position_embeddings")
    if positions is None or key + "cls_token" not in tensors:
        return tensors
    num_others = positions.shape[1] - num_patches - 1
    if num_others < 0:  # timm's `no_embed_class`
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    elif num_others:  # of the distillation token, or of registers
        class_token, others, patches = positions.split([1, num_others, num_patches], dim=1)
        positions = torch.cat([class_token, patches], dim=1)
        if not is_distilled:
            tensors[key + "register_tokens"] = tensors[key + "register_tokens"] + others
    tensors[key + "position_embeddings"] = positions
    return tensors


def read_tensors(name: str, variant: str | None = None, **options) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint in a folder or on the Hub, under the names of its files.

    Args:
        variant, options: The same as for [`~transformers.PreTrainedModel.from_pretrained`].

    Raises:
        OSError: if there are no files of weights.
    """
    suffix = "" if variant is None else f".{variant}"
    for base, extension in (("model", "safetensors"), ("pytorch_model", "bin")):
        file = f"{base}{suffix}.{extension}"
        for found in (file, f"{base}.{extension}.index{suffix}.json"):
            try:
                path = cached_file(name, found, **options)
            except OSError as error:
                reason = error
                continue
            paths = [path] if found == file else get_checkpoint_shard_files(name, path, **options)[0]
            return {key: tensor for path in paths for key, tensor in load_state_dict(path).items()}
    raise OSError(
        f"'{name}' has no weights: neither model{suffix}.safetensors nor pytorch_model{suffix}.bin. ({reason})"
    ) from reason


# --- sizes ---


def to_pair(value) -> tuple[int, int]:
    """`(height, width)` of a size that is given as one number or as a pair."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def patch_resampling(size: tuple[int, int], new_size: tuple[int, int], device=None) -> torch.Tensor:
    """The matrix `(new pixels, pixels)` that resamples a patch of one channel bicubically, with antialiasing, as timm does."""
    basis = torch.eye(math.prod(size), device=device).reshape(-1, 1, *size)
    resampled = nn.functional.interpolate(basis, size=new_size, mode="bicubic", align_corners=False, antialias=True)
    return resampled.flatten(1).T


def trainable_as(new: nn.Module, old: nn.Module) -> nn.Module:
    """`new`, with what is frozen of `old` frozen."""
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    return new


def resample_projection(old: nn.Conv2d, patch_size: tuple[int, int]) -> nn.Conv2d:
    """
    The patch projection for another patch size: for patches that are resampled to the old size it gives what `old` gives, as
    nearly as can be (FlexiViT, arXiv 2212.08013, section 3.4).
    """
    weight, options = old.weight, {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.Conv2d(old.in_channels, old.out_channels, patch_size, stride=patch_size, **options)
    inverse = torch.linalg.pinv(patch_resampling(old.kernel_size, patch_size, weight.device))
    fitted = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(2) @ inverse
    new.weight.copy_(fitted.reshape(new.weight.shape))
    new.bias.copy_(old.bias)
    return trainable_as(new, old)


def resample_predictions(old: nn.Linear, old_size: tuple[int, int], patch_size: tuple[int, int]) -> nn.Linear:
    """The layer that predicts the pixels of a patch, for another patch size: its predictions are resampled."""
    resampling = patch_resampling(old_size, patch_size, old.weight.device)

    def resample(rows: torch.Tensor) -> torch.Tensor:  # (pixels * num_channels, ...)
        pixels = rows.to(torch.promote_types(rows.dtype, torch.float32)).reshape(math.prod(old_size), -1)
        return (resampling @ pixels).reshape(-1, *rows.shape[1:])

    rows = resample(old.weight)
    new = nn.Linear(old.in_features, len(rows), device=old.weight.device, dtype=old.weight.dtype)
    new.weight.copy_(rows)
    new.bias.copy_(resample(old.bias))
    return trainable_as(new, old)
