"""The checks that Transformers makes of each of its models, on ours."""

import copy
import inspect

import pytest
import torch
from conftest import reference_config
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from supmae_hf import SupMAEBackbone, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel


TRAINABLE = [SupMAEForPreTraining, SupMAEForImageClassification]
ALL = [SupMAEModel, SupMAEBackbone, *TRAINABLE]


@pytest.fixture(params=ALL, ids=lambda model_class: model_class.__name__)
def model_class(request):
    return request.param


@pytest.fixture(params=[{}, {"use_mean_pooling": False, "classifier_hidden_size": 0}], ids=["mean", "class_token"])
def model(request, model_class):
    torch.manual_seed(0)
    return model_class(reference_config(**request.param)).eval()


@pytest.fixture
def inputs(model_class, digits):
    """What the class needs for a deterministic result."""
    if model_class is SupMAEForPreTraining:
        return {"pixel_values": digits, "noise": torch.rand(8, 16, generator=torch.Generator().manual_seed(0))}
    return {"pixel_values": digits}


@pytest.fixture
def training_inputs(model_class, inputs, digit_labels):
    return inputs if model_class not in TRAINABLE else {**inputs, "labels": digit_labels}


def main_output(outputs) -> torch.Tensor:
    if "feature_maps" in outputs:
        return outputs["feature_maps"][-1]
    return outputs["last_hidden_state"] if "last_hidden_state" in outputs else outputs["logits"]


def test_forward_signature(model_class):
    names = list(inspect.signature(model_class.forward).parameters)
    assert names[1] == "pixel_values" == model_class.main_input_name
    if model_class is SupMAEForPreTraining:
        assert names[1:5] == ["pixel_values", "labels", "noise", "interpolate_pos_encoding"]


