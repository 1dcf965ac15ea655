# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""SupMAE, the supervised masked autoencoder of arXiv 2205.14540, in the conventions of Transformers' ViTMAE."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_supmae import SupMAEConfig, to_pair


try:
    from transformers.backbone_utils import BackboneMixin
except ImportError:  # in older releases of Transformers
    from transformers.utils.backbone_utils import BackboneMixin


logger = logging.get_logger(__name__)

# Label of an image without a label, as in every Transformers loss.
UNLABELED = -100

# Names that ViTMAE checkpoints have, among them the published `facebook/vit-mae-*`, and our names for the same, which
# are ViTMAE's own since Transformers 5.12.
VIT_MAE_KEYS = {
    r"encoder\.layer\.": "layers.",
    r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj",
    r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}


@dataclass
class SupMAEModelOutput(ModelOutput):
    """
    Output of [`SupMAEModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_visible_patches, hidden_size)`):
            Class token, then the visible patch tokens, after the final LayerNorm. All patches are visible, and in
            raster order, unless the call asked for masking; masked calls return them in shuffled order.
        mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
            1 for hidden patches, 0 for visible ones. `None` without masking.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`, *optional*):
            For each patch in raster order its place in the shuffled order, whose first `num_visible_patches` are the
            visible ones. `None` without masking.
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
    Output of [`SupMAEForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            SupMAE's objective: the two losses, weighted by `config.reconstruction_loss_weight` and
            `config.classification_loss_weight`.
        reconstruction_loss (`torch.FloatTensor` of shape `()`):
            Mean squared error over the pixels of the hidden patches; 0 if no patch is hidden.
        classification_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Mean loss over the labelled images, 0 if there are none. `None` without `labels`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`):
            Pixel predictions, as in ViTMAE; normalised per patch if `config.norm_pix_loss`. While training, those of
            visible patches, which no loss needs, are not computed but 0. See
            [`~SupMAEForPreTraining.predicted_pixel_values`] for images.
        class_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
            Class scores, not divided by the temperature. `None` while training without `labels`.
        mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`): 1 for hidden patches, 0 for visible ones.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
            For each patch in raster order its place in the shuffled order.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            Input of the first encoder block and output of every encoder block.
        attentions (`tuple(torch.FloatTensor)`, *optional*): Attention weights of every encoder block.
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


def sincos_position_embeddings(grid_size: tuple[int, int], dim: int, device=None) -> torch.Tensor:
    """
    Fixed position embeddings of MAE for a class token (zeros) and a grid of patches, shape
    `(1, 1 + height * width, dim)`: the first half encodes the column, the second half the row, each as sines, then
    cosines, of `dim / 4` frequencies from 1 down to 1/10000.
    """
    height, width = grid_size
    double = {
        "dtype": torch.float32 if device is not None and device.type == "mps" else torch.float64,
        "device": device,
    }
    frequencies = 10000.0 ** -(torch.arange(dim // 4, **double) / (dim // 4))
    rows = torch.arange(height, **double).repeat_interleave(width)
    columns = torch.arange(width, **double).repeat(height)
    angles = [torch.outer(position, frequencies) for position in (columns, rows)]
    patches = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([patches.new_zeros(1, dim), patches]).float().unsqueeze(0)


def interpolate_position_embeddings(
    position_embeddings: torch.Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int]
) -> torch.Tensor:
    """Position embeddings `(1, 1 + num_patches, dim)` of one patch grid, resampled bicubically to another."""
    if grid_size == new_grid_size:
        return position_embeddings
    class_token, patches = position_embeddings[:, :1], position_embeddings[:, 1:]
    patches = patches.unflatten(1, grid_size).permute(0, 3, 1, 2)
    # float32: half-precision bicubic kernels are missing or coarse on some devices
    patches = nn.functional.interpolate(patches.float(), size=new_grid_size, mode="bicubic", align_corners=False)
    return torch.cat([class_token, patches.flatten(2).transpose(1, 2).to(class_token.dtype)], dim=1)


def random_masking(noise: torch.Tensor, num_visible: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Choose the `num_visible` patches with the least noise of each image.

    Args:
        noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`): Random numbers, one per patch.
        num_visible (`int`): Number of patches that stay visible.

    Returns:
        `ids_keep` of shape `(batch_size, num_visible)`, the visible patches in order of their noise; `mask` and
        `ids_restore`, both of shape `(batch_size, num_patches)`, as in [`SupMAEModelOutput`].
    """
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = invert_permutations(ids_shuffle)
    return ids_shuffle[:, :num_visible], (ids_restore >= num_visible).float(), ids_restore


