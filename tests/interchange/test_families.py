"""Every family of public ViTs in every form of checkpoint, as every class, and adapters; equal to the source's own class."""

import importlib.util
import json

import pytest
import timm
import torch
import transformers
from evaluation.zoo import SIZES
from interchange.test_sources import (
    ENCODERS,
    GATED,
    LABELS,
    TIMM,
    TIMM_SIZES,
    assert_close,
    images,
    make,
    randomize,
    tokens_of,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from timm.models import save_for_hf
from transformers import AutoModel, AutoModelForImageClassification

from supmae_hf import SupMAEBackbone, SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.interchange.convert import convert_original, convert_pretrained
from supmae_hf.interchange.export import export_onnx, export_stock


FAMILIES = [(name, {}) for name in ENCODERS if name != "DeiTModel"] + list(GATED.items())


@torch.no_grad()
@pytest.mark.parametrize(("name", "fields"), FAMILIES)
def test_every_form_of_checkpoint(tmp_path, name, fields):
    folder = make(name, tmp_path / "whole", **fields)
    expected = tokens_of(folder, images())
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    model.save_pretrained(tmp_path / "variant", variant="fp16", max_shard_size="30KB")
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(load_file(tmp_path / "whole" / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    assert (tmp_path / "variant" / "model.safetensors.index.fp16.json").is_file()
    for form, options in (("shards", {}), ("variant", {"variant": "fp16"}), ("pickled", {})):
        assert_close(SupMAEModel.from_pretrained(tmp_path / form, **options)(images()).last_hidden_state, expected)
    # tensors of one's own go before those of the folder
    zeros = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()}
    assert not SupMAEModel.from_pretrained(folder, state_dict=zeros)(images()).last_hidden_state.any()
    converted = convert_pretrained(folder, encoder_only=True)
    assert_close(converted(images()).last_hidden_state, expected)
    # a file tells less
    config = getattr(model.config, "vision_config", model.config)
    told = {"num_attention_heads": 2, "layer_norm_eps": config.layer_norm_eps, "image_size": 32}
    told |= {"hidden_act": "silu" if fields else config.hidden_act}
    told |= {"rope_theta": config.rope_theta} if name == "DINOv3ViTModel" else {}
    converted, _ = convert_original(tmp_path / "whole" / "model.safetensors", **told)
    assert_close(converted(images()).last_hidden_state, expected)


@pytest.mark.parametrize(("name", "fields"), FAMILIES)
def test_pretraining_goes_on(tmp_path, name, fields):
    """With masks; visible patches keep their positions, so that all of them in another order are the same image."""
    folder = make(name, tmp_path, **fields)
    sizes = {"num_labels": 5, "decoder_hidden_size": 32, "decoder_num_attention_heads": 2}
    model = SupMAEForPreTraining.from_pretrained(folder, **sizes)
    outputs = model(images(), labels=torch.arange(6) % 5)
    outputs.loss.backward()
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(model.get_parameter(key).grad is not None for key in trained)
    noise = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.eval()
        tokens = model.vit(images(), noise=noise, mask_ratio=0.0)
        prefix = model.config.num_prefix_tokens
        order = tokens.ids_restore.unsqueeze(-1).expand(-1, -1, 32)
        patches = torch.gather(tokens.last_hidden_state[:, prefix:], 1, order)
        expected = tokens_of(folder, images())
        assert_close(torch.cat([tokens.last_hidden_state[:, :prefix], patches], dim=1), expected)
    model.save_pretrained(tmp_path / "ours")
    again = SupMAEForPreTraining.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "Beit"])
