"""The package in Transformers' Auto classes and pipelines."""

import pytest
import torch
from conftest import reference_config
from PIL import Image
from sklearn.datasets import load_digits
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTImageProcessor,
    pipeline,
)

import supmae_hf
from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.preparation import build_image_processor


@pytest.fixture
def folder(tmp_path):
    config = reference_config(id2label={index: f"digit {index}" for index in range(10)})
    SupMAEForImageClassification(config).save_pretrained(tmp_path)
    build_image_processor(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_auto_classes(folder):
    assert isinstance(AutoConfig.from_pretrained(folder), SupMAEConfig)
    assert isinstance(AutoConfig.for_model("supmae"), SupMAEConfig)
    for auto_class, model_class in [
        (AutoModel, SupMAEModel),
        (AutoModelForPreTraining, SupMAEForPreTraining),
        (AutoModelForImageClassification, SupMAEForImageClassification),
    ]:
        assert type(auto_class.from_config(reference_config())) is model_class
        assert type(auto_class.from_pretrained(folder)) is model_class


def test_auto_image_processor_by_configuration_alone(tmp_path, photographs):
    SupMAEModel(reference_config()).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(photographs[0])
    expected = ViTImageProcessor(
        size={"height": 32, "width": 32}, resample=3, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)
    )
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values, expected(image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pipelines(folder, photographs, mode):
    image = Image.fromarray(photographs[0]).convert(mode)
    labels = pipeline("image-classification", model=folder)(image, top_k=3)
    assert len(labels) == 3 and all(label["label"].startswith("digit ") for label in labels)
    extractor = pipeline("image-feature-extraction", model=folder)
    features, again = extractor(image), extractor(image)
    assert torch.tensor(features).shape == (1, 17, 64) and features == again
    pooled = pipeline("image-feature-extraction", model=folder, pool=True)(image)
    torch.testing.assert_close(torch.tensor(pooled), torch.tensor(features)[:, 1:].mean(dim=1))


def test_image_processor_on_a_digit(folder):
    digit = Image.fromarray((load_digits().images[0] * 15.9375).astype("uint8"))
    pixel_values = AutoImageProcessor.from_pretrained(folder)(digit, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 32, 32)


def test_public_names():
    assert set(supmae_hf.__all__) <= set(dir(supmae_hf))
    assert all(getattr(supmae_hf, name).__name__ == name for name in supmae_hf.__all__)
    with pytest.raises(AttributeError, match="SupMAEForEverything"):
        supmae_hf.SupMAEForEverything  # noqa: B018
