import numpy as np
import pytest
import torch
from evaluation.zoo import CLASSIFIERS, ENCODERS, make_model
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, CLIPVisionModel, pipeline

from supmae_hf import SupMAEModel
from supmae_hf.evaluation.encode import ImageEncoder
from supmae_hf.evaluation.models import load_classifier, map_classes
from supmae_hf.preparation import Preparation


@pytest.fixture
def image(photographs):
    return Image.fromarray(photographs[0])


@pytest.mark.parametrize("family", ENCODERS)
def test_transform_in_two_steps_is_the_processor(family, tmp_path, image):
    name = make_model(family, tmp_path)
    transform = Preparation.load(name)
    expected = AutoImageProcessor.from_pretrained(name)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(transform(image), expected)
    cropped = transform.crop(image)
    assert cropped.size == (32, 32)
    torch.testing.assert_close(transform.normalize(cropped), expected)
    torch.testing.assert_close(transform.without_crop(cropped), expected)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_classifiers_load(family, tmp_path, image):
    name = make_model(family, tmp_path)
    model = load_classifier(name)
    logits = model(Preparation.load(name)(image)[None]).logits[0]
    best = pipeline("image-classification", model=name)(image, top_k=1)[0]
    assert best["label"] == model.config.id2label[logits.argmax().item()]
    assert map_classes(list("9876543210"), model) == list(range(9, -1, -1))


@pytest.mark.parametrize("family", ["supmae", "vit_mae"])
def test_pretrained_models_are_no_classifiers(family, tmp_path):
    with pytest.raises(ValueError, match="not a trained classifier|Unrecognized configuration"):
        load_classifier(make_model(family, tmp_path))


def test_missing_models(tmp_path):
    with pytest.raises(OSError, match="There is no model 'nowhere'"):
        load_classifier("nowhere")
    name = make_model("vit", tmp_path)
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="has no image processor"):
        Preparation.load(name)


def tokens_of(family, name, images):
    """Independent of ImageEncoder: class token, patch tokens, the model's own pooling."""
    if family == "supmae":
        model = SupMAEModel.from_pretrained(name).eval()
        states = model(images, output_hidden_states=True).hidden_states[-1]
        tokens = model.layernorm(states)  # as the branch of pre-training has them
        return tokens[:, 0], tokens[:, 1:].mean(1), "mean"
    model = (CLIPVisionModel if family == "clip" else AutoModel).from_pretrained(name).eval()
    if family == "vit_mae":
        model.config.mask_ratio = 0.0
        states = model(images, noise=torch.arange(16.0).repeat(len(images), 1)).last_hidden_state
        return states[:, 0], None, "cls"
    outputs = model(images)
    states = outputs.last_hidden_state
    first_patch = 2 if family == "deit" else 1
    own = {"vit": "cls", "deit": "cls", "beit": None, "dinov2": None, "clip": None, "timm": None}[family]
    cls = states[:, 0] if own else states[:, 0]
    return cls, states[:, first_patch:].mean(1), own or outputs.pooler_output


@pytest.mark.parametrize("family", ["supmae", "vit_mae", "vit", "deit", "beit", "dinov2", "clip", "timm"])
def test_pooling(family, tmp_path, digits):
    name = make_model(family, tmp_path)
    with torch.no_grad():
        cls, mean, own = tokens_of(family, name, digits)
        expected = {
            "cls": cls,
            "mean": mean,
            "model": {"cls": cls, "mean": mean}[own] if isinstance(own, str) else own,
        }
        for pooling, features in expected.items():
            encoder = ImageEncoder(name, pooling).eval()
            result = encoder(digits)
            assert result.shape == (8, encoder.hidden_size)
            if features is not None:
                torch.testing.assert_close(result, features, atol=1e-5, rtol=1e-4)
            assert torch.equal(result, encoder(digits))  # nothing is masked at random


def test_convolutional_networks_have_no_class_token(tmp_path, digits):
    name = make_model("resnet", tmp_path)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(name).eval()(digits).pooler_output.flatten(1)
        torch.testing.assert_close(ImageEncoder(name).eval()(digits), expected)
        torch.testing.assert_close(ImageEncoder(name, "mean").eval()(digits), expected)
        with pytest.raises(ValueError, match="has no class token"):
            ImageEncoder(name, "cls")


def test_class_mapping(tmp_path):
    model = AutoModelForImageClassification.from_pretrained(make_model("vit", tmp_path), num_labels=10)
    assert map_classes([f"class {i}" for i in range(10)], model) == list(range(10))  # in order, with a warning
    with pytest.raises(ValueError, match="has 3 classes"):
        map_classes(["a", "b", "c"], model)
    model.config.id2label = {index: f"name {index}" for index in range(1000)}
    assert map_classes(["n15075141", "n01440764"], model) == [999, 0]
    assert np.array_equal(map_classes(["Name 7", "name 3"], model), [7, 3])
    model.config.id2label = {0: "crane", 1: "crane", 2: "kite"}  # as in ImageNet: bird and machine
    assert map_classes(["crane", "crane", "kite"], model) == [0, 1, 2] and map_classes(["kite"], model) == [2]