def invert_permutations(ids: torch.Tensor) -> torch.Tensor:
    """The inverse of each row of `ids` `(batch_size, length)`, a permutation of `0 ... length - 1`."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.empty_like(ids).scatter_(1, ids, places)


def gather_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens `(batch_size, length, dim)` at `ids` `(batch_size, new_length)`: `(batch_size, new_length, dim)`."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def gather_patches(images: torch.Tensor, ids: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """
    The patches `ids` `(batch_size, num_ids)`, counted in raster order, of images
    `(batch_size, num_channels, height, width)`: `(batch_size, num_ids, patch_height, patch_width, num_channels)`.
    """
    grid = images.unflatten(3, (-1, patch_size[1])).unflatten(2, (-1, patch_size[0]))
    image = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1)
    patches = grid[image, :, ids // grid.shape[4], :, ids % grid.shape[4]]
    return patches.permute(0, 1, 3, 4, 2)


def pool_tokens(tokens: torch.Tensor, use_mean_pooling: bool) -> torch.Tensor:
    """`(batch_size, 1 + num_tokens, dim)` to `(batch_size, dim)`: mean of the patch tokens, or the class token."""
    return tokens[:, 1:].mean(dim=1) if use_mean_pooling else tokens[:, 0]


def check_class_labels(labels: torch.Tensor, num_labels: int):
    """Raise a `ValueError` if a label is neither in `[0, num_labels)` nor -100 (unlabelled)."""
    wrong = labels[((labels < 0) & (labels != UNLABELED)) | (labels >= num_labels)]
    if wrong.numel():
        raise ValueError(
            f"Label {wrong[0].item()} is outside [0, {num_labels}): set `num_labels` to at least the number of classes, "
            f"or mark images without a label with {UNLABELED}."
        )


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, config: SupMAEConfig, temperature: float = 1.0
) -> torch.Tensor:
    """
    Mean classification loss over the labelled images of a batch, 0 (with zero gradients) if there are none.

    `config.problem_type` decides the loss. If it is not set, one output means regression, integer labels mean
    single-label and floating-point labels multi-label classification, as elsewhere in Transformers.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Raw scores, or predictions (regression).
        labels: Either of shape `(batch_size,)` with class indices, or of shape `(batch_size, num_labels)` with 0 and 1
            for each class (multi-label), or of the shape of `logits` with targets (regression; `(batch_size,)` is
            enough for one output). -100 marks what is not labelled.
        temperature (`float`): Logits are divided by it; regression predictions are not.

    Raises:
        ValueError: if a label is out of range, or the labels do not fit the problem type.
    """
    problem_type = config.problem_type
    if problem_type is None:
        if logits.shape[-1] == 1:
            problem_type = "regression"
        else:
            problem_type = f"{'multi' if labels.is_floating_point() else 'single'}_label_classification"

    logits, labels = logits.float(), labels.to(logits.device)
    if problem_type == "single_label_classification":
        if labels.is_floating_point() or labels.numel() != logits.shape[0]:
            raise ValueError(
                f"Single-label classification needs one integer class index per image, got labels of type "
                f"{labels.dtype} and shape {tuple(labels.shape)} for {logits.shape[0]} images. For other labels set "
                "`config.problem_type` to 'multi_label_classification' or 'regression'."
            )
        labels = labels.reshape(-1).long()
        if not torch.compiler.is_compiling():
            check_class_labels(labels, logits.shape[-1])
        total = nn.functional.cross_entropy(logits / temperature, labels, ignore_index=UNLABELED, reduction="sum")
        return total / (labels != UNLABELED).sum().clamp(min=1)

    if labels.ndim == 1 and logits.shape[-1] == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"`problem_type` '{problem_type}' needs labels of shape {tuple(logits.shape)} (images, num_labels), got "
            f"{tuple(labels.shape)}."
        )
    labeled = labels != UNLABELED
    targets = labels.float().masked_fill(~labeled, 0.0)
    if problem_type == "multi_label_classification":
        if not torch.compiler.is_compiling() and ((targets < 0) | (targets > 1)).any():
            wrong = targets[(targets < 0) | (targets > 1)][0].item()
            raise ValueError(f"Multi-label targets must be in [0, 1] or {UNLABELED} (unlabelled), got {wrong:g}.")
        losses = nn.functional.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="none")
    else:
        losses = nn.functional.mse_loss(logits, targets, reduction="none")
    return (losses * labeled).sum() / labeled.sum().clamp(min=1)


class SupMAEPatchEmbeddings(nn.Module):
    """
    Images `(batch_size, num_channels, height, width)` to patch tokens `(batch_size, num_patches, hidden_size)`, or to
    those of the patches `ids` `(batch_size, num_ids)` alone.
    """

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        self.patch_size = to_pair(config.patch_size)
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"Expected `pixel_values` of shape (batch_size, {self.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}: convert the images, or set `num_channels` in the configuration."
            )
        if ids is not None:  # the patches side by side, as an image of one row
            patches = gather_patches(pixel_values, ids, self.patch_size)
            pixel_values = patches.permute(0, 4, 2, 1, 3).flatten(3)
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class SupMAEEmbeddings(nn.Module):
    """Class token and patch tokens with their position embeddings, all of them or only the visible ones."""

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = SupMAEPatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.num_patches, config.hidden_size))

    def patch_grid(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> tuple[int, int]:
        """Patch rows and columns of a batch of images, whose size is checked."""
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

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        grid_size = self.patch_grid(pixel_values, interpolate_pos_encoding)
        positions = interpolate_position_embeddings(self.position_embeddings, self.config.grid_size, grid_size)
        class_tokens = (self.cls_token + positions[:, :1]).expand(pixel_values.shape[0], -1, -1)
        positions = positions[:, 1:]
        ids_keep = mask = ids_restore = None
        if noise is not None or mask_ratio is not None:
            batch_size, num_patches = pixel_values.shape[0], math.prod(grid_size)
            mask_ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
            num_visible = self.config.num_visible_patches(num_patches, mask_ratio)
            if not 0 <= mask_ratio < 1 or num_visible < 1:
                raise ValueError(
                    f"`mask_ratio` {mask_ratio} leaves no visible patch of {num_patches}: use a ratio in [0, 1) that "
                    "leaves at least one."
                )
            if noise is None:
                noise = torch.rand(batch_size, num_patches, device=pixel_values.device)
            elif noise.shape != (batch_size, num_patches):
                raise ValueError(
                    f"`noise` must have shape (batch_size, num_patches) = {(batch_size, num_patches)}, got "
                    f"{tuple(noise.shape)}."
                )
            ids_keep, mask, ids_restore = random_masking(noise.to(pixel_values.device), num_visible)
            positions = positions[0, ids_keep]
        patches = self.patch_embeddings(pixel_values, ids_keep) + positions  # only those that will be encoded
        return torch.cat([class_tokens, patches], dim=1), mask, ids_restore


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type in which linear layers compute on `tensor`."""
    device = tensor.device.type
    is_enabled = device != "meta" and torch.is_autocast_enabled(device)  # which raises for the meta device
    return torch.get_autocast_dtype(device) if is_enabled else tensor.dtype


