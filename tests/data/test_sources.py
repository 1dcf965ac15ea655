import datasets
import numpy as np
import pytest
from conftest import digit_images, make_dataset
from sklearn.datasets import load_digits as load_scikit_learn_digits

from supmae_hf.data.labels import Labels, find_label_column
from supmae_hf.data.sources import find_image_column, load_digits, load_training_splits, number_of_images
from supmae_hf.training.arguments import DataArguments


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


def test_image_folders(digit_folder):
    data = load_training_splits(train_dir=str(digit_folder / "train"), validation_dir=str(digit_folder / "held_out"))
    assert (len(data["train"]), len(data["validation"])) == (40, 40)
    labels = Labels.of(data["train"])
    assert labels.column == "label" and labels.names == [f"digit-{index}" for index in range(10)]


def test_holding_out_is_balanced_and_always_the_same(digit_folder):
    arguments = {"train_dir": str(digit_folder / "train"), "train_val_split": 0.25}
    first, second = load_training_splits(**arguments), load_training_splits(**arguments)
    assert (len(first["train"]), len(first["validation"])) == (30, 10)
    assert sorted(first["validation"]["label"]) == list(range(10))
    assert first["validation"]["label"] == second["validation"]["label"]


def test_named_data_sets(digit_folder):
    """`datasets.load_dataset` reads local folders by the same argument as the Hub's data sets."""
    (digit_folder / "held_out").rename(digit_folder / "test")
    data = load_training_splits(str(digit_folder))
    assert (len(data["train"]), len(data["validation"])) == (40, 40)


def test_folders_that_do_not_exist_are_refused():
    with pytest.raises(FileNotFoundError, match="'nowhere' is not a folder of images"):
        load_training_splits(train_dir="nowhere")


def test_limits(digit_folder):
    data = load_training_splits(train_dir=str(digit_folder / "train"), max_train_samples=5, max_eval_samples=2)
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


# --- streams ---


def test_streams(digit_folder):
    folders = {"train_dir": str(digit_folder / "train"), "validation_dir": str(digit_folder / "held_out")}
    data = load_training_splits(**folders, streaming=True, max_train_samples=30)
    assert isinstance(data["train"], datasets.IterableDataset)
    assert len(list(data["train"])) == number_of_images(data["train"], 30) == 30
    labels = Labels.of(data["train"])
    assert labels.names == [f"digit-{index}" for index in range(10)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_dir": None}, r"A stream needs a held-out split, but there is only \['train'\]"),
        ({"label_fraction": 0.5}, "`--label_fraction` counts the images of each class"),
    ],
)
def test_what_streams_cannot_do_is_refused(digit_folder, fields, message):
    folders = {"train_dir": str(digit_folder / "train"), "validation_dir": str(digit_folder / "held_out")}
    with pytest.raises(ValueError, match=message):
        DataArguments(**{**folders, "streaming": True, **fields}).load()


def test_streams_must_know_their_length(digit_folder):
    folders = {"train_dir": str(digit_folder / "train"), "validation_dir": str(digit_folder / "held_out")}
    with pytest.raises(ValueError, match="say it with `--max_train_samples`"):
        number_of_images(load_training_splits(**folders, streaming=True)["train"])


def test_streams_must_name_their_classes():
    dataset = make_dataset(
        {"image": digit_images(2), "name": ["a", "b"]}, {"image": datasets.Image(), "name": datasets.Value("string")}
    )
    with pytest.raises(ValueError, match="does not name its classes"):
        Labels.of(dataset.to_iterable_dataset(), "name")
