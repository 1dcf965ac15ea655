"""Models out: stock classes of Transformers, timm and ONNX that compute the same, with and without our package."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from conftest import FIXTURES, load_reference, reference_config
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.interchange import export
from supmae_hf.interchange.convert import convert_original
from supmae_hf.interchange.export import export_onnx, export_stock


def seeded(model_class, **fields):
    torch.manual_seed(0)
    model = model_class(reference_config(**fields)).eval()
    for parameter in model.parameters():  # nothing may be zero or one by default: biases, norms, the keys' bias
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


CASES = [
    (SupMAEForImageClassification, {}, "BeitForImageClassification"),
    (SupMAEForImageClassification, {"qkv_bias": False, "num_channels": 1}, "BeitForImageClassification"),
    (SupMAEForImageClassification, {"use_mean_pooling": False}, "ViTForImageClassification"),
    (SupMAEModel, {}, "ViTModel"),
    (SupMAEForPreTraining, {}, "ViTMAEForPreTraining"),
    (SupMAEForPreTraining, {"norm_pix_loss": False, "mask_ratio": 0.5}, "ViTMAEForPreTraining"),
]


@pytest.mark.parametrize(("model_class", "fields", "name"), CASES)
def test_stock_classes(tmp_path, model_class, fields, name):
    model = seeded(model_class, **fields)
    folder = tmp_path / "out"
    assert export_stock(model, folder) == name
    assert {path.name for path in folder.iterdir()} == {
        *("_supmae_run.json", "config.json", "model.safetensors", "preprocessor_config.json", "README.md"),
        # a processor that Transformers does not have
        *(["image_processing_supmae.py"] if model.config.num_channels != 3 else []),
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [name] and "supmae" not in config["model_type"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and name in card.text
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("pooling", ["global_pool", "cls_token"])
def test_the_authors_logits_through_stock_classes(tmp_path, pooling):
    from transformers import AutoModelForImageClassification

    model, _ = convert_original(FIXTURES / f"official_finetune_tiny_{pooling}.pth", num_attention_heads=4)
    reference = load_reference("official_finetune_tiny_outputs.safetensors")
    export_stock(model, tmp_path / "transformers")
    export_stock(model, tmp_path / "timm", timm=True)
    for folder in ("transformers", "timm"):
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / folder).eval()
        logits = loaded(reference["pixel_values"]).logits
        torch.testing.assert_close(logits, reference[f"{pooling}.logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_timm(tmp_path, use_mean_pooling, digits):
    import timm
    from transformers import AutoModelForImageClassification, pipeline

    labels = {index: f"digit {index}" for index in range(10)}
    model = seeded(SupMAEForImageClassification, use_mean_pooling=use_mean_pooling, id2label=labels)
    folder = tmp_path / "out"
    assert export_stock(model, folder, timm=True) == "TimmWrapperForImageClassification"
    config = json.loads((folder / "config.json").read_text())
    direct = timm.create_model(
        config["architecture"],
        checkpoint_path=str(folder / "model.safetensors"),
        num_classes=10,
        **config["model_args"],
    ).eval()
    torch.testing.assert_close(direct(digits), model(digits).logits, atol=1e-5, rtol=1e-5)
    # the README's own call
    code = (folder / "README.md").read_text().split("```python\n")[1].split("# or through")[0]
    scope = {}
    exec(code.replace('"out/', f'"{folder}/'), scope)
    torch.testing.assert_close(scope["model"].eval()(digits), model(digits).logits, atol=1e-5, rtol=1e-5)
    wrapped = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert wrapped.config.id2label == labels
    photograph = load_sample_images().images[0]
    from PIL import Image

    assert (
        pipeline("image-classification", model=str(folder))(Image.fromarray(photograph))[0]["label"] in labels.values()
    )


def test_timm_takes_classifiers_only(tmp_path):
    with pytest.raises(ValueError, match="Only a classifier becomes a timm model, not a SupMAEModel"):
        export_stock(seeded(SupMAEModel), tmp_path / "out", timm=True)


@pytest.mark.parametrize("timm", [False, True])
def test_an_export_that_differs_leaves_nothing_behind(tmp_path, timm, monkeypatch):
    model = seeded(SupMAEForImageClassification)
    name = "to_timm" if timm else "to_stock"
    convert = getattr(export, name)

    def broken(*args):
        converted = convert(*args)
        converted.state_dict = {k: v * 1.1 if k.endswith("cls_token") else v for k, v in converted.state_dict.items()}
        return converted

    monkeypatch.setattr(export, name, broken)
    with pytest.raises(RuntimeError, match="does not compute the same as the model"):
        export_stock(model, tmp_path / "out", timm=timm)
    assert not list(tmp_path.iterdir())


def test_exact_activation_is_required(tmp_path):
    """timm's ViT has another activation: the check notices."""
    with pytest.raises(RuntimeError, match="does not compute the same"):
        export_stock(seeded(SupMAEForImageClassification, hidden_act="relu"), tmp_path / "out", timm=True)
    assert not list(tmp_path.iterdir())


