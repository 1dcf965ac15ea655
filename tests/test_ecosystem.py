"""What works with stock ViT works with SupMAE: hooks, autograd's checks, torch.func, exports, sharding, adapters, frameworks."""

import copy
import gc
import io
import json
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
import torch.distributed as dist
from conftest import TINY, example_command, free_port, reference_config, run_command
from torch.func import functional_call, grad, jacrev, vmap
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

import supmae_hf
from supmae_hf import SupMAEBackbone, SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.preparation import build_image_processor


NOISE = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
NAMES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def vit() -> ViTForImageClassification:
    """The stock model that SupMAEForImageClassification is compared with."""
    fields = {name: getattr(reference_config(), name) for name in NAMES}
    return ViTForImageClassification(ViTConfig(**fields, num_labels=10))


# what is done to a stock model, and must do to ours what it does there
def hook_norm(layer):
    layer.layernorm_before.register_forward_hook(lambda _, inputs, output: output * 1.5 + 0.1)


def replace_norm(layer):
    layer.layernorm_after = torch.nn.Sequential(layer.layernorm_after, torch.nn.Dropout(0.3))


def change_in_place(layer):
    layer.mlp.fc2.register_forward_pre_hook(lambda _, inputs: (inputs[0].mul_(0.5),))


@pytest.mark.parametrize("modify", [hook_norm, replace_norm, change_in_place])
def test_gradients_of_modified_models(modify, digits, digit_labels):
    """Against the slope of the loss in float64, along the gradient."""
    model = SupMAEForPreTraining(reference_config(classifier_hidden_size=0)).double().train()
    modify(model.vit.layers[1])

    def loss():
        torch.manual_seed(0)
        return model(digits.double(), labels=digit_labels, noise=NOISE).loss

    loss().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = torch.stack([p.grad.norm() for p in trained]).norm()
    ends = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for parameter in trained:
                parameter += step * parameter.grad / norm
            ends.append(loss())
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, norm, rtol=1e-6, atol=0)


def test_gradcheck():
    config = SupMAEConfig(
        **{**TINY, "image_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "decoder_hidden_size": 8}
    )
    model = SupMAEForPreTraining(config).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    labels, noise = torch.tensor([1, -100]), torch.rand(2, 4)
    assert torch.autograd.gradcheck(lambda x: model(x, labels=labels, noise=noise).loss, images)


def test_graphs_that_are_not_back_propagated_are_freed(digits):
    """As when a framework does not use the last block."""
    backbone = SupMAEBackbone(reference_config(out_indices=[1, 3])).train()
    outputs = backbone(digits, output_hidden_states=True)
    alive = [weakref.ref(tensor) for tensor in (*outputs.hidden_states, *outputs.feature_maps)]
    outputs.feature_maps[0].sum().backward()
    del outputs
    gc.collect()
    assert not any(reference() is not None for reference in alive)


def test_autograd_sees_changes_in_place(digits):
    model = SupMAEModel(reference_config()).train()
    seen = []
    model.layers[0].layernorm_after.register_forward_hook(lambda _, inputs, output: seen.append(output))
    outputs = model(digits)
    with torch.no_grad():
        seen[0] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.pooler_output.sum().backward()


def test_activation_checkpointing_from_outside_saves_memory(digits):
    def saved_bytes(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(digits)
        return total

    def checkpointed(model):
        for layer in model.base_model.layers:
            layer.forward = lambda *args, forward=layer.forward, **kwargs: torch.utils.checkpoint.checkpoint(
                forward, *args, use_reentrant=False, **kwargs
            )
        return model

    for make in (vit, lambda: SupMAEForImageClassification(reference_config())):
        assert saved_bytes(checkpointed(make())) < 0.4 * saved_bytes(make())


# --- torch.func ---


def test_per_sample_gradients(digits, digit_labels):
    model = SupMAEForPreTraining(reference_config()).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, image, label, noise):
        inputs = {"labels": label[None], "noise": noise[None]}
        return functional_call(model, parameters, (image[None],), inputs).loss

    together = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, digits, digit_labels, NOISE)
    for index in (0, 5):
        alone = grad(loss)(parameters, digits[index], digit_labels[index], NOISE[index])
        for name in alone:
            torch.testing.assert_close(together[name][index], alone[name], atol=1e-5, rtol=1e-4, msg=name)


def test_modules_compute_from_tensors_alone(digits, digit_labels):
    """As in stock ViT: what Opacus sees of a module with parameters (its tensors by position) is enough to run it again."""
    for model in (vit(), SupMAEForImageClassification(reference_config())):
        seen = []

        def keep(module, inputs, output, seen=seen):
            seen.append((module, inputs, output))

        for module in model.modules():
            if list(module.parameters(recurse=False)):
                module.register_forward_hook(keep)
        model.eval()(pixel_values=digits, labels=digit_labels)
        calls = list(seen)
        assert len(calls) > 20
        for module, inputs, output in calls:
            assert inputs and all(isinstance(value, torch.Tensor) for value in (*inputs, output))
            torch.testing.assert_close(module(*inputs), output)