def test_backbones(tmp_path, name, size):
    fields = {**ENCODERS[f"{name}Model"], "out_features": ["stage1", "stage3"]}
    folder = make(f"{name}Backbone", tmp_path, **fields, reshape_hidden_states=True)
    theirs = getattr(transformers, f"{name}Backbone").from_pretrained(folder).eval()
    ours = SupMAEBackbone.from_pretrained(folder)
    assert ours.out_features == ["stage1", "stage3"]
    for actual, expected in zip(ours(images(size)).feature_maps, theirs(images(size)).feature_maps, strict=True):
        assert_close(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_vision_towers_of_models_of_two(tmp_path, kind):
    vision = {**SIZES, **ENCODERS[f"{kind}VisionModel"]}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    model = randomize(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(tmp_path)
    expected = model.vision_model(images()).last_hidden_state
    expected = model.vision_model.post_layernorm(expected) if kind == "CLIP" else expected
    assert_close(SupMAEModel.from_pretrained(tmp_path)(images()).last_hidden_state, expected)
    assert_close(convert_pretrained(str(tmp_path))(images()).last_hidden_state, expected)


@torch.no_grad()
@pytest.mark.parametrize(("name", "fields"), FAMILIES)
def test_half_precision(tmp_path, name, fields):
    """As far from float32 as the source's own class in bfloat16, or nearer."""
    folder = make(name, tmp_path, **fields)
    exact = tokens_of(folder, images())
    if name == "ViTMAEModel":  # whose own class is in float32 for the noise here
        return
    theirs = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    theirs = theirs(images().bfloat16())
    theirs = theirs.last_hidden_state if name != "CLIPVisionModel" else theirs.pooler_output
    ours = SupMAEModel.from_pretrained(folder, dtype=torch.bfloat16)(images()).last_hidden_state
    if name == "CLIPVisionModel":
        exact, ours = exact[:, 0], ours[:, 0]
    error = (ours.float() - exact).abs().mean()
    assert error <= 1.5 * (theirs.float() - exact).abs().mean()


@torch.no_grad()
def test_the_fields_of_a_classifier_come_along(tmp_path):
    folder = make("ViTForImageClassification", tmp_path, problem_type="multi_label_classification")
    model = SupMAEForImageClassification.from_pretrained(folder)
    assert model.config.problem_type == "multi_label_classification"
    folder = make("Dinov2ForImageClassification", tmp_path / "dinov2")
    assert SupMAEForPreTraining.from_pretrained(folder).config.id2label == LABELS["id2label"]


@torch.no_grad()
def test_our_own_beit_comes_back(tmp_path):
    config = SupMAEForImageClassification.config_class(**SIZES, **LABELS)
    model = randomize(SupMAEForImageClassification(config))
    export_stock(model, tmp_path / "beit")
    for back in (
        SupMAEForImageClassification.from_pretrained(tmp_path / "beit"),
        convert_pretrained(str(tmp_path / "beit")),
    ):
        assert type(back) is SupMAEForImageClassification and back.config.use_mean_pooling
        assert_close(back(images()).logits, model(images()).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_folders_that_timm_saves(tmp_path, name):
    architecture, model_args = TIMM[name]
    vit = randomize(timm.create_model(architecture, num_classes=5, **{**TIMM_SIZES, **model_args}))
    if name == "no positions" and vit.forward_features(images()).shape[1] == 16:
        pytest.skip("this timm leaves out the class token, too")
    arguments = {"num_classes": 5, **TIMM_SIZES, **model_args}  # as `timm.create_model` was called
    save_for_hf(vit, tmp_path, model_args=arguments, safe_serialization=True)
    model = convert_pretrained(str(tmp_path))  # which checks it
    assert type(model) in (SupMAEModel, SupMAEForImageClassification)
    if type(model) is SupMAEForImageClassification:
        assert_close(model(images()).logits, vit(images()))


@torch.no_grad()
@pytest.mark.parametrize(
    "model_args",
    [
        {"final_norm": False},
        {"global_pool": "avg", "pool_include_prefix": True},
        {"global_pool": "avg", "fc_norm": False},
    ],
)
def test_classifiers_of_timm_that_compute_otherwise_are_left_out(tmp_path, model_args, warnings):
    vit = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=5, **TIMM_SIZES, **model_args))
    save_for_hf(vit, tmp_path, model_args={**TIMM_SIZES, **model_args}, safe_serialization=True)
    _, info = SupMAEForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {"classifier.weight", "classifier.bias"} <= set(info["missing_keys"])
    assert "without its classifier" in warnings.text and type(convert_pretrained(str(tmp_path))) is SupMAEModel


def test_one_line_says_what_was_read(tmp_path, capfd, warnings):
    folder = make("Dinov2Model", tmp_path)
    warnings.clear()
    SupMAEForPreTraining.from_pretrained(folder)
    assert "LOAD REPORT" not in capfd.readouterr().err + warnings.text and "MISSING" not in warnings.text
    (line,) = warnings.text.strip().splitlines()
    assert "LayerScale folded into the projections; new: classification_head, decoder" in line


STOCK = {
    "ViTModel": "ViTModel",
    "IJepaModel": "IJepaModel",
    "SiglipVisionModel": "IJepaModel",
    "CLIPVisionModel": "CLIPVisionModel",
    "Dinov2WithRegistersModel": "Dinov2WithRegistersModel",
    "Dinov2Model": "Dinov2WithRegistersModel",  # SwiGLU
    "DINOv3ViTModel": "DINOv3ViTModel",
}


@torch.no_grad()
@pytest.mark.parametrize("name", STOCK)
def test_encoders_go_out_again(tmp_path, name):
    """`export_stock` checks that the stock class computes the same; and what it writes comes back."""
    folder = make(name, tmp_path / "theirs", **GATED.get(name, {}))
    model = SupMAEModel.from_pretrained(folder)
    assert export_stock(model, tmp_path / "stock") == STOCK[name]
    back = SupMAEModel.from_pretrained(tmp_path / "stock")
    assert_close(back(images()).last_hidden_state, model(images()).last_hidden_state)
    export_onnx(model, tmp_path / "onnx")  # which checks, too


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"num_register_tokens": 2},
        {"num_register_tokens": 2, "use_mean_pooling": False},
        {"use_cls_token": False},
        {"use_pre_layernorm": True, "use_mean_pooling": False},
        {"use_gated_mlp": True, "hidden_act": "silu"},
        {"use_absolute_position_embeddings": False},
    ],
)
def test_classifiers_become_timm_models(tmp_path, fields):
    model = randomize(SupMAEForImageClassification(SupMAEConfig(**SIZES, **LABELS, **fields)))
    if "use_absolute_position_embeddings" in fields:
        vit = timm.create_model("vit_tiny_patch16_224", **{**TIMM_SIZES, "pos_embed": "none"})
        if vit.forward_features(images()).shape[1] == 16:
            pytest.skip("this timm leaves out the class token, too")
    export_stock(model, tmp_path / "timm", timm=True)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    vit = timm.create_model(config["architecture"], num_classes=5, **config["model_args"]).eval()
    vit.load_state_dict(load_file(tmp_path / "timm" / "model.safetensors"))
    assert_close(vit(images()), model(images()).logits)
    back = SupMAEForImageClassification.from_pretrained(tmp_path / "timm")
    assert_close(back(images()).logits, model(images()).logits)
    with pytest.raises(ValueError, match="No class of Transformers computes what a SupMAEForImageClassification with"):
        export_stock(model, tmp_path / "stock")