def test_what_a_stock_class_cannot_run_is_refused(tmp_path):
    model = seeded(SupMAEForImageClassification, image_size=(32, 48))
    with pytest.raises(RuntimeError, match="BeitForImageClassification cannot run a model like this"):
        export_stock(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export_stock(model, tmp_path / "out", timm=True)


def test_half_precision_is_refused(tmp_path):
    model = copy.deepcopy(seeded(SupMAEModel)).to(torch.bfloat16)
    for function in (export_stock, export_onnx):
        with pytest.raises(ValueError, match=r"bfloat16.*dtype=torch\.float32"):
            function(model, tmp_path / "out")


WITHOUT_US = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "supmae_hf":
            raise ImportError("supmae_hf is not installed")

sys.meta_path.insert(0, Refuse())
try:
    import supmae_hf
    sys.exit("supmae_hf can be imported")
except ImportError:
    pass

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, pipeline

for name in sys.argv[1:]:
    inputs = load_file(name + ".inputs")
    auto_class = {"ViTModel": AutoModel, "ViTMAEForPreTraining": AutoModelForPreTraining}.get(
        name, AutoModelForImageClassification
    )
    model = auto_class.from_pretrained(name).eval()
    assert type(model).__name__ == name, type(model)
    with torch.no_grad():
        result = model(**inputs)
    save_file({"result": result[0] if name == "ViTModel" else result.logits.contiguous()}, name + ".outputs")
    if auto_class is AutoModelForImageClassification:
        label = pipeline("image-classification", model=name)(Image.new("RGB", (60, 40), "red"))[0]["label"]
        assert label.startswith("digit "), label
"""


def test_exports_run_without_us(tmp_path, digits):
    from safetensors.torch import save_file

    expected = {}
    for name, model_class, fields in (
        ("BeitForImageClassification", SupMAEForImageClassification, {}),
        ("ViTForImageClassification", SupMAEForImageClassification, {"use_mean_pooling": False}),
        ("TimmWrapperForImageClassification", SupMAEForImageClassification, {}),
        ("ViTModel", SupMAEModel, {}),
        ("ViTMAEForPreTraining", SupMAEForPreTraining, {}),
    ):
        model = seeded(model_class, **fields, id2label={index: f"digit {index}" for index in range(10)})
        export_stock(model, tmp_path / name, timm=name.startswith("Timm"))
        inputs = {"pixel_values": digits}
        if model_class is SupMAEForPreTraining:
            inputs["noise"] = torch.rand(8, 16)
        save_file(inputs, tmp_path / f"{name}.inputs")
        with torch.no_grad():
            outputs = model(**inputs)
        expected[name] = outputs.last_hidden_state if model_class is SupMAEModel else outputs.logits
    command = [sys.executable, "-c", WITHOUT_US, *expected]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ran.returncode == 0, ran.stderr
    for name, tensor in expected.items():
        actual = load_file(tmp_path / f"{name}.outputs")["result"]
        torch.testing.assert_close(actual, tensor, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("model_class", [SupMAEForImageClassification, SupMAEModel])
def test_onnx(tmp_path, model_class, digits):
    import onnxruntime

    model = seeded(model_class)
    model.save_pretrained(tmp_path / "saved")
    model = model_class.from_pretrained(tmp_path / "saved").eval()
    export_onnx(model, tmp_path / "out")
    # code that is named is there
    for name in json.loads((tmp_path / "out" / "config.json").read_text()).get("auto_map", {}).values():
        assert (tmp_path / "out" / f"{name.split('.')[0]}.py").is_file()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["pixel_values"]
    for batch_size in (1, 3, 8):
        outputs = session.run(None, {"pixel_values": digits[:batch_size].numpy()})
        expected = model(digits[:batch_size])
        for value, output in zip(session.get_outputs(), outputs):
            expected_output = expected[value.name]
            torch.testing.assert_close(torch.tensor(output), expected_output.detach(), atol=1e-5, rtol=1e-5)


def test_onnx_of_a_pretraining_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="draw random masks"):
        export_onnx(seeded(SupMAEForPreTraining), tmp_path / "out")