def test_jacobian_of_the_logits(digits):
    model = SupMAEForImageClassification(reference_config()).eval()
    jacobian = jacrev(lambda images: model(images).logits)(digits[:2])
    assert jacobian.shape == (2, 10, 2, 3, 32, 32) and jacobian[0, :, 1].eq(0).all()


# --- exports ---


def test_torch_export_with_any_batch_size(digits, digit_labels):
    model = SupMAEForPreTraining(reference_config()).eval()
    inputs = {"pixel_values": digits, "labels": digit_labels, "noise": NOISE}
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
        for size in (2, 5, 8):
            some = {name: value[:size] for name, value in inputs.items()}
            exported, expected = program.module()(**some), model(**some)
            for name in expected:
                torch.testing.assert_close(exported[name], expected[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("model_class", [SupMAEModel, SupMAEForImageClassification])
def test_torchscript_onnx_export_with_any_batch_size(model_class, digits):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_class(reference_config(return_dict=False)).eval()
    file = io.BytesIO()
    axes = {"pixel_values": {0: "batch"}, "output": {0: "batch"}}
    torch.onnx.export(
        model,
        (digits[:2],),
        file,
        input_names=["pixel_values"],
        output_names=["output"],
        dynamic_axes=axes,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in (1, 2, 8):
        result = session.run(["output"], {"pixel_values": digits[:size].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(result), model(digits[:size])[0], atol=1e-5, rtol=1e-4)


def test_half_precision_traces_can_be_saved(digits, tmp_path):
    model = SupMAEModel(reference_config(return_dict=False)).to(torch.bfloat16).eval()
    torch.jit.trace(model, digits.bfloat16(), strict=False).save(tmp_path / "trace.pt")
    loaded = torch.jit.load(tmp_path / "trace.pt")(digits.bfloat16())
    torch.testing.assert_close(loaded[0], model(digits.bfloat16())[0], atol=0.05, rtol=0.05)


def test_the_meta_device(digits, digit_labels):
    with torch.device("meta"):
        for model_class in (SupMAEForPreTraining, SupMAEForImageClassification):
            outputs = model_class(reference_config())(digits.to("meta"), labels=digit_labels.to("meta"))
            assert outputs.loss.device.type == "meta" and outputs.loss.shape == ()


# --- arguments and settings ---


@pytest.mark.parametrize(
    "model_class", [SupMAEModel, SupMAEForPreTraining, SupMAEForImageClassification, SupMAEBackbone]
)
def test_arguments_that_nobody_reads_are_refused(model_class, digits):
    for name in ("mask_ration", "attention_mask", "bool_masked_pos"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            model_class(reference_config())(digits, **{name: 0.5})
    if model_class in (SupMAEForImageClassification, SupMAEBackbone):  # not passed on to the encoder, which would mask
        with pytest.raises(TypeError, match="unexpected keyword argument 'mask_ratio'"):
            model_class(reference_config())(digits, mask_ratio=0.5)


def test_attention_settings_are_stock(digits):
    for make in (vit, lambda: SupMAEForImageClassification(reference_config())):
        model = make().eval()
        assert model.config._attn_implementation == "sdpa"
        with pytest.raises(ValueError, match="`output_attentions` .*not supported|attn_implementation"):
            model.config.output_attentions = True
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        assert len(model(digits).attentions) == 3


# --- registration ---


def test_registration_in_a_fresh_process(tmp_path):
    """However a process comes by a configuration. (Each piece runs in a fork of one that has imported Transformers alone.)"""
    from transformers import CONFIG_MAPPING

    SupMAEModel(reference_config()).save_pretrained(tmp_path)
    config = pickle.dumps(reference_config())
    (tmp_path / "mapping").write_bytes(pickle.dumps(CONFIG_MAPPING))
    pieces = [
        # what the scripts need beside the model is not installed everywhere
        "import supmae_hf; assert not {'timm', 'datasets', 'sklearn', 'pandas', 'matplotlib'} & (set(sys.modules) - known)",
        f"import supmae_hf; AutoModel.from_pretrained({str(tmp_path)!r})",
        "from supmae_hf.configuration_supmae import SupMAEConfig; AutoModel.from_config(SupMAEConfig(num_hidden_layers=1))",
        f"AutoModel.from_config(pickle.loads({config!r}))",
        f"UperNetConfig(backbone_config=pickle.loads({config!r}))",
        f"assert pickle.load(open({str(tmp_path / 'mapping')!r}, 'rb'))['supmae'].__name__ == 'SupMAEConfig'",
    ]
    code = f"""import os, pickle, sys, torch, torchvision.transforms.v2
from transformers import AutoModel, UperNetConfig
known = set(sys.modules)
for piece in {pieces!r}:
    if os.fork() == 0:
        exec(piece)
        os._exit(0)
    assert os.wait()[1] == 0, piece
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# --- sharding and adapters ---


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_fsdp2_on_single_norms(one_process_group, digits, digit_labels):
    from torch.distributed.fsdp import fully_shard

    model = SupMAEForPreTraining(reference_config()).train()
    expected = copy.deepcopy(model)(digits, labels=digit_labels, noise=NOISE).loss
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for layer in model.vit.layers:
        fully_shard(layer.layernorm_before, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(digits, labels=digit_labels, noise=NOISE).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)


def test_peft(digits, digit_labels):
    peft = pytest.importorskip("peft")
    for make in (vit, lambda: SupMAEForImageClassification(reference_config())):
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
        model = peft.get_peft_model(make(), config)
        model(digits, labels=digit_labels).loss.backward()
        trained = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        assert len(trained) == 3 * 2 * 2 + 2 and model.merge_and_unload()(digits).logits.shape == (8, 10)


@pytest.mark.slow
def test_zero_3(tmp_path):
    """DeepSpeed shards the parameters themselves: each is gathered when its module runs, and only then."""
    pytest.importorskip("deepspeed")
    config = tmp_path / "zero.json"
    config.write_text(
        '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true}, '
        '"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", "gradient_accumulation_steps": "auto"}'
    )
    SupMAEForPreTraining(SupMAEConfig(**TINY, num_labels=10)).save_pretrained(tmp_path / "start")
    arguments = ["--model_name_or_path", "start", "--model_config", json.dumps(TINY), "--optim", "adamw_torch"]
    arguments += ["--max_steps", 2, "--warmup_epochs", 0, "--report_to", "none", "--save_strategy", "no", "--use_cpu"]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "1",
        "--master_port",
        str(free_port()),
    ]
    for name, more in (("plain", []), ("sharded", ["--deepspeed", config])):
        command = example_command("run_pretrain.py", *arguments, "--output_dir", name, *more)
        run_command([*launch, *command[1:]], tmp_path)
    plain, sharded = (SupMAEForPreTraining.from_pretrained(tmp_path / name) for name in ("plain", "sharded"))
    zero_gradient = ("k_proj.bias", "classification_head.fc1.bias", "batch_norm.running_mean")  # but for rounding
    for (name, weight), other in zip(plain.state_dict().items(), sharded.state_dict().values()):
        if not name.endswith(zero_gradient):
            torch.testing.assert_close(other, weight, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SupMAEForPreTraining", "SupMAEForImageClassification"])
def test_models_are_made_inside_of_zero_init(tmp_path, name):
    pytest.importorskip("deepspeed")
    code = f"""
import deepspeed, torch, supmae_hf
torch.distributed.init_process_group("gloo")
with deepspeed.zero.Init(config_dict_or_path={{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {{"stage": 3}}}}):
    model = supmae_hf.{name}(supmae_hf.SupMAEConfig(**{TINY}))
with deepspeed.zero.GatheredParameters(list(model.parameters())):
    torch.save({{key: value.detach().clone() for key, value in model.named_parameters()}}, "weights.pt")
"""
    (tmp_path / "make.py").write_text(code)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "1", "--master_port", str(free_port())]
    run_command([sys.executable, *launch, "make.py"], tmp_path)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for key, value in getattr(supmae_hf, name)(SupMAEConfig(**TINY)).named_parameters():
        assert weights[key].shape == value.shape
        if "pos" in key:
            torch.testing.assert_close(weights[key], value.detach())
        elif value.numel() > 500:
            assert weights[key].std().item() == pytest.approx(value.std().item(), rel=0.2)


# --- frameworks ---


@pytest.mark.parametrize("framework", ["dpt", "depth_anything"])
def test_depth_estimation(framework):
    backbone_config = reference_config(out_indices=[0, 1, 2, 3], reshape_hidden_states=False)
    shared = {
        "backbone_config": backbone_config,
        "neck_hidden_sizes": [16, 16, 16, 16],
        "fusion_hidden_size": 16,
        "reassemble_factors": [4, 2, 1, 0.5],
    }
    if framework == "dpt":
        model = DPTForDepthEstimation(DPTConfig(**shared, is_hybrid=False, backbone_out_indices=None, hidden_size=64))
    else:
        model = DepthAnythingForDepthEstimation(
            DepthAnythingConfig(**shared, patch_size=8, reassemble_hidden_size=64, head_hidden_size=8)
        )
    assert isinstance(model.backbone, SupMAEBackbone)
    depth = model.eval()(torch.randn(2, 3, 32, 32)).predicted_depth
    assert depth.shape[0] == 2 and depth.isfinite().all()


def test_plain_trainer(digits, digit_labels, tmp_path):
    items = [{"pixel_values": image, "labels": label} for image, label in zip(digits, digit_labels)]
    arguments = TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    for model_class in (SupMAEForPreTraining, SupMAEForImageClassification):
        trainer = Trainer(model_class(reference_config()), arguments, train_dataset=items, eval_dataset=items)
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


def test_multi_label_pipelines_have_independent_scores(digits, photographs, tmp_path):
    from PIL import Image

    model = SupMAEForImageClassification(reference_config())
    model(digits, labels=torch.ones(8, 10))
    model.classifier.bias.data += 5
    model.save_pretrained(tmp_path)
    build_image_processor(model.config).save_pretrained(tmp_path)
    scores = pipeline("image-classification", model=str(tmp_path))(Image.fromarray(photographs[0]), top_k=10)
    assert sum(score["score"] for score in scores) > 5  # of a softmax: 1
