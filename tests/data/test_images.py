import io

import datasets
import numpy as np
import pytest
import torch
from conftest import reference_config
from PIL import Image
from sklearn.datasets import load_digits as load_scikit_learn_digits

from supmae_hf import SupMAEConfig
from supmae_hf.data.images import (
    DataArguments,
    ImageDataset,
    Labels,
    build_image_processor,
    build_train_transform,
    collate,
    find_image_column,
    find_label_column,
    load_digits,
    load_image_data,
)


def digit_images(count=20):
    return [Image.fromarray((image * 15).astype(np.uint8)) for image in load_scikit_learn_digits().images[:count]]


def make(columns: dict, features: dict) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


CLASSES = datasets.ClassLabel(names=["cat", "dog"])


# --- the digits ---


def test_digits_are_scikit_learns_and_split_evenly():
    data = load_digits()
    assert (len(data["train"]), len(data["validation"])) == (1437, 360)
    counts = np.bincount(data["validation"]["label"])
    assert counts.min() >= 34 and counts.max() <= 38
    everything = datasets.concatenate_datasets([data["train"], data["validation"]])
    ours = sorted(
        (label, np.asarray(image).tobytes()) for image, label in zip(everything["image"], everything["label"])
    )
    digits = load_scikit_learn_digits()
    expected = np.round(digits.images / 16 * 255).astype(np.uint8)
    assert ours == sorted((label, image.tobytes()) for image, label in zip(expected, digits.target))


def test_the_same_digits_are_held_out_every_time():
    first, second = load_digits(), load_digits()
    assert first["validation"]["label"][:50] == second["validation"]["label"][:50]


# --- folders and splits ---


@pytest.fixture
def folder(tmp_path):
    digits = load_scikit_learn_digits()
    for split, start in (("train", 0), ("held_out", 60)):
        for index in range(start, start + 40):
            path = tmp_path / split / f"digit-{digits.target[index]}"
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(path / f"{index}.png")
    return tmp_path


def test_image_folders(folder):
    data = load_image_data(DataArguments(train_dir=str(folder / "train"), validation_dir=str(folder / "held_out")))
    assert (len(data["train"]), len(data["validation"])) == (40, 40)
    labels = Labels.of(data["train"])
    assert labels.column == "label" and labels.names == [f"digit-{index}" for index in range(10)]


def test_holding_out_is_balanced_and_always_the_same(folder):
    arguments = DataArguments(train_dir=str(folder / "train"), train_val_split=0.25)
    first, second = load_image_data(arguments), load_image_data(arguments)
    assert (len(first["train"]), len(first["validation"])) == (30, 10)
    assert sorted(first["validation"]["label"]) == list(range(10))
    assert first["validation"]["label"] == second["validation"]["label"]


def test_named_data_sets(folder):
    """`datasets.load_dataset` reads local folders by the same argument as the Hub's data sets."""
    (folder / "held_out").rename(folder / "test")
    data = load_image_data(DataArguments(dataset_name=str(folder)))
    assert (len(data["train"]), len(data["validation"])) == (40, 40)


def test_folders_that_do_not_exist_are_refused():
    with pytest.raises(FileNotFoundError, match="'nowhere' is not a folder of images"):
        load_image_data(DataArguments(train_dir="nowhere"))


def test_limits(folder):
    data = load_image_data(DataArguments(train_dir=str(folder / "train"), max_train_samples=5, max_eval_samples=2))
    assert (len(data["train"]), len(data["validation"])) == (5, 2)


# --- columns ---


def test_columns_are_found_by_their_types():
    features = datasets.Features({"label": datasets.Value("string"), "picture": datasets.Image(), "animal": CLASSES})
    assert find_image_column(features) == "picture" and find_label_column(features) == "animal"
    assert find_label_column(features, "label") == "label"
    assert find_label_column(datasets.Features({"image": datasets.Image(), "id": datasets.Value("int64")})) is None


@pytest.mark.parametrize(
    ("find", "features", "name", "message"),
    [
        (find_image_column, {"path": datasets.Value("string")}, None, "No columns are of the type Image.*'path'"),
        (find_image_column, {"a": datasets.Image(), "b": datasets.Image()}, None, "2 columns.*--image_column_name"),
        (find_image_column, {"a": datasets.Image()}, "b", "'b' is not a column of the type Image"),
        (find_label_column, {"a": CLASSES, "b": CLASSES}, None, r"\['a', 'b'\].*--label_column_name"),
        (find_label_column, {"a": CLASSES}, "b", r"no label column 'b'.*\['a'\]"),
    ],
)
def test_ambiguous_columns_are_refused(find, features, name, message):
    with pytest.raises(ValueError, match=message):
        find(datasets.Features(features), name)


# --- labels ---


@pytest.mark.parametrize(
    ("feature", "values", "names", "problem_type", "encoded"),
    [
        (CLASSES, [1, None, 0], ["cat", "dog"], "single_label_classification", [1, -100, 0]),
        (datasets.Value("string"), ["b", None, "a"], ["a", "b"], "single_label_classification", [1, -100, 0]),
        (datasets.Value("int32"), [2, -100, 0], ["0", "1", "2"], "single_label_classification", [2, -100, 0]),
        (datasets.Value("float32"), [0.5, None, 2.0], None, "regression", [0.5, -100.0, 2.0]),
        (
            datasets.Sequence(CLASSES),
            [[1, 0], None, []],
            ["cat", "dog"],
            "multi_label_classification",
            [[1, 1], [-100, -100], [0, 0]],
        ),
    ],
)
def test_meanings_of_labels(feature, values, names, problem_type, encoded):
    dataset = make({"image": digit_images(3), "target": values}, {"image": datasets.Image(), "target": feature})
    labels = Labels.of(dataset, "target")
    assert (labels.names, labels.problem_type) == (names, problem_type)
    assert [np.asarray(labels.encode(value)).tolist() for value in dataset["target"]] == encoded
    config = SupMAEConfig(**labels.config_fields())
    assert config.num_labels == len(names or [0]) and config.problem_type == problem_type


