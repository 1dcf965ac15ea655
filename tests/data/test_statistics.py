"""What is found out about the pixels of a data set."""

import datasets
import numpy as np
import pytest
from conftest import load_data, reference_config
from PIL import Image

from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.statistics import channel_statistics, pixel_fields
from supmae_hf.preparation import IMAGENET_MEAN, build_image_processor


def folder_of(tmp_path, *images) -> object:
    for index, image in enumerate(images):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / f"{index}.{'tif' if image.dtype != np.uint8 else 'png'}")
    return load_data(str(tmp_path / "data"), train_val_split=0)


def fields_of(data, config, checkpoint=None, **arguments):
    return pixel_fields(data, DataArguments(**arguments), config, checkpoint)


def noise(low, high, dtype, shape=(12, 10)):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def test_statistics_are_those_of_all_pixels(tmp_path, photographs):
    data = folder_of(tmp_path, photographs[0], photographs[1][:100, :50])
    mean, std = channel_statistics(data, {"num_channels": 3})
    pixels = np.concatenate([photographs[0].reshape(-1, 3), photographs[1][:100, :50].reshape(-1, 3)]) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=1e-5)


def test_a_channel_that_never_changes_is_not_scaled(tmp_path):
    data = folder_of(tmp_path, np.zeros((8, 8, 3), np.uint8))
    assert channel_statistics(data, {"num_channels": 3}) == ([0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize(
    ("image", "num_channels", "expected"),
    [
        (noise(0, 255, np.uint8, (12, 10, 3)), 3, {"pixel_type": "uint8", "image_mean": list(IMAGENET_MEAN)}),
        (noise(0, 255, np.uint8), 3, {"pixel_type": "uint8", "image_mean": list(IMAGENET_MEAN)}),
        (noise(0, 65535, np.uint16), 1, {"pixel_type": "uint16", "pixel_range": None}),
        (noise(0, 65535, np.int32), 1, {"pixel_type": "int32", "pixel_range": [0, 65535]}),
        (noise(0, 2, np.float32), 1, {"pixel_type": "float32", "pixel_range": None}),
    ],
)
def test_what_follows_from_a_look(tmp_path, image, num_channels, expected):
    fields, line = fields_of(folder_of(tmp_path, image), reference_config(num_channels=num_channels))
    assert {name: fields[name] for name in expected} == expected
    assert expected["pixel_type"] in line and ("ImageNet" in line) == ("image_mean" in expected)
    if "image_mean" not in expected:
        scale = {"uint16": 65535, "int32": 65535, "float32": 1}[expected["pixel_type"]]
        np.testing.assert_allclose(fields["image_mean"], [image.mean() / scale], atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (noise(0, 70000, np.int32), "0.tif cannot be used: its pixels are int32 from .*--pixel_range LOW HIGH"),
        (noise(-5, 9, np.int32), "0.tif cannot be used: its pixels are int32 from -5"),
        (noise(0, 255, np.float32), "0.tif cannot be used: its pixels are float32"),
        (noise(0, 255, np.uint8, (12, 10, 3)), "0.png cannot be used: it has 3 channels, the model 5"),
    ],
)
def test_images_that_cannot_be_used_are_named_before_training(tmp_path, image, message):
    config = reference_config(num_channels=5 if image.dtype == np.uint8 else 1)
    with pytest.raises(ValueError, match=message):
        fields_of(folder_of(tmp_path, image), config)


def test_broken_images_are_named_or_skipped(tmp_path):
    data = folder_of(tmp_path, noise(0, 255, np.uint8), noise(0, 255, np.uint8))
    (tmp_path / "data" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1.png .image 1. cannot be decoded.*--on_bad_image skip"):
        fields_of(data, reference_config())
    data.skip_bad_images = True
    assert fields_of(data, reference_config())[0]["pixel_type"] == "uint8"


def test_the_starting_checkpoints_are_kept(tmp_path):
    data, config = folder_of(tmp_path, noise(0, 4096, np.uint16)), reference_config(num_channels=1)
    kept = {"image_mean": [0.5], "image_std": [0.25], "pixel_range": [0, 4095]}
    build_image_processor(config, **kept, pixel_type="uint16").save_pretrained(tmp_path / "model")
    source = str(tmp_path / "model")
    fields, line = fields_of(data, config, source)
    assert {name: list(fields[name]) for name in kept} == kept and source in line
    fields, _ = fields_of(data, config, source, pixel_range=[0, 65535], normalization="dataset")
    assert list(fields["pixel_range"]) == [0, 65535] and fields["image_mean"][0] < 0.1
    fields, _ = fields_of(data, config, source, image_mean=[0.1], image_std=[0.2])
    assert (fields["image_mean"], fields["image_std"]) == ([0.1], [0.2])


def test_one_number_for_all_channels_or_one_each(tmp_path):
    data = folder_of(tmp_path, noise(0, 255, np.uint8, (12, 10, 3)))
    fields, _ = fields_of(data, reference_config(), image_mean=[0.5], image_std=[0.1, 0.2, 0.3])
    assert (fields["image_mean"], fields["image_std"]) == ([0.5] * 3, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="`--image_std` has 2 values for 3 channels"):
        fields_of(data, reference_config(), image_mean=[0.5], image_std=[0.1, 0.2])


def test_streams_are_looked_at_too(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.fromarray(noise(0, 65535, np.uint16)).save(tmp_path / split / "a.png")
    data = load_data(str(tmp_path), streaming=True)
    assert isinstance(data.train, datasets.IterableDataset)
    assert fields_of(data, reference_config(num_channels=1))[0]["pixel_type"] == "uint16"