@torch.no_grad()
def test_what_no_class_computes_is_refused(tmp_path):
    rotary = SupMAEConfig(**SIZES, rope_theta=100.0, use_absolute_position_embeddings=False, num_register_tokens=1)
    cases = [
        (
            SupMAEForPreTraining,
            rotary,
            "a SupMAEForPreTraining with no position embeddings, register tokens, rotary positions",
        ),
        (SupMAEBackbone, SupMAEConfig(**SIZES), "a SupMAEBackbone does: use `--encoder_only`"),
        (
            SupMAEModel,
            SupMAEConfig(**SIZES, use_cls_token=False, num_register_tokens=1),
            "a SupMAEModel with no class token",
        ),
    ]
    for model_class, config, message in cases:
        with pytest.raises(ValueError, match=message):
            export_stock(model_class(config), tmp_path / "out")
    for sizes in ({"image_size": (32, 48)}, {"patch_size": (4, 8)}):
        with pytest.raises((RuntimeError, ValueError), match="ViTMAEForPreTraining|No class of Transformers"):
            export_stock(SupMAEForPreTraining(SupMAEConfig(**{**SIZES, **sizes})), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- adapters ---

# without which Transformers loads none
has_adapters = pytest.mark.skipif(
    importlib.util.find_spec("peft.utils.transformers_weight_conversion") is None, reason="PEFT is too old"
)


@has_adapters
@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTForImageClassification", "ViTMSNForImageClassification", "IJepaModel"])
def test_adapters_of_other_models(tmp_path, name, monkeypatch):
    folder = make(name, tmp_path / "base")
    is_classifier = name.endswith("Classification")
    base = (AutoModelForImageClassification if is_classifier else AutoModel).from_pretrained(folder)
    lora = {
        "target_modules": ["q_proj", "v_proj", "fc1"],
        "modules_to_save": ["classifier"] if is_classifier else None,
    }
    adapted = randomize(get_peft_model(base, LoraConfig(r=4, **lora)))
    adapted.save_pretrained(tmp_path / "adapter")
    ours = (SupMAEForImageClassification if is_classifier else SupMAEModel).from_pretrained(tmp_path / "adapter")
    key = "logits" if is_classifier else "last_hidden_state"
    # the base that was saved, not the one that `randomize` changed, and the adapter
    stock = (
        (AutoModelForImageClassification if is_classifier else AutoModel).from_pretrained(tmp_path / "adapter").eval()
    )
    assert_close(ours.eval()(images())[key], stock(images())[key])
    plain = type(ours).from_pretrained(folder).eval()
    assert (plain(images())[key] - ours(images())[key]).abs().max() > 0.01


@has_adapters
@pytest.mark.parametrize(("name", "problem"), [("Dinov2Model", "LayerScale"), ("SiglipVisionModel", "other layers")])
def test_adapters_that_would_not_fit_are_refused(tmp_path, name, problem):
    base = AutoModel.from_pretrained(make(name, tmp_path / "base"))
    targets = ["fc2"] if name == "Dinov2Model" else ["q_proj", "out_proj"]
    get_peft_model(base, LoraConfig(r=4, target_modules=targets)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"is an adapter of a model with {problem}.*merge_and_unload"):
        SupMAEModel.from_pretrained(tmp_path / "adapter")


# --- files of self-supervised training ---


def checkpoint(kind: str, tensors: dict) -> dict:
    def under(prefix: str, scale: float = 1.0) -> dict:
        return {f"{prefix}{key}": scale * tensor for key, tensor in tensors.items()}

    head = {"head.mlp.0.weight": torch.zeros(4, 32), "head.last_layer.weight_g": torch.zeros(4, 1)}
    if kind in ("DINO", "iBOT"):
        student = {f"module.{key}": tensor for key, tensor in {**under("backbone.", 2), **head}.items()}
        return {"student": student, "teacher": {**under("backbone."), **head}, "epoch": 3, "optimizer": {"state": {}}}
    if kind == "MoCo v3":
        heads = {
            "module.momentum_encoder.head.0.weight": torch.zeros(4, 32),
            "module.predictor.0.weight": torch.zeros(4, 4),
        }
        return {
            "arch": "vit_small",
            "state_dict": {**under("module.base_encoder.", 2), **under("module.momentum_encoder."), **heads},
        }
    if kind == "solo-learn":
        others = {"classifier.weight": torch.zeros(3, 32), "momentum_projector.0.weight": torch.zeros(4, 32)}
        return {"state_dict": {**under("backbone.", 2), **under("momentum_backbone."), **others}, "global_step": 5}
    if kind == "lightly":
        return {
            "state_dict": {
                **under("student_backbone.vit.", 2),
                **under("teacher_backbone.vit."),
                "criterion.center": torch.zeros(4),
            }
        }
    if kind == "mmpretrain":
        names = {
            "blocks.": "layers.", ".norm1.": ".ln1.", ".norm2.": ".ln2.", "mlp.fc1.": "ffn.layers.0.0.", "mlp.fc2.": "ffn.layers.1.",
            "patch_embed.proj.": "patch_embed.projection.",
        }  # fmt: skip
        renamed = {}
        for key, tensor in tensors.items():
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
            renamed[f"backbone.{'ln1' + key.removeprefix('norm') if key.startswith('norm.') else key}"] = tensor
        return {"meta": {"epoch": 3}, "state_dict": {**renamed, "neck.fc.weight": torch.zeros(4, 32)}}
    return {"state_dict": {**under("encoder."), "queue": torch.zeros(3)}, "hyper_parameters": {"lr": 0.1}}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["DINO", "iBOT", "MoCo v3", "solo-learn", "lightly", "mmpretrain", "Lightning"])