def test_save_and_load(model, model_class, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())
    assert torch.equal(main_output(model(**inputs)), main_output(loaded(**inputs)))
    loaded.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_load_with_another_number_of_classes(tmp_path):
    SupMAEForImageClassification(reference_config()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        SupMAEForImageClassification.from_pretrained(tmp_path, num_labels=42)
    model = SupMAEForImageClassification.from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (42, 64)


def test_a_heads_encoder_loads_alone(model, model_class, tmp_path):
    if model_class not in TRAINABLE:
        pytest.skip("has no head")
    model.base_model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and not any(key.startswith("vit.") for key in info["missing_keys"])
    for a, b in zip(model.vit.state_dict().values(), loaded.vit.state_dict().values()):
        assert torch.equal(a, b)


def test_every_weight_is_initialised(model, model_class, monkeypatch):
    """Loading nothing at all gives the same model as making a new one, if every module draws from the same seed."""
    initialise = PreTrainedModel._initialize_weights

    def seeded(*args, **kwargs):
        torch.manual_seed(42)
        initialise(*args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", seeded)
    new = model_class(copy.deepcopy(model.config)).state_dict()
    loaded = model_class.from_pretrained(None, config=copy.deepcopy(model.config), state_dict={}).state_dict()
    assert new.keys() == loaded.keys()
    for name, tensor in new.items():
        assert torch.equal(tensor, loaded[name]), name


def test_initialisation_on_the_meta_device(model, model_class, inputs):
    with torch.device("meta"):
        from_meta = model_class(copy.deepcopy(model.config)).eval()
    from_meta.to_empty(device="cpu")
    from_meta.init_weights()
    assert torch.isfinite(main_output(from_meta(**inputs))).all()
    for (name, buffer), other in zip(model.named_buffers(), from_meta.buffers()):
        assert torch.equal(buffer, other), name


def test_determinism(model, inputs):
    assert torch.equal(main_output(model(**inputs)), main_output(model(**inputs)))


def test_tuple_and_dict_outputs(model, training_inputs):
    for flags in ({}, {"output_hidden_states": True, "output_attentions": True}):
        as_dict = model(**training_inputs, **flags, return_dict=True).to_tuple()
        as_tuple = model(**training_inputs, **flags, return_dict=False)
        assert isinstance(as_tuple, tuple) and len(as_tuple) == len(as_dict)
        torch.testing.assert_close(as_tuple, as_dict)
    model.config.return_dict = False
    assert isinstance(model(**training_inputs), tuple)


def test_batching(model, inputs):
    batched = model(**inputs)
    single = model(**{name: value[:1] for name, value in inputs.items()})
    torch.testing.assert_close(main_output(batched)[:1], main_output(single), atol=1e-5, rtol=1e-5)


def test_hidden_states_and_attentions(model, inputs):
    length = 5 if "noise" in inputs else 17
    by_argument = model(**inputs, output_hidden_states=True, output_attentions=True)  # attention in SDPA otherwise
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    for outputs in (by_argument, model(**inputs)):
        assert [state.shape for state in outputs.hidden_states] == [(8, length, 64)] * 4
        assert [weights.shape for weights in outputs.attentions] == [(8, 4, length, length)] * 3
        torch.testing.assert_close(outputs.attentions[0].sum(dim=-1), torch.ones(8, 4, length))
        assert list(outputs)[-2:] == ["hidden_states", "attentions"]


def test_retain_grad(model, inputs):
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    hidden_states, attentions = outputs.hidden_states[0], outputs.attentions[0]
    hidden_states.retain_grad()
    attentions.retain_grad()
    output = main_output(outputs) if "feature_maps" in outputs else outputs[0]
    output.flatten()[0].backward()
    assert hidden_states.grad is not None and attentions.grad is not None


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_implementations_agree(model_class, inputs, implementation, dtype, tmp_path):
    torch.manual_seed(0)
    model_class(reference_config()).save_pretrained(tmp_path)
    eager = model_class.from_pretrained(tmp_path, attn_implementation="eager", dtype=dtype).eval()
    other = model_class.from_pretrained(tmp_path, attn_implementation=implementation, dtype=dtype).eval()
    assert other.config._attn_implementation == implementation
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    with torch.no_grad():
        torch.testing.assert_close(
            main_output(other(**inputs)), main_output(eager(**inputs)), atol=tolerance, rtol=tolerance
        )


def test_attention_implementation_can_be_switched(model):
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        attentions = [module for module in model.modules() if hasattr(module, "q_proj")]
        assert {module.config._attn_implementation for module in attentions} == {implementation}
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    assert model.config._attn_implementation == "sdpa"


def test_torch_export(model, training_inputs):
    with torch.no_grad():
        expected = model(**training_inputs)
        exported = torch.export.export(model, args=(), kwargs=training_inputs).module()(**training_inputs)
    for name in expected:
        torch.testing.assert_close(exported[name], expected[name], atol=1e-4, rtol=1e-4)


def test_dtypes(model, model_class, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = model_class.from_pretrained(tmp_path, dtype=dtype)
        assert all(p.dtype == dtype for p in loaded.parameters())
        assert main_output(loaded(**inputs)).dtype == dtype
    assert loaded.dtype == torch.float16 and loaded.to(torch.float32).dtype == torch.float32


def test_device_map(model, model_class, inputs, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = model_class.from_pretrained(tmp_path, device_map={"": "cpu"})
    torch.testing.assert_close(main_output(loaded(**inputs)), main_output(model(**inputs)))
    offloaded = ["layers.1" if model_class is SupMAEModel else "vit.layers.1"]
    children = [name for name, _ in model.named_children()]
    if model_class is not SupMAEModel:
        children.remove("vit")
        children += [f"vit.{name}" for name, _ in model.vit.named_children()]
    layers = next(name for name in children if name.endswith("layers"))
    children.remove(layers)
    children += [f"{layers}.{index}" for index in range(3)]
    device_map = {name: "disk" if name in offloaded else "cpu" for name in children}
    loaded = model_class.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    torch.testing.assert_close(main_output(loaded(**inputs)), main_output(model(**inputs)))


@pytest.mark.parametrize("model_class", TRAINABLE, ids=lambda model_class: model_class.__name__)
def test_every_parameter_gets_a_gradient(model, training_inputs):
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(**training_inputs).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("model_class", TRAINABLE, ids=lambda model_class: model_class.__name__)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(model, training_inputs, use_reentrant):
    model.train()
    plain = copy.deepcopy(model)
    plain(**training_inputs).loss.backward()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert model.is_gradient_checkpointing and layers and all(layer.gradient_checkpointing for layer in layers)
    calls = []
    layers[0].layernorm_before.register_forward_hook(lambda *_: calls.append(1))
    model(**training_inputs).loss.backward()
    assert len(calls) == 2  # once more in the backward pass
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters()):
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_input_embeddings(model, inputs):
    assert model.get_input_embeddings() is model.base_model.embeddings.patch_embeddings
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.enable_input_require_grads()
    assert main_output(model(**inputs)).requires_grad
    model.disable_input_require_grads()
    replacement = copy.deepcopy(model.get_input_embeddings())
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is replacement


def test_feed_forward_chunking_does_not_apply(model, inputs):
    """As in ViT: the setting changes nothing."""
    expected = main_output(model(**inputs))
    model.config.chunk_size_feed_forward = 1
    torch.testing.assert_close(main_output(model(**inputs)), expected)


def test_problem_types_in_training(digits):
    for problem_type, num_labels, labels in [
        ("multi_label_classification", 2, torch.zeros(8, 2)),
        ("single_label_classification", 1, torch.zeros(8, dtype=torch.long)),
        ("regression", 1, torch.zeros(8)),
    ]:
        for trainable in TRAINABLE:
            config = reference_config()
            config.problem_type, config.num_labels = problem_type, num_labels  # set later, as Transformers' tests do
            trainable(config).train()(digits, labels=labels).loss.backward()


def test_a_configuration_that_was_broken_later_is_refused():
    config = reference_config()
    config.image_size = 33
    for model_class in ALL:
        with pytest.raises(ValueError, match="`image_size` 33 is not a multiple"):
            model_class(config)