@contextlib.contextmanager
def recompute_in_backward(tensor: torch.Tensor, function: Callable[[], torch.Tensor]):
    """
    Operations inside do not keep `tensor` for their backward pass, where `function()` computes it again: for results
    that are cheap to compute from tensors that are kept anyway.
    """
    storage = tensor.untyped_storage().data_ptr()
    num_kept, again = 0, None

    def pack(saved: torch.Tensor):
        nonlocal num_kept
        if saved.untyped_storage().data_ptr() != storage:
            return saved
        num_kept += 1
        return saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed) -> torch.Tensor:
        nonlocal num_kept, again
        if isinstance(packed, torch.Tensor):
            return packed
        if again is None:
            with torch.no_grad():
                again = function().to(dtype)
        view = again.as_strided(*packed)
        num_kept -= 1
        if num_kept <= 0:
            again = None
        return view

    dtype = tensor.dtype
    del tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain PyTorch: `(batch_size, num_heads, length, head_dim)` each; also returns the weights."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class SlicedAttention(torch.autograd.Function):
    """
    Attention for bfloat16 on CPUs, where PyTorch's SDPA takes longer: a few images at a time, whose weights stay in the
    cache, and are computed again in the backward pass. Takes and returns `(batch_size, num_heads, length, head_dim)`.
    """

    MAX_WEIGHTS = 2**20  # attention weights at a time

    @staticmethod
    def slices(query: torch.Tensor, key: torch.Tensor) -> list[slice]:
        size = max(1, SlicedAttention.MAX_WEIGHTS // (query.shape[1] * query.shape[2] * key.shape[2]))
        return [slice(start, start + size) for start in range(0, len(query), size)]

    @staticmethod
    def weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch.matmul(query, key.transpose(2, 3)).softmax(dim=-1)  # computes in float32

    @staticmethod
    def forward(ctx, query, key, value, scaling: float):
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        output = torch.empty_like(query)
        for images in SlicedAttention.slices(query, key):
            # contiguous: matmul would copy the transposed keys, which is slower
            weights = SlicedAttention.weights(query[images] * scaling, key[images].contiguous())
            output[images] = torch.matmul(weights, value[images])
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        grads = [torch.empty_like(tensor) for tensor in ctx.saved_tensors]
        for images in SlicedAttention.slices(*ctx.saved_tensors[:2]):
            query, key, value = (tensor[images].contiguous() for tensor in ctx.saved_tensors)
            grad_query, grad_key, grad_value = (grad[images] for grad in grads)
            grad = grad_output[images].contiguous()
            query = query * ctx.scaling
            weights = SlicedAttention.weights(query, key)
            grad_value.copy_(torch.matmul(weights.transpose(2, 3), grad))
            grad_weights = torch.matmul(grad, value.transpose(2, 3))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query.copy_(torch.matmul(grad_scores, key).mul_(ctx.scaling))
            grad_key.copy_(torch.matmul(grad_scores.transpose(2, 3), query))
        return *grads, None


def fastest_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """The default: whichever exact implementation is the fastest here."""
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        if not dropout and not torch.compiler.is_compiling():
            return SlicedAttention.apply(query, key, value, scaling).transpose(1, 2), None
        attention = eager_attention_forward
    return attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout)


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
        self, hidden_states: torch.Tensor, output_attentions: bool = False, first_query: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs for the tokens from `first_query` on, which attend to all."""
        queries = hidden_states[:, first_query:]
        query, key, value = (
            projection(tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, tokens in (
                (self.q_proj, queries),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
        )
        # only the eager implementation has weights to return
        implementation = "eager" if output_attentions else self.config._attn_implementation
        own = {None: eager_attention_forward, "eager": eager_attention_forward, "fastest": fastest_attention_forward}
        attention = own[implementation] if implementation in own else ALL_ATTENTION_FUNCTIONS[implementation]
        output, weights = attention(
            self,
            query,
            key,
            value,
            None,
            scaling=self.scaling,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
        )
        output = self.o_proj(output.reshape(queries.shape))
        return output, weights if output_attentions else None


class SupMAEMLP(nn.Module):
    def __init__(self, config: SupMAEConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, save_memory: bool = False) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        activated = self.activation_fn(hidden_states)
        if not save_memory:
            return self.fc2(activated)
        with recompute_in_backward(activated, lambda: self.activation_fn(hidden_states)):
            return self.fc2(activated)


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
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SupMAEAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = SupMAEMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SupMAEDropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False, first_output: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The outputs of the tokens from `first_output` on, which depend on all tokens."""
        # under gradient checkpointing, nothing of a block is kept anyway; the compiler decides on its own
        save_memory = (
            torch.is_grad_enabled()
            and not (self.gradient_checkpointing and self.training)
            and not torch.compiler.is_compiling()
        )

        def normalize(norm: nn.Module, tokens: torch.Tensor):
            normalized = norm(tokens).to(autocast_dtype(tokens))  # once, and not for each of the projections
            if not save_memory:
                return normalized, contextlib.nullcontext()
            return normalized, recompute_in_backward(normalized, lambda: norm.forward(tokens))

        normalized, context = normalize(self.layernorm_before, hidden_states)
        with context:
            attention_output, weights = self.attention(normalized, output_attentions, first_output)
        hidden_states = hidden_states[:, first_output:] + self.drop_path(self.dropout(attention_output))
        normalized, context = normalize(self.layernorm_after, hidden_states)
        with context:
            mlp_output = self.mlp(normalized, save_memory)
        hidden_states = hidden_states + self.drop_path(self.dropout(mlp_output))
        return hidden_states, weights