def test_files_of_self_supervised_training(tmp_path, kind):
    vit = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=0, **TIMM_SIZES))
    torch.save(checkpoint(kind, vit.state_dict()), tmp_path / "file.pth")
    model, said = convert_original(tmp_path / "file.pth", num_attention_heads=2)
    assert type(model) is SupMAEModel and "is an encoder" in said and len(said) < 700
    assert_close(model(images()).last_hidden_state, vit.forward_features(images()))


@torch.no_grad()
@pytest.mark.parametrize("is_swiglu", [False, True])
def test_dinov3s_own_files(tmp_path, is_swiglu):
    fields = {"use_gated_mlp": True, "hidden_act": "silu"} if is_swiglu else {}
    folder = make("DINOv3ViTModel", tmp_path / "folder", **fields)
    tensors, names = {}, {
        "embeddings.register_tokens": "storage_tokens", "embeddings.patch_embeddings.": "patch_embed.proj.", "layer.": "blocks.",
        "embeddings.": "", ".attention.o_proj.": ".attn.proj.", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
        "mlp.gate_proj.": "mlp.w1.", "mlp.up_proj.": "mlp.w2." if is_swiglu else "mlp.fc1.",
        "mlp.down_proj.": "mlp.w3." if is_swiglu else "mlp.fc2.",
    }  # fmt: skip
    stock = load_file(tmp_path / "folder" / "model.safetensors")
    for key, tensor in stock.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        tensors[key] = tensor
    for layer in range(3):
        parts = [tensors.pop(f"blocks.{layer}.attention.{part}_proj.weight") for part in "qkv"]
        biases = [tensors.pop(f"blocks.{layer}.attention.{part}_proj.bias", torch.full((32,), 7.0)) for part in "qkv"]
        tensors[f"blocks.{layer}.attn.qkv.weight"], tensors[f"blocks.{layer}.attn.qkv.bias"] = map(
            torch.cat, (parts, biases)
        )
        mask = torch.ones(96)
        mask[32:64] = 0
        tensors[f"blocks.{layer}.attn.qkv.bias_mask"] = mask
    tensors["rope_embed.periods"] = 100.0 ** (torch.arange(4) / 4)
    torch.save(tensors, tmp_path / "dinov3.pth")
    model, said = convert_original(tmp_path / "dinov3.pth", image_size=32)
    assert model.config.rope_theta == pytest.approx(100) and model.config.num_attention_heads == 2
    assert_close(model(images()).last_hidden_state, tokens_of(folder, images()))
    assert "hidden_act" in said