def test_no_labels():
    labels = Labels.of(make({"image": digit_images(2)}, {"image": datasets.Image()}))
    assert labels.column is None and labels.config_fields() == {}


def test_labels_outside_their_classes_are_refused():
    dataset = make(
        {"image": digit_images(3), "label": [0, -1, 1]}, {"image": datasets.Image(), "label": datasets.Value("int64")}
    )
    with pytest.raises(ValueError, match=r"'label' holds the label -1, outside \[0, 2\).*-100 or None"):
        Labels.of(dataset, "label")
    with pytest.raises(ValueError, match=r"'image' of the type Image.* cannot be used as labels"):
        Labels.of(dataset.remove_columns("label"), "image")


def test_labels_that_training_images_do_not_have_are_refused():
    features = {"image": datasets.Image(), "name": datasets.Value("string")}
    labels = Labels.of(make({"image": digit_images(2), "name": ["a", "b"]}, features), "name")
    with pytest.raises(ValueError, match="The label 'c' is not one of the training images' labels"):
        labels.encode("c")


# --- pixels ---


def test_train_transform(photographs):
    config = reference_config(image_size=64)
    image = Image.fromarray(photographs[0])
    whole = build_train_transform(config, DataArguments(crop_scale=[1.0, 1.0], horizontal_flip=False))
    pixel_values = whole(image)
    assert pixel_values.shape == (3, 64, 64) and pixel_values.dtype == torch.float32
    random = build_train_transform(config, DataArguments())
    assert not torch.equal(random(image), random(image))
    flipped = [
        build_train_transform(config, DataArguments(crop_scale=[1.0, 1.0]))(image.resize((64, 64))) for _ in range(20)
    ]
    unflipped = whole(image.resize((64, 64)))
    same = sum(torch.equal(x, unflipped) for x in flipped)
    mirrored = sum(torch.equal(x, unflipped.flip(-1)) for x in flipped)
    assert same + mirrored == 20 and same and mirrored


def test_image_processor_resizes_then_crops(photographs):
    image = Image.fromarray(photographs[0])  # 640x427
    pixel_values = build_image_processor(reference_config(image_size=224, patch_size=16))(image, return_tensors="pt")
    resized = image.resize((int(640 * 256 / 427), 256), Image.Resampling.BICUBIC)
    left = (resized.width - 224) / 2
    cropped = np.asarray(resized)[16:240, int(left) : int(left) + 224] / 255
    expected = (
        torch.tensor(cropped).permute(2, 0, 1) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    ) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    difference = (pixel_values["pixel_values"][0] - expected.float()).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.2  # rounding to 8 bits differs


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, (32, 48)])
def test_image_dataset(num_channels, image_size, photographs):
    config = reference_config(num_channels=num_channels, image_size=image_size)
    images = [Image.fromarray(photographs[0]), Image.fromarray(photographs[1]).convert("L")]
    dataset = make({"image": images, "label": [1, None]}, {"image": datasets.Image(), "label": CLASSES})
    labels = Labels.of(dataset)
    for transform in (build_train_transform(config, DataArguments()), build_image_processor(config)):
        batch = collate([*ImageDataset(dataset, config, labels, transform)])
        height, width = (32, 32) if image_size == 32 else image_size
        assert batch["pixel_values"].shape == (2, num_channels, height, width)
        assert batch["labels"].tolist() == [1, -100]


def test_fixed_masks_belong_to_their_images():
    config = reference_config()
    dataset = make({"image": digit_images(4)}, {"image": datasets.Image()})
    items = ImageDataset(dataset, config, Labels.of(dataset), build_image_processor(config), fixed_masks=True)
    assert items[2]["noise"].shape == (16,) and torch.equal(items[2]["noise"], items[2]["noise"])
    assert not torch.equal(items[2]["noise"], items[3]["noise"])
    assert items[0]["labels"] == -100


def test_images_that_cannot_be_decoded_are_named(folder):
    (folder / "train" / "digit-3" / "broken.png").write_bytes(b"not an image")
    data = load_image_data(DataArguments(train_dir=str(folder / "train"), validation_dir=str(folder / "held_out")))
    config = reference_config()
    items = ImageDataset(data["train"], config, Labels.of(data["train"]), build_image_processor(config))
    with pytest.raises(ValueError, match=r"digit-3/broken.png \(image \d+\) cannot be decoded.*repair it or remove"):
        collate([items[index] for index in range(len(items))])


def test_truncated_bytes_are_named():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    records = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": buffer.getvalue()[:500], "path": None}]
    dataset = make({"image": records}, {"image": datasets.Image()})
    config = reference_config()
    items = ImageDataset(dataset, config, Labels.of(dataset), build_image_processor(config))
    assert items[0]["pixel_values"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="Image 1 cannot be decoded"):
        items[1]


def test_channels_that_images_do_not_have_are_refused():
    dataset = make({"image": digit_images(1)}, {"image": datasets.Image()})
    config = reference_config(num_channels=7)
    with pytest.raises(ValueError, match="`num_channels` is 7"):
        ImageDataset(dataset, config, Labels.of(dataset), None)
