# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""SupMAE, the supervised masked autoencoder of arXiv 2205.14540, in the conventions of Transformers' ViTMAE."""

import contextlib
import copy
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoTokenizer
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_supmae import SupMAEConfig, to_pair
from .conversion_supmae import (
    convert_tensors,
    find_adapted,
    find_source,
    load_adapter,
    read_tensors,
    resample_predictions,
    resample_projection,
    without_load_report,
)
from .supervision_supmae import (
    SUPERVISIONS,
    UNLABELED,
    SupMAECaptionHead,
    SupMAEClassificationHead,
    SupMAESupervision,
    at_least_float32,
    classification_loss,
    first_of,
    gather_tokens,
)


logger = logging.get_logger(__name__)


@dataclass
class SupMAEModelOutput(ModelOutput):
    """
    Output of [`SupMAEModel`]. All patches are visible, in raster order, unless the call asked for masking; `mask` and
    `ids_restore` are `None` then.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_prefix_tokens + num_visible_patches, hidden_size)`):
            Class token (and register tokens, if there are any), then the visible patch tokens, after the final LayerNorm; masked
            calls return them in shuffled order.
        mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`): 1 for hidden patches, 0 for visible ones.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
            For each patch in raster order its place in the shuffled order, which begins with the visible ones.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            Average of the visible patch tokens (SupMAE's global pooling), or the class token if
            `config.use_mean_pooling` is `False`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): Input of the first block and output of every block.
        attentions (`tuple(torch.FloatTensor)`, *optional*): Attention weights of every block.
    """

    last_hidden_state: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SupMAEForPreTrainingOutput(ModelOutput):
    """
    Output of [`SupMAEForPreTraining`]. `mask`, `ids_restore`, and the encoder's `hidden_states` and `attentions` as in
    [`SupMAEModelOutput`].

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            SupMAE's objective: the two losses, weighted by `config.reconstruction_loss_weight` and
            `config.classification_loss_weight` (or by `config.supervision`).
        reconstruction_loss (`torch.FloatTensor` of shape `()`):
            Mean squared error over the pixels of the hidden patches; 0 if no patch is hidden.
        classification_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Mean loss over the labelled images, 0 if there are none. `None` without `labels`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`):
            Pixel predictions of every patch, normalised per patch if `config.norm_pix_loss`; for images see
            [`~SupMAEForPreTraining.predicted_pixel_values`].
        class_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
            Class scores, not divided by the temperature. `None` while training without `labels`.
        supervision_losses, supervision_logits (`dict[str, torch.FloatTensor]`, *optional*):
            The same by kind for the others of `config.supervision`: see [`SupMAECaptionHead`], [`SupMAEDenseHead`].
    """

    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    classification_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    class_logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    supervision_losses: dict[str, torch.FloatTensor] | None = None
    supervision_logits: dict[str, torch.FloatTensor] | None = None