@torch.no_grad()
@pytest.mark.parametrize("grid", [(6, 8), (3, 5), (2, 4), (2, 8)])
def test_files_of_images_that_are_not_square(tmp_path, grid):
    size = tuple(8 * side for side in grid)
    vit = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TIMM_SIZES, "img_size": size}))
    torch.save(vit.state_dict(), tmp_path / "file.pth")
    model, said = convert_original(tmp_path / "file.pth", num_attention_heads=2, image_size=size)
    pixels = torch.randn(2, 3, *size)
    assert_close(model(pixels).logits, vit(pixels))
    assert model.config.image_size == size and "image_size" not in said
    if grid != (2, 8):  # 16 patches might be 4x4
        return
    _, said = convert_original(tmp_path / "file.pth", num_attention_heads=2)
    assert "32 image_size, a square (`--image_size`)" in said


def test_what_a_file_does_not_say_is_said(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TIMM_SIZES, "embed_dim": 192, "num_heads": 3})
    torch.save(vit.state_dict(), tmp_path / "file.pth")
    model, said = convert_original(tmp_path / "file.pth")
    assert model.config.num_attention_heads == 3
    for flag in ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "encoder_only"):
        assert f"`--{flag}`" in said
    model, said = convert_original(
        tmp_path / "file.pth", num_attention_heads=6, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-5
    )
    assert (model.config.num_attention_heads, model.config.hidden_act) == (6, "gelu_pytorch_tanh")
    assert "num_attention_heads" not in said and "hidden_act" not in said


def test_a_refusal_names_what_was_found(tmp_path):
    torch.save({"state_dict": {f"net.{index}.weight": torch.zeros(2) for index in range(500)}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"net\.0\.weight, net\.1\.weight.*and 495 more") as error:
        convert_original(tmp_path / "file.pth")
    assert len(str(error.value)) < 500
    torch.save({"weights": [1], "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="Its keys are weights, epoch"):
        convert_original(tmp_path / "file.pth")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["Dinov2WithRegistersModel", "DINOv3ViTModel", "SiglipVisionModel"])
def test_base_models_at_full_size(tmp_path, name):
    model_class = getattr(transformers, name)
    size = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    if "Dinov2" in name:
        size |= {"image_size": 518, "patch_size": 14, "num_register_tokens": 4, "layerscale_value": 0.3}
    else:
        size |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 16}
    if "v3" in name:
        size |= {"num_register_tokens": 4, "layerscale_value": 0.3}
    randomize(model_class(model_class.config_class(**size)), std=0.01).save_pretrained(tmp_path)
    model = convert_pretrained(str(tmp_path))  # which checks it
    assert model.num_parameters() > 85e6 and json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 768
