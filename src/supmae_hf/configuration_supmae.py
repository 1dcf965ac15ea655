# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""SupMAE model configuration."""

import dataclasses
import math
import numbers

from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .conversion_supmae import read_config, to_pair


def check_count(field: str, value: int):
    """Raise a `ValueError` for more classes or tokens than a list of their names could hold."""
    if value > 1_000_000:
        raise ValueError(f"`{field}` must be at most 1,000,000, got {value:,}.")


class SupMAEConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of SupMAE, the supervised masked autoencoder of [arXiv 2205.14540](https://arxiv.org/abs/2205.14540).

    The fields of [`~transformers.ViTMAEConfig`] keep their names and meaning; where the paper differs from ViTMAE's
    defaults (a one-block decoder, normalised pixel targets, LayerNorm epsilon 1e-6) the paper's value is the default.
    The defaults describe the paper's ViT-B/16. `num_labels`, `id2label` and `problem_type` mean what they mean in
    every Transformers configuration.

    Args:
        hidden_size (`int`, *optional*, defaults to 768): Width of the encoder.
        num_hidden_layers (`int`, *optional*, defaults to 12): Encoder blocks.
        num_attention_heads (`int`, *optional*, defaults to 12): Attention heads of each encoder block.
        intermediate_size (`int`, *optional*, defaults to 3072): Hidden width of the encoder's MLPs.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the MLPs.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout after attention and MLP.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of the attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the class token, the mask token and the fine-tuning classifier. Other weights are
            Xavier-uniform, as in MAE.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or pair `(height, width)`, *optional*, defaults to 224): Input size in pixels.
        patch_size (`int` or pair `(height, width)`, *optional*, defaults to 16): Patch size in pixels.
        num_channels (`int`, *optional*, defaults to 3): Image channels, 1 or more.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        use_cls_token (`bool`, *optional*, defaults to `True`): Whether there is a class token (SigLIP and I-JEPA have none).
        num_register_tokens (`int`, *optional*, defaults to 0):
            Register tokens (arXiv 2309.16588), between class token and patches in the encoder; the decoder does not see them.
        use_absolute_position_embeddings (`bool`, *optional*, defaults to `True`):
            Whether tokens have position embeddings (DINOv3's do not).
        interpolate_antialias (`bool`, *optional*, defaults to `False`):
            Whether these are resampled with antialiasing for images of another size, as timm and DINOv2 with registers do.
        rope_theta (`float`, *optional*):
            Base of rotary positions, as DINOv3 has them (arXiv 2508.10104, section 3.2); none by default. Visible patches keep
            their own angles.
        use_gated_mlp (`bool`, *optional*, defaults to `False`):
            Whether the encoder's MLPs are gated: SwiGLU if `hidden_act` is `"silu"`, as in the giant DINOv2 and DINOv3 models.
        use_pre_layernorm (`bool`, *optional*, defaults to `False`):
            Whether a LayerNorm comes before the first block (CLIP).
        decoder_num_attention_heads (`int`, *optional*, defaults to 16): Attention heads of each decoder block.
        decoder_hidden_size (`int`, *optional*, defaults to 512): Width of the decoder.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 1): Decoder blocks (MAE has 8).
        decoder_intermediate_size (`int`, *optional*, defaults to 2048): Hidden width of the decoder's MLPs.
        mask_ratio (`float`, *optional*, defaults to 0.75): Share of the patches hidden in pre-training, in `[0, 1)`.
        norm_pix_loss (`bool`, *optional*, defaults to `True`):
            Whether the reconstruction target is each patch's pixels normalised by that patch's mean and variance.
        classifier_hidden_size (`int`, *optional*, defaults to 3072):
            Hidden width of the pre-training classification head; 0 makes the head one linear layer.
        classification_loss_weight (`float`, *optional*, defaults to 0.01):
            Weight of the classification loss; 0 is plain MAE.
        reconstruction_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the reconstruction loss; 0 is supervised training on the visible patches.
        classification_temperature (`float`, *optional*, defaults to 10.0):
            Class logits are divided by it before the pre-training classification loss.
        use_mean_pooling (`bool`, *optional*, defaults to `True`):
            Whether the classifiers see the average over patch tokens; `False` takes the class token.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth rate of the last encoder block, rising linearly from 0 in the first; for fine-tuning.
        supervision (`str`, `list[str]` or `dict[str, float]`, *optional*, defaults to `"labels"`):
            What the supervised branch learns from: `"labels"` (the paper's), `"captions"`, `"dense"`, or several. A dict gives
            each its own weight in the place of `classification_loss_weight`.
        caption_vocab_size (`int`, *optional*, defaults to 0): Tokens that captions are made of.
        dense_classes (`list[str]` or `int`, *optional*): Classes of pixels, or how many.
        dense_hidden_patches (`bool`, *optional*, defaults to `False`):
            Whether the classes of hidden patches are predicted, too, from the decoder's tokens.
        out_features (`list[str]`, *optional*):
            Feature maps of [`SupMAEBackbone`], in order: `"stem"` (the patch embeddings), `"stage1"` (output of the first
            block), `"stage2"`, ... By default the last block's.
        out_indices (`list[int]`, *optional*): The same by number: 0 for the patch embeddings, 1 for the first block, ...
        add_fpn (`bool`, *optional*, defaults to `False`):
            Whether [`SupMAEBackbone`], as in BEiT, brings its four feature maps to 4, 2, 1 and 1/2 times the resolution
            of the patches.
        apply_layernorm (`bool`, *optional*, defaults to `False`):
            Whether [`SupMAEBackbone`] normalises its feature maps by the encoder's last LayerNorm, as DINOv2's backbone does.
        reshape_hidden_states (`bool`, *optional*, defaults to `True`):
            Whether [`SupMAEBackbone`] gives maps; `False` gives tokens, the class token first, as DPT and Depth Anything
            take them.

    Raises:
        ValueError: if the fields contradict each other; the message names the field, its value and what to change.

    Example:

    ```python
    >>> from supmae_hf import SupMAEConfig, SupMAEForPreTraining

    >>> configuration = SupMAEConfig(num_labels=1000)  # the paper's ViT-B/16
    >>> model = SupMAEForPreTraining(configuration)

    ```"""

    model_type = "supmae"
    _auto_class = "AutoConfig"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    use_cls_token: bool = True
    num_register_tokens: int = 0
    use_absolute_position_embeddings: bool = True
    interpolate_antialias: bool = False
    rope_theta: float | None = None
    use_gated_mlp: bool = False
    use_pre_layernorm: bool = False
    decoder_num_attention_heads: int = 16
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 1
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    classifier_hidden_size: int = 3072
    classification_loss_weight: float = 0.01
    reconstruction_loss_weight: float = 1.0
    classification_temperature: float = 10.0
    use_mean_pooling: bool = True
    drop_path_rate: float = 0.0
    supervision: str | list[str] | dict[str, float] = "labels"
    caption_vocab_size: int = 0
    dense_classes: list[str] | int | None = None
    dense_hidden_patches: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    add_fpn: bool = False
    apply_layernorm: bool = False
    reshape_hidden_states: bool = True

    def __post_init__(self, **kwargs):
        for field, value in (("num_labels", kwargs.get("num_labels")), ("dense_classes", self.dense_classes)):
            if isinstance(value, int):
                check_count(field, value)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.set_output_features_output_indices(out_features, None if out_features else out_indices)
        if out_features and out_indices and [i % len(self.stage_names) for i in out_indices] != self.out_indices:
            raise ValueError(
                f"`out_indices` {out_indices} are not the places of `out_features` {out_features} in "
                f"{self.stage_names}: give one of them."
            )
        super().__post_init__(**kwargs)
        if self.hidden_size:  # Transformers' common tests make configurations of width 0, of which there is no model
            self.check()

    def check(self):
        """Raise a `ValueError` if the fields contradict each other. Models call it again, for fields set later."""
        for field in dataclasses.fields(self):
            number = {int: numbers.Integral, float: numbers.Real}.get(field.type)
            if number and not isinstance(getattr(self, field.name), number):
                raise ValueError(
                    f"`{field.name}` must be a number such as {field.default}, got {getattr(self, field.name)!r}."
                )
        if isinstance(self.hidden_act, str) and self.hidden_act not in ACT2FN:
            raise ValueError(
                f"`hidden_act` must be an activation of Transformers such as gelu, got '{self.hidden_act}'."
            )
        for field in ("image_size", "patch_size"):
            try:
                height, width = to_pair(getattr(self, field))
            except (TypeError, ValueError):
                height = width = 0
            if height < 1 or width < 1:
                raise ValueError(
                    f"`{field}` must be a positive number of pixels or a pair (height, width), "
                    f"got {getattr(self, field)!r}."
                )
        image_size, patch_size = to_pair(self.image_size), to_pair(self.patch_size)
        if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
            raise ValueError(
                f"`image_size` {self.image_size} is not a multiple of `patch_size` {self.patch_size}: choose an image "
                f"size such as {image_size[0] // patch_size[0] * patch_size[0] or patch_size[0]}, or another patch size."
            )
        for field in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")
        for part in ("", "decoder_"):
            width, heads = getattr(self, f"{part}hidden_size"), getattr(self, f"{part}num_attention_heads")
            if width % heads:
                raise ValueError(
                    f"`{part}hidden_size` {width} is not a multiple of `{part}num_attention_heads` {heads}: "
                    "change one of them."
                )
            if width % 4:
                raise ValueError(
                    f"`{part}hidden_size` {width} is not a multiple of 4, which the sine-cosine position embedding needs."
                )
        if self.num_register_tokens < 0:
            raise ValueError(f"`num_register_tokens` must be at least 0, got {self.num_register_tokens}.")
        if not self.use_cls_token and not self.use_mean_pooling:
            raise ValueError("Without a class token (`use_cls_token=False`) `use_mean_pooling` must be `True`.")
        if self.rope_theta is not None and (self.rope_theta <= 0 or self.hidden_size // self.num_attention_heads % 4):
            raise ValueError(
                f"Rotary positions need a `rope_theta` above 0 and heads of a multiple of 4 features, got {self.rope_theta} and "
                f"{self.hidden_size // self.num_attention_heads}."
            )
        if not 0 <= self.mask_ratio < 1 or self.num_visible_patches() < 1:
            raise ValueError(
                f"`mask_ratio` {self.mask_ratio} leaves no visible patch of {self.num_patches}: it must be at least 0 "
                f"and at most {math.floor(1e4 * (1 - 1 / self.num_patches)) / 1e4} for this image and patch size."
            )
        if self.classifier_hidden_size < 0:
            raise ValueError(
                f"`classifier_hidden_size` must be 0 (linear head) or more, got {self.classifier_hidden_size}."
            )
        if self.classification_temperature <= 0:
            raise ValueError(f"`classification_temperature` must be above 0, got {self.classification_temperature}.")
        for field in ("classification_loss_weight", "reconstruction_loss_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"`{field}` must be at least 0, got {getattr(self, field)}.")
        is_named = isinstance(self.supervision, (str, list, tuple, dict)) and len(self.supervision) > 0
        if not is_named or not all(isinstance(kind, str) for kind in self.supervision):
            raise ValueError(
                '`supervision` must be a kind such as "labels", a list of kinds, or a dict of kinds and weights, got '
                f"{self.supervision!r}."
            )
        weights = self.supervision_weights.values()
        if not all(isinstance(weight, (int, float)) and 0 <= weight < math.inf for weight in weights):
            raise ValueError(f"The weights of `supervision` must be at least 0, got {self.supervision}.")
        if not any(weights) and self.reconstruction_loss_weight == 0:
            raise ValueError(
                "`classification_loss_weight` and `reconstruction_loss_weight` are both 0, which leaves nothing to "
                "train: set at least one of them above 0."
            )
        for field in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be in [0, 1), got {getattr(self, field)}.")

    @property
    def supervision_weights(self) -> dict[str, float]:
        """Weight of the loss by kind of supervision."""
        if isinstance(self.supervision, dict):
            return dict(self.supervision)
        kinds = [self.supervision] if isinstance(self.supervision, str) else self.supervision
        return dict.fromkeys(kinds, self.classification_loss_weight)

    @property
    def num_dense_classes(self) -> int:
        classes = self.dense_classes or 0
        return classes if isinstance(classes, int) else len(classes)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        As in every Transformers configuration. That of another ViT (ViT, DeiT, DINO, DINOv2, ViTMAE, ViT-MSN, timm) becomes
        SupMAE's. Raises a `ValueError` that names the part if SupMAE cannot be that model.
        """
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type", cls.model_type) != cls.model_type:
            config = {"model_type": cls.model_type, **read_config(config, str(pretrained_model_name_or_path)).fields}
        return config, kwargs

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that [`SupMAEBackbone`] can give."""
        return ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]

    def to_dict(self) -> dict:
        fields = super().to_dict()
        if fields["out_indices"] == [self.num_hidden_layers]:  # the default, which follows the number of blocks
            del fields["out_features"], fields["out_indices"]
        return fields

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per column and per row, `(height, width)`, of an image of `image_size`."""
        image_size, patch_size = to_pair(self.image_size), to_pair(self.patch_size)
        return image_size[0] // patch_size[0], image_size[1] // patch_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of the encoder before those of the patches: class token and register tokens."""
        return self.use_cls_token + self.num_register_tokens

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return self.grid_size[0] * self.grid_size[1]

    def num_visible_patches(self, num_patches: int | None = None, mask_ratio: float | None = None) -> int:
        """Patches that masking leaves visible, rounded down as in MAE; a `mask_ratio` of `k / num_patches` hides `k`."""
        num_patches = self.num_patches if num_patches is None else num_patches
        mask_ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return math.floor(num_patches * (1 - mask_ratio) + 1e-6)  # which may come out a little below a whole number


__all__ = ["SupMAEConfig"]