def sincos_position_embeddings(grid_size: tuple[int, int], dim: int, device=None) -> torch.Tensor:
    """
    Fixed position embeddings of MAE for a class token (zeros) and a grid of patches, shape
    `(1, 1 + height * width, dim)`: the first half encodes the column, the second half the row, each as sines, then
    cosines, of `dim / 4` frequencies from 1 down to 1/10000.
    """
    height, width = grid_size
    options = {"dtype": torch.float64, "device": device}
    if device is not None and device.type == "mps":  # which has no float64
        options["dtype"] = torch.float32
    frequencies = 10000.0 ** -(torch.arange(dim // 4, **options) / (dim // 4))
    rows = torch.arange(height, **options).repeat_interleave(width)
    columns = torch.arange(width, **options).repeat(height)
    angles = [torch.outer(position, frequencies) for position in (columns, rows)]
    patches = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([patches.new_zeros(1, dim), patches]).float().unsqueeze(0)


def interpolate_position_embeddings(
    position_embeddings: torch.Tensor,
    grid_size: tuple[int, int],
    new_grid_size: tuple[int, int],
    antialias: bool = False,
) -> torch.Tensor:
    """Position embeddings `(1, [1 +] num_patches, dim)` of one patch grid, resampled bicubically to another."""
    if grid_size == new_grid_size:
        return position_embeddings
    num_class_tokens = position_embeddings.shape[1] - math.prod(grid_size)
    class_token, patches = position_embeddings[:, :num_class_tokens], position_embeddings[:, num_class_tokens:]
    patches = at_least_float32(patches).reshape(1, *grid_size, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(
        patches, size=new_grid_size, mode="bicubic", align_corners=False, antialias=antialias
    )
    return torch.cat([class_token, patches.flatten(2).transpose(1, 2).to(class_token.dtype)], dim=1)


def fit_position_embeddings(
    position_embeddings: torch.Tensor,
    grid_size: tuple[int, int],
    new_grid_size: tuple[int, int],
    antialias: bool = False,
) -> torch.Tensor:
    """
    Position embeddings `(1, [1 +] num_patches, dim)` for another patch grid: sine-cosine ones made anew, as the authors would,
    learnt ones by [`interpolate_position_embeddings`].
    """
    (_, length, dim), device, dtype = position_embeddings.shape, position_embeddings.device, position_embeddings.dtype
    fixed = sincos_position_embeddings(grid_size, dim, device)[:, -length:].to(dtype)
    if torch.allclose(position_embeddings.float(), fixed.float(), rtol=0, atol=1e-5):
        length += math.prod(new_grid_size) - math.prod(grid_size)
        return sincos_position_embeddings(new_grid_size, dim, device)[:, -length:].to(dtype)
    return interpolate_position_embeddings(position_embeddings, grid_size, new_grid_size, antialias)


def rotary_position_embeddings(
    grid_size: tuple[int, int], head_dim: int, theta: float, device=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosines and sines `(num_patches, head_dim)` by which DINOv3 turns queries and keys (arXiv 2508.10104, section 3.2): angles of
    the centres of the patches, in [-1, 1], the row's in the first quarter, the column's in the second, and both again.
    """
    rows, columns = (
        2 * (torch.arange(0.5, size, dtype=torch.float32, device=device) / size) - 1 for size in grid_size
    )
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # (num_patches, 2)
    periods = theta ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=device)  # (head_dim / 4,)
    angles = (2 * math.pi * centres.unsqueeze(-1) / periods).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def patchify(images: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """
    Images `(batch_size, num_channels, height, width)` to patches `(batch_size, num_patches, patch_height * patch_width *
    num_channels)` in raster order.
    """
    batch_size, num_channels, height, width = images.shape
    (patch_height, patch_width), rows, columns = patch_size, height // patch_size[0], width // patch_size[1]
    patches = images.reshape(batch_size, num_channels, rows, patch_height, columns, patch_width)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, rows * columns, -1)


class SupMAEPatchEmbeddings(nn.Module):
    """
    Images `(batch_size, num_channels, height, width)` to patch tokens `(batch_size, num_patches, hidden_size)`, or to
    those of the patches `ids` `(batch_size, num_ids)` alone.
    """

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        patch_size = to_pair(config.patch_size)
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixel_values: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        if ids is not None:  # the patches side by side, as an image of one row
            patch_size = self.projection.kernel_size
            patches = gather_tokens(patchify(pixel_values, patch_size), ids)
            patches = patches.reshape(*ids.shape, *patch_size, -1).permute(0, 4, 2, 1, 3)
            pixel_values = patches.reshape(ids.shape[0], -1, patch_size[0], ids.shape[1] * patch_size[1])
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class SupMAEEmbeddings(nn.Module):
    """
    Class token, register tokens (arXiv 2309.16588) and patch tokens with their position embeddings, those of all patches or only
    the visible ones.
    """

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_cls_token else None
        self.register_tokens = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.patch_embeddings = SupMAEPatchEmbeddings(config)
        self.position_embeddings = None
        if config.use_absolute_position_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, config.use_cls_token + config.num_patches, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.use_pre_layernorm else None

    def patch_grid(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> tuple[int, int]:
        """Patch rows and columns of a batch of images. Raises a `ValueError` if channels or size do not fit the model."""
        if pixel_values is None:
            raise ValueError("You have to specify `pixel_values`.")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"Expected `pixel_values` of shape (batch_size, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}: convert the images, or set `num_channels` in the configuration."
            )
        height, width = pixel_values.shape[-2:]
        patch_height, patch_width = to_pair(self.config.patch_size)
        if not interpolate_pos_encoding and (height, width) != to_pair(self.config.image_size):
            expected = "x".join(map(str, to_pair(self.config.image_size)))
            raise ValueError(
                f"Images are {height}x{width} pixels (height x width), but the model was made for {expected}: resize "
                "them, for example with the model's image processor, or pass `interpolate_pos_encoding=True`."
            )
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"Images of {height}x{width} pixels (height x width) cannot be cut into patches of "
                f"{patch_height}x{patch_width}: resize or pad them to a multiple of the patch size."
            )
        return height // patch_height, width // patch_width

    def shuffle(
        self,
        shape: tuple[int, int],
        noise: torch.Tensor | None,
        mask: torch.Tensor | None,
        mask_ratio: float | None,
        device: torch.device,
    ) -> tuple[torch.Tensor, int]:
        """
        An order of the patches that has the visible ones first, of `shape` `(batch_size, num_patches)`, and how many those
        are. Raises a `ValueError` if the arguments (see [`SupMAEModel`]) have another shape or leave no visible patch.
        """
        num_patches = shape[1]
        if mask is not None and (noise is not None or mask_ratio is not None):
            raise ValueError("`mask` says which patches are hidden: leave out `noise` and `mask_ratio`.")
        for name, value in (("noise", noise), ("mask", mask)):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"`{name}` must have shape (batch_size, num_patches) = {shape}, got {tuple(value.shape)}."
                )
        if mask is not None:
            hidden = mask.to(device) == 1
            counts, is_binary = hidden.sum(dim=1), (hidden | (mask.to(device) == 0)).all()
            if torch.compiler.is_compiling():  # shapes cannot depend on values: as many as `config.mask_ratio` says
                num_visible = self.config.num_visible_patches(num_patches)
                is_right = is_binary & (counts == num_patches - num_visible).all()
                assert is_right, "a compiled model takes masks that hide `config.mask_ratio` of the patches"
                return torch.argsort(hidden.int(), dim=1, stable=True), num_visible
            num_hidden = int(counts[0])
            if not is_binary or not (counts == num_hidden).all() or num_hidden == num_patches:
                raise ValueError(
                    "`mask` must be 1 for hidden and 0 for visible patches, with the same number of visible patches, at "
                    f"least one, in every image; got {counts.tolist()} hidden of {num_patches}."
                )
            return torch.argsort(hidden.int(), dim=1, stable=True), num_patches - num_hidden
        num_visible = self.config.num_visible_patches(num_patches, mask_ratio)
        if num_visible < 1 or num_visible > num_patches:
            ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
            raise ValueError(
                f"`mask_ratio` {ratio} leaves no visible patch of {num_patches}: use a ratio in [0, 1) that leaves at "
                "least one."
            )
        noise = torch.rand(shape, device=device) if noise is None else noise.to(device)
        return torch.argsort(noise, dim=1), num_visible

    def forward(self, pixel_values: torch.Tensor, ids_keep: torch.Tensor | None = None) -> torch.Tensor:
        """
        Tokens `(batch_size, num_prefix_tokens + num_visible_patches, hidden_size)` of the patches `ids_keep` `(batch_size,
        num_visible_patches)`, by default of all; no others are embedded.
        """
        batch_size, config = pixel_values.shape[0], self.config
        patches, prefix = self.patch_embeddings(pixel_values, ids_keep), self.cls_token
        if self.position_embeddings is not None:
            patch_height, patch_width = to_pair(config.patch_size)
            grid_size = pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width
            positions = interpolate_position_embeddings(
                self.position_embeddings, config.grid_size, grid_size, config.interpolate_antialias
            )
            if prefix is not None:
                prefix, positions = prefix + positions[:, :1], positions[:, 1:]
            if ids_keep is not None:
                positions = gather_tokens(positions.expand(batch_size, -1, -1), ids_keep)
            patches = patches + positions
        tokens = [token.expand(batch_size, -1, -1) for token in (prefix, self.register_tokens) if token is not None]
        tokens = torch.cat([*tokens, patches], dim=1)
        return tokens if self.pre_layernorm is None else self.pre_layernorm(tokens)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain PyTorch: `(batch_size, num_heads, length, head_dim)` each; also returns the weights."""
    weights = torch.matmul(query * scaling, key.transpose(2, 3)).softmax(dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Queries or keys `(batch_size, num_heads, length, head_dim)` whose patches, the last ones, are turned by the angles of
    [`rotary_position_embeddings`], `([batch_size, 1,] num_patches, head_dim)`.
    """
    prefix, patches = states.split([states.shape[2] - cos.shape[-2], cos.shape[-2]], dim=2)
    first, second = patches.chunk(2, dim=-1)
    patches = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([prefix, patches.to(prefix.dtype)], dim=2)


class SupMAEAttention(nn.Module):
    """Multi-head self-attention of encoder (`hidden_size=config.hidden_size`) and decoder."""

    def __init__(self, config: SupMAEConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            # MAE initialises the three as one matrix, whose Xavier bound is smaller by this factor
            projection.xavier_gain = math.sqrt(0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]  # (batch_size, length)
        hidden_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1)), weights


class SupMAEMLP(nn.Module):
    """Two linear layers; gated ones (arXiv 2002.05202, SwiGLU if `config.hidden_act` is silu) have a third beside the first."""

    def __init__(self, config: SupMAEConfig, hidden_size: int, intermediate_size: int, is_gated: bool = False):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.gate_proj = nn.Linear(hidden_size, intermediate_size) if is_gated else None
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.fc2(self.activation_fn(self.fc1(hidden_states)))
        return self.fc2(self.activation_fn(self.gate_proj(hidden_states)) * self.fc1(hidden_states))


class SupMAEDropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole images and scales the rest to the same expectation."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1.0 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class SupMAELayer(GradientCheckpointingLayer):
    """A pre-norm Transformer block, the same in encoder and decoder."""

    def __init__(
        self,
        config: SupMAEConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
        is_gated: bool = False,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SupMAEAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = SupMAEMLP(config, hidden_size, intermediate_size, is_gated)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SupMAEDropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attention_output))
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(mlp_output))


class SupMAEDecoder(nn.Module):
    """MAE's decoder (arXiv 2111.06377): the pixels of every patch from the encoded visible patches."""

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        self.config = config
        hidden_size = config.decoder_hidden_size
        self.decoder_embed = nn.Linear(config.hidden_size, hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, config.use_cls_token + config.num_patches, hidden_size))
        self.decoder_layers = nn.ModuleList(
            SupMAELayer(config, hidden_size, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(hidden_size, math.prod(to_pair(config.patch_size)) * config.num_channels)

    def forward(
        self, hidden_states: torch.Tensor, ids_restore: torch.Tensor, grid_size: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Predict the pixels of every patch.

        Args:
            hidden_states: Encoded tokens `(batch_size, num_prefix_tokens + num_visible_patches, hidden_size)`.
            ids_restore: Undoes the order of the patches, see [`SupMAEModelOutput`].
            grid_size: Rows and columns of patches, by default the configuration's.

        Returns:
            Predictions `(batch_size, num_patches, patch_height * patch_width * num_channels)` and the tokens `(batch_size,
            num_patches, decoder_hidden_size)` that they are made from.
        """
        num_class_tokens, num_prefix_tokens = int(self.config.use_cls_token), self.config.num_prefix_tokens
        hidden_states = self.decoder_embed(hidden_states)
        visible = hidden_states[:, num_prefix_tokens:]  # (batch_size, num_visible_patches, decoder_hidden_size)
        batch_size, num_visible, hidden_size = visible.shape
        num_hidden = ids_restore.shape[1] - num_visible
        mask_tokens = self.mask_token.to(hidden_states.dtype).expand(batch_size, num_hidden, hidden_size)
        patches = torch.cat([visible, mask_tokens], dim=1)
        patches = gather_tokens(patches, ids_restore.to(patches.device))  # in raster order
        hidden_states = torch.cat([hidden_states[:, :num_class_tokens], patches], dim=1)  # registers end here
        hidden_states = hidden_states + interpolate_position_embeddings(
            self.decoder_pos_embed, self.config.grid_size, grid_size or self.config.grid_size
        )
        for layer in self.decoder_layers:
            hidden_states = layer(hidden_states)
        hidden_states = self.decoder_norm(hidden_states)
        return self.decoder_pred(hidden_states)[:, num_class_tokens:], hidden_states[:, num_class_tokens:]


# Arguments of `from_pretrained` that say where a checkpoint is
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")

# The parts of a pre-training checkpoint beside the encoder, which other classes leave out
_PRETRAINING_PARTS = [r"^decoder\.", r"^classification_head\.", r"^supervision\."]

# What a saved checkpoint says of the copies of this file and the configuration's that lie beside it
_AUTO_MAP = {
    "AutoConfig": "configuration_supmae.SupMAEConfig",
    "AutoModel": "modeling_supmae.SupMAEModel",
    "AutoModelForPreTraining": "modeling_supmae.SupMAEForPreTraining",
    "AutoModelForImageClassification": "modeling_supmae.SupMAEForImageClassification",
    "AutoBackbone": "modeling_supmae.SupMAEBackbone",
}


class SupMAEPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and the features that all SupMAE models share."""

    config: SupMAEConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over the batch, which Trainer scales under gradient accumulation
    _no_split_modules = ["SupMAEEmbeddings", "SupMAELayer", "SupMAEDecoder"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SupMAELayer, "attentions": SupMAEAttention}
    _input_embed_layer = "patch_embeddings"
    trains_positions = False  # of the encoder

    def __init__(self, config: SupMAEConfig, *args, **kwargs):
        config.check()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """MAE's initialisation: Xavier-uniform matrices, sine-cosine positions, normal class and mask tokens."""
        spread = [parameter for parameter in module.parameters(recurse=False) if hasattr(parameter, "ds_status")]
        if any(parameter.numel() == 0 for parameter in spread):  # inside deepspeed.zero.Init
            # not an import, which remote code would ask everybody to install
            with sys.modules["deepspeed"].zero.GatheredParameters(spread, modifier_rank=0):
                return self._init_weights(module)
        if isinstance(module, nn.Linear):
            if hasattr(module, "init_std"):
                init.normal_(module.weight, std=module.init_std)
            else:
                init.xavier_uniform_(module.weight, gain=getattr(module, "xavier_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):  # the patch projection, like the linear layer that it is
            fan_in, fan_out = module.in_channels * math.prod(module.kernel_size), module.out_channels
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        elif isinstance(module, (SupMAEEmbeddings, SupMAEDecoder)):
            is_decoder = isinstance(module, SupMAEDecoder)
            for token in [module.mask_token] if is_decoder else [module.cls_token, module.register_tokens]:
                if token is not None:
                    init.normal_(token, std=self.config.initializer_range)
            positions = module.decoder_pos_embed if is_decoder else module.position_embeddings
            if positions is not None:
                fixed = sincos_position_embeddings(self.config.grid_size, positions.shape[-1], positions.device)
                init.copy_(positions, fixed[:, -positions.shape[1] :])
        elif isinstance(module, SupMAECaptionHead):
            init.zeros_(module.document_frequency)
            init.zeros_(module.num_captions)
        else:  # norms, and the transposed convolutions of the feature pyramid
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        config: PreTrainedConfig | str | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """
        As in every Transformers model, and more:

        - The folder or repository may hold another ViT: ViT, DeiT (whose distillation token is left out), DINO, DINOv2 (with
          registers, too), DINOv3, ViTMAE, ViT-MSN, BEiT without relative positions, the vision towers of CLIP and SigLIP, I-JEPA,
          or timm's `vit_*` and `deit_*`. Its encoder computes the same here, and so does its classifier in a
          [`SupMAEForImageClassification`] if it reads the class token or the mean of the patch tokens.
        - `image_size` and `patch_size` may be others than the checkpoint's, in `config` or as arguments: see
          [`~SupMAEPreTrainedModel.set_input_size`].

        Raises:
            OSError: if there is no such checkpoint.
            ValueError: if SupMAE cannot be the model in it; the message names the part.
        """
        name, sizes = pretrained_model_name_or_path, {}
        options = {option: kwargs[option] for option in _HUB_OPTIONS if option in kwargs}
        if isinstance(config, (str, os.PathLike)):
            config, kwargs = SupMAEConfig.from_pretrained(config, return_unused_kwargs=True, **kwargs)
        source = None if name is None else find_source(name, **options)
        adapted = None if source is not None or name is None else find_adapted(name, **options)
        if adapted is not None:
            name, source = adapted, find_source(adapted)
        if source is not None:
            loaded_at = SupMAEConfig.from_dict(source.fields)
            if config is None:
                sizes = {field: kwargs.pop(field, None) for field in ("image_size", "patch_size")}
            else:
                sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
                config = copy.deepcopy(config)
                config.image_size, config.patch_size = loaded_at.image_size, loaded_at.patch_size
            if source.is_foreign:
                variant, tensors = kwargs.pop("variant", None), kwargs.pop("state_dict", None)
                if tensors is None:
                    tensors = read_tensors(name, variant, **(options if adapted is None else {}))
                kwargs["state_dict"] = convert_tensors(tensors, loaded_at.num_patches, source.has_classifier)
                config, name = name if config is None else config, None
        is_foreign = source is not None and source.is_foreign
        with without_load_report() if is_foreign else contextlib.nullcontext():
            model, info = super().from_pretrained(name, *model_args, config=config, output_loading_info=True, **kwargs)
        if is_foreign:
            model.name_or_path = model.config.name_or_path = str(adapted or pretrained_model_name_or_path)
            source.check(info, model.name_or_path, cls.__name__)
        if "captions" in getattr(model, "supervision", ()):
            with contextlib.suppress(OSError, ValueError):  # it may lie elsewhere
                model.tokenizer = AutoTokenizer.from_pretrained(
                    pretrained_model_name_or_path, trust_remote_code=False, **options
                )
        model.set_input_size(**sizes)
        if adapted is not None:
            load_adapter(model, pretrained_model_name_or_path, source, **options)
        model.freeze_positions()  # Transformers loads every parameter as trainable
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def set_input_size(
        self,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ):
        """
        Make the model one for images and patches of other sizes, in pixels (numbers, or pairs `(height, width)`).

        Learnt position embeddings are resampled bicubically to the new grid of patches; sine-cosine ones are made anew. The
        patch projection gives for patches that are resampled to its old size what it gave before, as nearly as can be
        (FlexiViT, arXiv 2212.08013, section 3.4); the decoder's predictions are resampled likewise.

        Raises:
            ValueError: if the sizes do not fit each other, or the parameters are spread over processes (ZeRO-3); the model is
                as before then.
        """
        config, old, new = self.config, copy.deepcopy(self.config), copy.deepcopy(self.config)
        new.image_size = old.image_size if image_size is None else image_size
        new.patch_size = old.patch_size if patch_size is None else patch_size
        new.check()
        old_patch, new_patch = to_pair(old.patch_size), to_pair(new.patch_size)
        if old_patch == new_patch and to_pair(old.image_size) == to_pair(new.image_size):
            return
        if self.base_model.embeddings.patch_embeddings.projection.weight.numel() == 0:  # ZeRO-3
            raise ValueError(
                "The sizes of a model whose parameters are spread over processes cannot be changed: change them first, with "
                "examples/convert_checkpoint.py, or `set_input_size` and `save_pretrained`."
            )
        config.image_size, config.patch_size = new.image_size, new.patch_size

        def fit(module: nn.Module, name: str):
            positions = getattr(module, name)
            fitted = fit_position_embeddings(positions, old.grid_size, new.grid_size, old.interpolate_antialias)
            setattr(module, name, nn.Parameter(fitted, requires_grad=positions.requires_grad))

        embeddings, decoder = self.base_model.embeddings, getattr(self, "decoder", None)
        if embeddings.position_embeddings is not None:
            fit(embeddings, "position_embeddings")
        if decoder is not None:
            fit(decoder, "decoder_pos_embed")
        if old_patch != new_patch:
            patches = embeddings.patch_embeddings
            patches.projection = resample_projection(patches.projection, new_patch)
            if decoder is not None:
                decoder.decoder_pred = resample_predictions(decoder.decoder_pred, old_patch, new_patch)
        logger.warning(
            f"{type(self).__name__} was made for images of {old.image_size} pixels in patches of {old.patch_size}: its position "
            f"embeddings were fitted to {new.image_size} pixels"
            + (f", its patch projection to patches of {new.patch_size}." if old_patch != new_patch else ".")
        )

    def save_pretrained(self, *args, **kwargs):
        """
        As in every Transformers model. The code of the model goes beside its weights, so that the Auto classes load it with
        `trust_remote_code=True` where supmae-hf is not installed.
        """
        self.config.auto_map = dict(_AUTO_MAP)
        # FSDP2 gives the model a class of its own, and Transformers saves the code of the class's module
        wrapped = type(self)
        self.__class__ = next(base for base in wrapped.__mro__ if not base.__name__.startswith("FSDP"))
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = wrapped

    def post_init(self):
        super().post_init()
        self.freeze_positions()

    def freeze_positions(self):
        """Position embeddings keep their sine-cosine values, except in fine-tuning."""
        for name, parameter in self.named_parameters():
            if name.endswith(("position_embeddings", "decoder_pos_embed")):
                parameter.requires_grad_(self.trains_positions)


# What Transformers passes along to models of any kind
_PASSED_ALONG = frozenset(TransformersKwargs.__annotations__) | {"use_cache"}
# What our models read of it; implementations of attention read some others
_READ = {"output_hidden_states", "output_attentions", "return_dict"}


def check_arguments(model: nn.Module, arguments: dict):
    """Refuse, as Python would, arguments that nobody reads; those that Transformers passes along are only warned about."""
    for name in arguments:
        if name in _READ:
            continue
        if name not in _PASSED_ALONG:
            raise TypeError(f"{type(model).__name__}.forward() got an unexpected keyword argument '{name}'")
        if name in ("use_cache", "position_ids", "output_router_logits", "num_items_in_batch") and arguments[name]:
            logger.warning_once(f"{type(model).__name__} does not read `{name}`.")


class SupMAEModel(SupMAEPreTrainedModel):
    """
    The SupMAE encoder: a ViT with class token.

    Args:
        config ([`SupMAEConfig`]): The configuration.
        use_layernorm (`bool`, *optional*, defaults to `True`):
            Whether there is a LayerNorm after the last block. [`SupMAEForImageClassification`] leaves it out under
            mean pooling, where its own LayerNorm follows the pooling.
    """

    _auto_class = "AutoModel"

    _keys_to_ignore_on_load_unexpected = _PRETRAINING_PARTS

    def __init__(self, config: SupMAEConfig, use_layernorm: bool = True):
        super().__init__(config)
        self.embeddings = SupMAEEmbeddings(config)
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            SupMAELayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path_rate=config.drop_path_rate * index / last,
                is_gated=config.use_gated_mlp,
            )
            for index in range(config.num_hidden_layers)
        )
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if use_layernorm else nn.Identity()
        )
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SupMAEModelOutput:
        """
        Encode images. Without `noise`, `mask` and `mask_ratio` every patch is encoded, so features are reproducible.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, from the image processor.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                Hides the patches with the most noise. Drawn uniformly if only `mask_ratio` is given.
            mask (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
                Which patches to hide: 1 for hidden, 0 for visible, the same number in every image. A compiled model takes masks
                that hide `config.mask_ratio` of the patches.
            mask_ratio (`float`, *optional*):
                Share of patches to hide, in `[0, 1)`. `config.mask_ratio` if only `noise` is given.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept images of another size than `config.image_size`, square or not, by resampling the
                position embeddings bicubically.
            kwargs: `output_hidden_states`, `output_attentions` (in the eager implementation of attention), `return_dict`,
                and what attention implementations take.

        Raises:
            TypeError: for an argument that nobody reads.
            ValueError: if the size or channels of the images, the noise, the mask or the mask ratio do not fit the model.
        """
        check_arguments(self, kwargs)
        grid_size = self.embeddings.patch_grid(pixel_values, interpolate_pos_encoding)
        ids_restore = hidden = None
        visible = []  # the places of the visible patches, if some are hidden
        if not (noise is None and mask is None and mask_ratio is None):
            shape = (pixel_values.shape[0], math.prod(grid_size))
            ids_shuffle, num_visible = self.embeddings.shuffle(shape, noise, mask, mask_ratio, pixel_values.device)
            ids_restore, visible = torch.argsort(ids_shuffle, dim=1), [ids_shuffle[:, :num_visible]]
            hidden = (ids_restore >= num_visible).float()
        hidden_states = self.embeddings(pixel_values, *visible)  # tensors alone, as Opacus wants them
        if self.config.rope_theta is not None:
            kwargs["position_embeddings"] = self._rotations(hidden_states, grid_size, *visible)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        patches = hidden_states[:, self.config.num_prefix_tokens :]
        return SupMAEModelOutput(
            last_hidden_state=hidden_states,
            mask=hidden,
            ids_restore=ids_restore,
            pooler_output=patches.mean(dim=1) if self.config.use_mean_pooling else hidden_states[:, 0],
        )

    def _rotations(
        self, hidden_states: torch.Tensor, grid_size: tuple[int, int], ids_keep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[`rotary_position_embeddings`] of all patches, or of each image's visible ones: `(batch_size, 1, length, head_dim)`."""
        config, device = self.config, hidden_states.device
        head_dim = config.hidden_size // config.num_attention_heads
        waves = rotary_position_embeddings(grid_size, head_dim, config.rope_theta, device)
        if ids_keep is not None:
            waves = (wave[ids_keep].unsqueeze(1) for wave in waves)
        return tuple(wave.to(hidden_states.dtype) for wave in waves)


class SupMAEForPreTraining(SupMAEPreTrainedModel):
    """
    SupMAE (arXiv 2205.14540) for pre-training: encoder, pixel decoder and the heads of `config.supervision`, by default the
    paper's classification head.

    Example:

    ```python
    >>> import torch
    >>> from supmae_hf import SupMAEConfig, SupMAEForPreTraining

    >>> model = SupMAEForPreTraining(SupMAEConfig(num_labels=10))
    >>> outputs = model(torch.randn(2, 3, 224, 224), labels=torch.tensor([3, -100]))  # the second has no label
    >>> outputs.loss.backward()
    >>> list(outputs.logits.shape), list(outputs.class_logits.shape)
    ([2, 196, 768], [2, 10])

    ```"""

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: SupMAEConfig):
        super().__init__(config)
        self.vit = SupMAEModel(config)
        self.decoder = SupMAEDecoder(config)
        kinds = dict(config.supervision_weights)
        unknown = [kind for kind in kinds if kind not in SUPERVISIONS]
        if unknown:
            raise ValueError(f"`supervision` names {unknown[0]!r}, which is none of {sorted(SUPERVISIONS)}.")
        has_labels = kinds.pop("labels", None) is not None
        self.classification_head = SupMAEClassificationHead(config) if has_labels else None
        self.supervision = nn.ModuleDict({kind: SUPERVISIONS[kind](config) for kind in kinds})
        self.tokenizer = None  # of the captions; saved and loaded with the model
        self.post_init()

    def heads(self) -> dict[str, SupMAESupervision]:
        """The supervised heads by kind."""
        labels = {} if self.classification_head is None else {"labels": self.classification_head}
        return {**labels, **self.supervision}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """The tokenizer of the captions goes beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None and kwargs.get("is_main_process", True):
            self.tokenizer.save_pretrained(save_directory)

    @torch.no_grad()
    def tag(self, pixel_values: torch.Tensor, num_words: int = 5) -> list[list[str]]:
        """
        The words that fit whole images best, the best first, by a model with captions.

        Args:
            pixel_values: See [`SupMAEModel`].
            num_words: Number of words for each image.

        Raises:
            ValueError: if the model has not learnt from captions, or has no `tokenizer`.
        """
        if "captions" not in self.supervision:
            raise ValueError("`tag` needs a model whose `supervision` has captions.")
        if self.tokenizer is None:
            raise ValueError(
                "The model's `tokenizer` did not lie beside its weights: set it, to that of the captions."
            )
        head, pooled = self.supervision["captions"], self.vit(pixel_values).pooler_output
        best = head(pooled).topk(num_words).indices
        return [[self.tokenizer.decode([token]).strip() for token in tokens] for tokens in best.tolist()]

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        `(batch_size, num_channels, height, width)` to `(batch_size, num_patches, patch_height * patch_width *
        num_channels)`.
        """
        return patchify(pixel_values, to_pair(self.config.patch_size))

    def unpatchify(
        self, patchified_pixel_values: torch.Tensor, original_image_size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """
        The inverse of [`~SupMAEForPreTraining.patchify`], for images of `original_image_size` `(height, width)`, by
        default `config.image_size`. Raises a `ValueError` if the number of patches is not that of such an image.
        """
        height, width = to_pair(original_image_size or self.config.image_size)
        patch_height, patch_width = to_pair(self.config.patch_size)
        rows, columns = height // patch_height, width // patch_width
        batch_size, num_patches, _ = patchified_pixel_values.shape
        if rows * columns != num_patches:
            raise ValueError(
                f"{num_patches} patches do not make up an image of {height}x{width} pixels, which has {rows}x{columns}: "
                "pass the image's `original_image_size`."
            )
        patches = patchified_pixel_values.reshape(batch_size, rows, columns, patch_height, patch_width, -1)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, self.config.num_channels, height, width)

    def predicted_pixel_values(
        self, logits: torch.Tensor, pixel_values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Predictions as images in the scale of `pixel_values`.

        With `config.norm_pix_loss` the model predicts pixels normalised by each patch's own mean and variance, and says nothing of
        these. With `mask` those of hidden patches are interpolated from the visible ones, so that the images hold what the model
        knows and no more. Without it **the true patches' are used**, as MAE's demo does: then even an untrained model draws what
        is there.

        Args:
            logits: The `logits` of [`SupMAEForPreTrainingOutput`].
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                The images that were predicted.
            mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*): The `mask` of the output.
        """
        pixels = at_least_float32(logits)
        if self.config.norm_pix_loss:
            mean, std = self._patch_statistics(at_least_float32(self.patchify(pixel_values)))
            if mask is not None:
                patch_height, patch_width = to_pair(self.config.patch_size)
                rows, columns = pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width
                places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(mean)
                # shares of the visible patches, by a Gaussian of one patch; those that are visible are their own
                nearness = -torch.cdist(places, places).square() / 2
                shares = nearness.masked_fill(mask.bool().unsqueeze(1), -torch.inf).softmax(dim=-1)
                hidden = mask.bool().unsqueeze(-1)
                mean, std = (torch.where(hidden, shares @ values, values) for values in (mean, std))
            pixels = pixels * std + mean
        return self.unpatchify(pixels, tuple(pixel_values.shape[-2:]))

    @staticmethod
    def _patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def patch_losses(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        Mean squared error over the pixels of every patch, normalised by its own mean and variance under
        `config.norm_pix_loss` (MAE, arXiv 2111.06377, section 3): shape `(batch_size, num_patches)`.
        """
        targets = at_least_float32(self.patchify(pixel_values.to(logits.device)))
        if self.config.norm_pix_loss:
            mean, std = self._patch_statistics(targets)
            targets = (targets - mean) / std
        return (at_least_float32(logits) - targets).square().mean(dim=-1)

    def weighted_loss(self, reconstruction_loss: torch.Tensor, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """SupMAE's objective: the reconstruction loss and the losses of the kinds of supervision, weighted (section 3)."""
        loss, weights = self.config.reconstruction_loss_weight * reconstruction_loss, self.config.supervision_weights
        for kind, supervised in losses.items():
            loss = loss + weights[kind] * (supervised.to(loss.device) if hasattr(supervised, "to") else supervised)
        return loss

    def _require_readers(self, targets: dict[str, torch.Tensor | None]):
        """Refuse targets that no head reads, but for labels, which data sets have for other uses, too."""
        read = {head.argument for head in self.heads().values()}
        for name in [name for name, values in targets.items() if values is not None and name not in read]:
            if name != "labels":
                raise ValueError(
                    f"No kind of the model's `supervision`, {self.config.supervision!r}, reads `{name}`: leave it out, or add the "
                    "kind to the configuration."
                )
            if first_of(targets[name], targets[name] != UNLABELED) is not None:
                logger.warning_once(f"The model's `supervision`, {self.config.supervision!r}, does not read `labels`.")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
        caption_ids: torch.Tensor | None = None,
        segmentation_maps: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SupMAEForPreTrainingOutput:
        """
        Hide a share of the patches, reconstruct them and predict from the others what is known of the image.

        Args:
            pixel_values: See [`SupMAEModel`].
            labels (*optional*):
                Class indices of shape `(batch_size,)`, -100 for images without a label, which then train the
                reconstruction only; for other problems see [`classification_loss`]. Without labels the model is a masked
                autoencoder.
            caption_ids, segmentation_maps (*optional*):
                Targets of [`SupMAECaptionHead`] and [`SupMAEDenseHead`], for models whose `config.supervision` has them; those
                of other kinds have the name of their `argument`.
            noise, mask, mask_ratio: See [`SupMAEModel`]. By default patches are hidden at random, by `config.mask_ratio`.
            interpolate_pos_encoding, kwargs: See [`SupMAEModel`].

        Raises:
            TypeError: for an argument that nobody reads.
            ValueError: if images, labels, noise or mask do not fit the model, it does not learn from a target or, on a CPU, a
                label is outside `[0, num_labels)`.
        """
        if mask is None and mask_ratio is None:
            mask_ratio = self.config.mask_ratio
        grid_size = self.vit.embeddings.patch_grid(pixel_values, interpolate_pos_encoding)
        heads = self.heads()
        targets = {"labels": labels, "caption_ids": caption_ids, "segmentation_maps": segmentation_maps}
        for head in heads.values():
            if head.argument not in targets:
                targets[head.argument] = kwargs.pop(head.argument, None)
            if targets[head.argument] is not None:
                head.check(targets[head.argument], pixel_values.shape)
        self._require_readers(targets)
        outputs = self.vit(
            pixel_values, noise, mask, mask_ratio, interpolate_pos_encoding, **{**kwargs, "return_dict": True}
        )
        logits, decoded = self.decoder(outputs.last_hidden_state, outputs.ids_restore, grid_size=grid_size)
        hidden = outputs.mask.to(logits.device)
        reconstruction_loss = (self.patch_losses(pixel_values, logits) * hidden).sum() / hidden.sum().clamp(min=1)

        losses, predictions, num_prefix = {}, {}, self.config.num_prefix_tokens
        for kind, head in heads.items():
            target = targets[head.argument]
            if target is None and self.training:
                continue
            predictions[kind] = head(
                outputs.pooler_output, outputs.last_hidden_state[:, num_prefix:], outputs.ids_restore, decoded
            )
            if target is not None:
                target = target.to(predictions[kind].device)
                losses[kind] = head.loss(predictions[kind], target, outputs.mask.to(target.device))

        return SupMAEForPreTrainingOutput(
            loss=self.weighted_loss(reconstruction_loss, losses),
            reconstruction_loss=reconstruction_loss,
            classification_loss=losses.pop("labels", None),
            logits=logits,
            class_logits=predictions.pop("labels", None),
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            supervision_losses=losses or None,
            supervision_logits=predictions or None,
        )


class SupMAEForImageClassification(SupMAEPreTrainedModel):
    """
    The SupMAE encoder with a classifier, for fine-tuning and inference on whole images: mean of the patch tokens,
    LayerNorm, linear layer; or final LayerNorm, class token, linear layer if `config.use_mean_pooling` is `False`.

    Loaded from a pre-training checkpoint it takes the encoder; the classifier (and, under mean pooling, its LayerNorm)
    is new. Unlike in pre-training the position embeddings are trained.
    """

    _auto_class = "AutoModelForImageClassification"
    trains_positions = True
    # mean pooling has its own LayerNorm
    _keys_to_ignore_on_load_unexpected = [*_PRETRAINING_PARTS, r"^vit\.layernorm\."]

    def __init__(self, config: SupMAEConfig):
        super().__init__(config)
        self.vit = SupMAEModel(config, use_layernorm=not config.use_mean_pooling)
        self.fc_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_mean_pooling else nn.Identity()
        )
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.classifier.init_std = config.initializer_range
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Classify whole images.

        Args:
            labels (*optional*): See [`classification_loss`].
            pixel_values, interpolate_pos_encoding, kwargs: See [`SupMAEModel`], also for what is raised.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`] with `logits` of shape `(batch_size, num_labels)`.
        """
        check_arguments(self, kwargs)  # `mask_ratio`, say, which the encoder would read
        outputs = self.vit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **{**kwargs, "return_dict": True}
        )
        logits = self.classifier(self.fc_norm(outputs.pooler_output))
        return ImageClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SupMAEFeaturePyramid(nn.Module):
    """
    Four feature maps `(batch_size, hidden_size, rows, columns)` at 4, 2, 1 and 1/2 times their resolution (BEiT, arXiv
    2106.08254, for semantic segmentation).
    """

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        width = config.hidden_size

        def double() -> nn.Module:
            return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

        self.rescale = nn.ModuleList(
            [
                nn.Sequential(double(), nn.BatchNorm2d(width), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            ]
        )

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(rescale(feature_map) for rescale, feature_map in zip(self.rescale, feature_maps))


class SupMAEBackbone(BackboneMixin, SupMAEPreTrainedModel):
    """
    The SupMAE encoder as a backbone: feature maps of the blocks that `config.out_indices` or `config.out_features`
    name, for UperNet, Mask2Former, DPT and other frameworks of Transformers.

    Loaded from any SupMAE or ViTMAE checkpoint it takes the encoder without its last LayerNorm. As in
    [`SupMAEForImageClassification`], position embeddings are trained.
    """

    _auto_class = "AutoBackbone"
    trains_positions = True
    # the classifier's parts and the last LayerNorm are not used
    _keys_to_ignore_on_load_unexpected = _PRETRAINING_PARTS + [
        r"^classifier\.",
        r"^fc_norm\.",
        r"layernorm\.(weight|bias)$",
    ]

    def __init__(self, config: SupMAEConfig):
        super().__init__(config)
        if config.add_fpn and (len(self.out_features) != 4 or not config.reshape_hidden_states):
            raise ValueError(
                f"`add_fpn` rescales four feature maps, but `out_features` are {self.out_features}: choose four blocks, "
                "such as `out_indices=[4, 6, 8, 12]` of 12, and leave `reshape_hidden_states` at `True`, or leave out "
                "`add_fpn`."
            )
        self.num_features = [config.hidden_size] * len(self.stage_names)
        self.vit = SupMAEModel(config, use_layernorm=config.apply_layernorm)
        self.fpn = SupMAEFeaturePyramid(config) if config.add_fpn else nn.Identity()
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Feature maps of images of any size: position embeddings are resampled bicubically, and images whose sides are
        not multiples of the patch size are padded with zeros at the bottom and on the right.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`] with `feature_maps` of shape
            `(batch_size, hidden_size, ceil(height / patch_height), ceil(width / patch_width))`, rescaled from that under
            `config.add_fpn`, or, if `config.reshape_hidden_states` is `False`, tokens of shape
            `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, the class token first.
        """
        check_arguments(self, kwargs)
        patch_height, patch_width = to_pair(self.config.patch_size)
        height, width = pixel_values.shape[-2:]
        # not -height % patch_height, which torch.compile cannot trace for sizes that vary
        bottom, right = (
            (patch_height - height % patch_height) % patch_height,
            (patch_width - width % patch_width) % patch_width,
        )
        pixel_values = nn.functional.pad(pixel_values, (0, right, 0, bottom))
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=True,
            **{**kwargs, "output_hidden_states": True, "return_dict": True},
        )
        feature_maps = tuple(
            hidden_state
            for name, hidden_state in zip(self.stage_names, outputs.hidden_states)
            if name in self.out_features
        )
        if self.config.apply_layernorm:
            feature_maps = tuple(self.vit.layernorm(feature_map) for feature_map in feature_maps)
        if self.config.reshape_hidden_states:
            batch_size, _, padded_height, padded_width = pixel_values.shape
            grid_size = (padded_height // patch_height, padded_width // patch_width)
            feature_maps = tuple(
                feature_map[:, self.config.num_prefix_tokens :].transpose(1, 2).reshape(batch_size, -1, *grid_size)
                for feature_map in feature_maps
            )
        return BackboneOutput(
            feature_maps=self.fpn(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "SupMAEBackbone",
    "SupMAEForImageClassification",
    "SupMAEForPreTraining",
    "SupMAEForPreTrainingOutput",
    "SupMAEModel",
    "SupMAEModelOutput",
    "SupMAEPreTrainedModel",
]