class SupMAEDecoder(nn.Module):
    """MAE's decoder (arXiv 2111.06377): the pixels of every patch from the encoded visible patches."""

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        self.config = config
        hidden_size = config.decoder_hidden_size
        self.decoder_embed = nn.Linear(config.hidden_size, hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, hidden_size))
        self.decoder_layers = nn.ModuleList(
            SupMAELayer(config, hidden_size, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(hidden_size, math.prod(to_pair(config.patch_size)) * config.num_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        ids_restore: torch.Tensor,
        grid_size: tuple[int, int],
        hidden_only: bool = False,
    ) -> torch.Tensor:
        """
        Predictions of shape `(batch_size, num_patches, patch pixels * num_channels)`, or of the hidden patches alone.
        Tokens and predictions are in shuffled order, visible patches first, which spares moving them: attention does
        not mind, and each has its position embedding.
        """
        hidden_states = self.decoder_embed(hidden_states)  # (batch_size, 1 + num_visible_patches, hidden_size)
        batch_size, num_encoded, _ = hidden_states.shape
        ids_shuffle = invert_permutations(ids_restore.to(hidden_states.device))
        num_hidden = 1 + ids_shuffle.shape[1] - num_encoded
        mask_tokens = self.mask_token.to(hidden_states.dtype).expand(batch_size, num_hidden, -1)
        positions = interpolate_position_embeddings(self.decoder_pos_embed, self.config.grid_size, grid_size)
        ids = nn.functional.pad(ids_shuffle + 1, (1, 0))  # the class token's position embedding is the first
        hidden_states = torch.cat([hidden_states, mask_tokens], dim=1) + positions[0, ids]

        *layers, last_layer = self.decoder_layers
        for layer in layers:
            hidden_states, _ = layer(hidden_states)
        # of what is not predicted, only keys and values are still needed
        hidden_states, _ = last_layer(hidden_states, first_output=num_encoded if hidden_only else 1)
        return self.decoder_pred(self.decoder_norm(hidden_states))


class SupMAEClassificationHead(nn.Module):
    """
    Pooled features `(batch_size, hidden_size)` to class logits `(batch_size, num_labels)`: two linear layers with
    BatchNorm and ReLU between them (SupMAE, arXiv 2205.14540), or one linear layer if `config.classifier_hidden_size` is 0.
    """

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        hidden_size = config.classifier_hidden_size
        if hidden_size:
            self.fc1 = nn.Linear(config.hidden_size, hidden_size)
            self.batch_norm = nn.BatchNorm1d(hidden_size)
        else:
            self.fc1 = self.batch_norm = None
        self.fc2 = nn.Linear(hidden_size or config.hidden_size, config.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.fc1 is not None:
            if self.training and features.shape[0] == 1:
                raise ValueError(
                    "The classification head's BatchNorm cannot train on a batch of 1 image: use a larger batch, drop "
                    "the last incomplete batch (`dataloader_drop_last`), or set `classifier_hidden_size=0` for a "
                    "linear head."
                )
            features = nn.functional.relu(self.batch_norm(self.fc1(features)))
        return self.fc2(features)


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

    config_class = SupMAEConfig
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

    def __init__(self, config: SupMAEConfig, *args, **kwargs):
        config.check()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """MAE's initialisation: Xavier-uniform matrices, sine-cosine positions, normal class and mask tokens."""
        if isinstance(module, nn.Linear):
            if hasattr(module, "init_std"):
                init.normal_(module.weight, std=module.init_std)
            else:
                init.xavier_uniform_(module.weight, gain=getattr(module, "xavier_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):  # the patch projection, initialised like the linear layer that it is
            fan_in, fan_out = module.weight[0].numel(), module.weight.shape[0]
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        elif isinstance(module, nn.ConvTranspose2d):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if not isinstance(module, nn.LayerNorm):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, (SupMAEEmbeddings, SupMAEDecoder)):
            is_decoder = isinstance(module, SupMAEDecoder)
            token = module.mask_token if is_decoder else module.cls_token
            positions = module.decoder_pos_embed if is_decoder else module.position_embeddings
            init.normal_(token, std=self.config.initializer_range)
            init.copy_(
                positions, sincos_position_embeddings(self.config.grid_size, positions.shape[-1], positions.device)
            )

    @classmethod
    def from_pretrained(cls, *args, key_mapping: dict[str, str] | None = None, **kwargs):
        """
        As in every Transformers model. The folder or repository may also hold a ViTMAE checkpoint, whose encoder and
        decoder are then filled in.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            *args, key_mapping={**VIT_MAE_KEYS, **(key_mapping or {})}, output_loading_info=True, **kwargs
        )
        model._weight_conversions = None  # save under our names, not under those of the loaded file
        model._set_position_embeddings_trainable()  # Transformers loads every parameter as trainable
        if info["missing_keys"]:
            new = sorted({name.removeprefix("vit.").split(".")[0] for name in info["missing_keys"]})
            logger.warning(f"{cls.__name__}: new and to be trained: {', '.join(new)}; the rest is loaded.")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args, **kwargs):
        """
        As in every Transformers model. The code of the model goes beside its weights, so that the Auto classes load it
        with `trust_remote_code=True` where supmae-hf is not installed.
        """
        self.config.auto_map = dict(_AUTO_MAP)
        super().save_pretrained(*args, **kwargs)

    def _set_position_embeddings_trainable(self):
        """Position embeddings keep their sine-cosine values, except in fine-tuning."""
        self.base_model.embeddings.position_embeddings.requires_grad_(False)

    def get_correct_attn_implementation(self, requested_attention: str | None, *args, **kwargs) -> str:
        if requested_attention in (None, "fastest"):
            return "fastest"
        return super().get_correct_attn_implementation(requested_attention, *args, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # Transformers would look for one release's idiom in this file

    def get_input_embeddings(self) -> SupMAEPatchEmbeddings:
        return self.base_model.embeddings.patch_embeddings

    def set_input_embeddings(self, value: nn.Module):
        self.base_model.embeddings.patch_embeddings = value


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

    # the other parts of a pre-training checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classification_head\."]

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
            )
            for index in range(config.num_hidden_layers)
        )
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if use_layernorm else nn.Identity()
        )
        self.post_init()
        self._set_position_embeddings_trainable()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SupMAEModelOutput:
        """
        Encode images. Without `noise` and `mask_ratio` every patch is encoded, so features are reproducible.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, from the image processor.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                Masks the patches with the most noise. Drawn uniformly if only `mask_ratio` is given.
            mask_ratio (`float`, *optional*):
                Share of patches to hide, in `[0, 1)`. `config.mask_ratio` if only `noise` is given.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept images of another size than `config.image_size`, square or not, by resampling the
                position embeddings bicubically.
            output_attentions (`bool`, *optional*):
                Whether to return attention weights; attention then runs in the eager implementation.
            output_hidden_states (`bool`, *optional*): Whether to return the hidden states of all blocks.

        Raises:
            ValueError: if the size or channels of the images, the noise or the mask ratio do not fit the model.
        """
        if pixel_values is None:
            raise ValueError("You have to specify `pixel_values`.")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        hidden_states, mask, ids_restore = self.embeddings(pixel_values, noise, mask_ratio, interpolate_pos_encoding)
        all_hidden_states, all_attentions = (hidden_states,), ()
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, output_attentions)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            all_attentions += (weights,)
        hidden_states = self.layernorm(hidden_states)

        return SupMAEModelOutput(
            last_hidden_state=hidden_states,
            mask=mask,
            ids_restore=ids_restore,
            pooler_output=pool_tokens(hidden_states, self.config.use_mean_pooling),
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )


class SupMAEForPreTraining(SupMAEPreTrainedModel):
    """
    SupMAE (arXiv 2205.14540) for pre-training: encoder, pixel decoder and classification head.

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
        self.classification_head = SupMAEClassificationHead(config)
        self.post_init()
        self._set_position_embeddings_trainable()

    def _set_position_embeddings_trainable(self):
        super()._set_position_embeddings_trainable()
        self.decoder.decoder_pos_embed.requires_grad_(False)

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_channels, height, width)` to `(batch_size, num_patches, patch pixels * num_channels)`."""
        rows, columns = self.vit.embeddings.patch_grid(pixel_values, interpolate_pos_encoding=True)
        patches = pixel_values.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (b, c, rows, ph, columns, pw)
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(
        self, patchified_pixel_values: torch.Tensor, original_image_size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """
        The inverse of [`~SupMAEForPreTraining.patchify`], for images of `original_image_size` `(height, width)`, by
        default `config.image_size`.

        Raises:
            ValueError: if the number of patches is not that of such an image.
        """
        height, width = to_pair(original_image_size or self.config.image_size)
        patch_height, patch_width = to_pair(self.config.patch_size)
        rows, columns = height // patch_height, width // patch_width
        if rows * columns != patchified_pixel_values.shape[1]:
            raise ValueError(
                f"{patchified_pixel_values.shape[1]} patches do not make up an image of {height}x{width} pixels, "
                f"which has {rows}x{columns}: pass the image's `original_image_size`."
            )
        patches = patchified_pixel_values.unflatten(1, (rows, columns))
        patches = patches.unflatten(3, (patch_height, patch_width, self.config.num_channels))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def predicted_pixel_values(self, logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Predictions as images in the scale of `pixel_values`.

        With `config.norm_pix_loss` the model predicts pixels normalised by each patch's own mean and variance, so that
        looking at them takes those of the true patch.

        Args:
            logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch pixels * num_channels)`):
                `logits` of [`SupMAEForPreTrainingOutput`].
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                The images that were predicted.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`.
        """
        pixels = logits.float()
        if self.config.norm_pix_loss:
            mean, std = self._patch_statistics(self.patchify(pixel_values).float())
            pixels = pixels * std + mean
        return self.unpatchify(pixels, tuple(pixel_values.shape[-2:]))

    @staticmethod
    def _patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def _targets(self, patches: torch.Tensor) -> torch.Tensor:
        """What the decoder is to predict for patches `(..., patch pixels * num_channels)`."""
        patches = patches.float()
        if not self.config.norm_pix_loss:
            return patches
        mean, std = self._patch_statistics(patches)
        return (patches - mean) / std

    def patch_losses(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the pixels of every patch: shape `(batch_size, num_patches)`."""
        targets = self._targets(self.patchify(pixel_values))
        return (logits.float() - targets.to(logits.device)).pow(2).mean(dim=-1)

    def reconstruction_loss(
        self, pixel_values: torch.Tensor, hidden_logits: torch.Tensor, ids_restore: torch.Tensor
    ) -> torch.Tensor:
        """
        Mean squared error over the pixels of the hidden patches, 0 if none is hidden.

        Args:
            hidden_logits (`torch.FloatTensor` of shape `(batch_size, num_hidden_patches, patch pixels * num_channels)`):
                Predictions of the hidden patches, in shuffled order.
        """
        num_hidden = hidden_logits.shape[1]
        if num_hidden == 0:
            return hidden_logits.float().sum()
        ids_hidden = invert_permutations(ids_restore)[:, ids_restore.shape[1] - num_hidden :].to(pixel_values.device)
        patch_size = to_pair(self.config.patch_size)
        total = 0
        # on a CPU by a few images, whose float32 patches then stay in the cache
        num_images = (
            4 if pixel_values.device.type == "cpu" and not torch.compiler.is_compiling() else pixel_values.shape[0]
        )
        for images, ids, logits in zip(
            *(tensor.split(num_images) for tensor in (pixel_values, ids_hidden, hidden_logits))
        ):
            targets = self._targets(gather_patches(images, ids, patch_size).flatten(2))
            total = total + (targets.to(logits.device) - logits).square().sum()
        return total / hidden_logits.numel()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SupMAEForPreTrainingOutput:
        """
        Hide `config.mask_ratio` of the patches, reconstruct them and classify the image from the others.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            labels (*optional*):
                Class indices of shape `(batch_size,)`, -100 for images without a label, which then train the
                reconstruction only. Multi-label and regression targets have shape `(batch_size, num_labels)`;
                `config.problem_type` decides. Without labels the model is a masked autoencoder.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                The patches with the most noise are hidden. Drawn uniformly by default.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept images of another size, square or not; the position embeddings of encoder and
                decoder are resampled bicubically.
            output_attentions (`bool`, *optional*): Whether to return the encoder's attention weights.
            output_hidden_states (`bool`, *optional*): Whether to return the encoder's hidden states.

        Raises:
            ValueError: if images, labels or noise do not fit the model, or a label is outside `[0, num_labels)`.
        """
        outputs = self.vit(
            pixel_values,
            noise=noise,
            mask_ratio=self.config.mask_ratio,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        grid_size = self.vit.embeddings.patch_grid(pixel_values, interpolate_pos_encoding)
        num_visible = outputs.last_hidden_state.shape[1] - 1
        hidden_only = self.training and num_visible < outputs.ids_restore.shape[1]
        predictions = self.decoder(outputs.last_hidden_state, outputs.ids_restore, grid_size, hidden_only)
        hidden_logits = predictions if hidden_only else predictions[:, num_visible:]
        reconstruction_loss = self.reconstruction_loss(pixel_values, hidden_logits, outputs.ids_restore)
        if hidden_only:
            predictions = nn.functional.pad(predictions, (0, 0, num_visible, 0))
        logits = gather_tokens(predictions, outputs.ids_restore.to(predictions.device))
        loss = self.config.reconstruction_loss_weight * reconstruction_loss

        class_logits = class_loss = None
        if labels is not None or not self.training:
            class_logits = self.classification_head(outputs.pooler_output)
        if labels is not None:
            class_loss = classification_loss(
                class_logits, labels, self.config, temperature=self.config.classification_temperature
            )
            loss = loss + self.config.classification_loss_weight * class_loss.to(loss.device)

        return SupMAEForPreTrainingOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            classification_loss=class_loss,
            logits=logits,
            class_logits=class_logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SupMAEForImageClassification(SupMAEPreTrainedModel):
    """
    The SupMAE encoder with a classifier, for fine-tuning and inference on whole images: mean of the patch tokens,
    LayerNorm, linear layer; or final LayerNorm, class token, linear layer if `config.use_mean_pooling` is `False`.

    Loaded from a pre-training checkpoint it takes the encoder; the classifier (and, under mean pooling, its LayerNorm)
    is new. Unlike in pre-training the position embeddings are trained.
    """

    _auto_class = "AutoModelForImageClassification"

    # the other parts of a pre-training checkpoint; mean pooling has its own LayerNorm
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classification_head\.", r"^vit\.layernorm\."]

    def __init__(self, config: SupMAEConfig):
        super().__init__(config)
        self.vit = SupMAEModel(config, use_layernorm=not config.use_mean_pooling)
        self.fc_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_mean_pooling else nn.Identity()
        )
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.classifier.init_std = config.initializer_range
        self.post_init()
        self._set_position_embeddings_trainable()

    def _set_position_embeddings_trainable(self):
        self.vit.embeddings.position_embeddings.requires_grad_(True)  # fine-tuning trains them

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """
        Classify whole images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            labels (*optional*):
                Class indices of shape `(batch_size,)`, -100 for images that the loss leaves out. Multi-label and
                regression targets have shape `(batch_size, num_labels)`; `config.problem_type` decides.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept images of another size, square or not.
            output_attentions (`bool`, *optional*): Whether to return attention weights.
            output_hidden_states (`bool`, *optional*): Whether to return the hidden states of all blocks.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`] with `logits` of shape `(batch_size, num_labels)`.

        Raises:
            ValueError: if images or labels do not fit the model, or a label is outside `[0, num_labels)`.
        """
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
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
    name, for UperNet, Mask2Former and other frameworks of Transformers.

    Loaded from any SupMAE or ViTMAE checkpoint it takes the encoder without its last LayerNorm. As in
    [`SupMAEForImageClassification`], position embeddings are trained.

    Example:

    ```python
    >>> import torch
    >>> from transformers import UperNetConfig, UperNetForSemanticSegmentation
    >>> from supmae_hf import SupMAEBackbone, SupMAEConfig

    >>> config = UperNetConfig(backbone_config=SupMAEConfig(out_indices=[4, 6, 8, 12], add_fpn=True), num_labels=150)
    >>> model = UperNetForSemanticSegmentation(config)
    >>> # model.backbone = SupMAEBackbone.from_pretrained("pretrained", out_indices=[4, 6, 8, 12], add_fpn=True)
    >>> list(model.eval()(torch.randn(1, 3, 224, 224)).logits.shape)
    [1, 150, 224, 224]

    ```"""

    _auto_class = "AutoBackbone"

    # the other parts of pre-training and classification checkpoints; the last LayerNorm is not used
    _keys_to_ignore_on_load_unexpected = [
        r"^decoder\.",
        r"^classification_head\.",
        r"^classifier\.",
        r"^fc_norm\.",
        r"layernorm\.(weight|bias)$",
    ]

    def __init__(self, config: SupMAEConfig):
        super().__init__(config)
        if hasattr(self, "_init_backbone"):  # Transformers 5.0; later releases do that themselves
            self._init_backbone(config)
        if config.add_fpn and len(self.out_features) != 4:
            raise ValueError(
                f"`add_fpn` rescales four feature maps, but `out_features` are {self.out_features}: choose four blocks, "
                "such as `out_indices=[4, 6, 8, 12]` of 12, or leave out `add_fpn`."
            )
        self.num_features = [config.hidden_size] * len(self.stage_names)
        self.vit = SupMAEModel(config, use_layernorm=False)
        self.fpn = SupMAEFeaturePyramid(config) if config.add_fpn else nn.Identity()
        self.post_init()
        self._set_position_embeddings_trainable()

    def _set_position_embeddings_trainable(self):
        self.vit.embeddings.position_embeddings.requires_grad_(True)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BackboneOutput:
        """
        Feature maps of images of any size: position embeddings are resampled bicubically, and images whose sides are
        not multiples of the patch size are padded with zeros at the bottom and on the right.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            output_hidden_states (`bool`, *optional*): Whether to return the hidden states of all blocks.
            output_attentions (`bool`, *optional*): Whether to return attention weights.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`] with `feature_maps` of shape
            `(batch_size, hidden_size, ceil(height / patch_height), ceil(width / patch_width))`, or rescaled from that
            under `config.add_fpn`.
        """
        patch_height, patch_width = to_pair(self.config.patch_size)
        height, width = pixel_values.shape[-2:]
        pixel_values = nn.functional.pad(pixel_values, (0, -width % patch_width, 0, -height % patch_height))
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=True,
            output_attentions=output_attentions,
            output_hidden_states=True,
            return_dict=True,
        )
        rows = pixel_values.shape[-2] // patch_height
        feature_maps = tuple(
            hidden_state[:, 1:].transpose(1, 2).unflatten(2, (rows, -1))
            for name, hidden_state in zip(self.stage_names, outputs.hidden_states)
            if name in self.out_features
        )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BackboneOutput(
            feature_maps=self.fpn(feature_maps),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
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
