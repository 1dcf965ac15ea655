import datasets
import numpy as np
import pytest
from conftest import digit_images, make_dataset

from supmae_hf import SupMAEConfig
from supmae_hf.data.labels import Labels
from supmae_hf.data.sources import load_training_splits


CLASSES = datasets.ClassLabel(names=["cat", "dog"])


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
    dataset = make_dataset(
        {"image": digit_images(3), "target": values}, {"image": datasets.Image(), "target": feature}
    )
    labels = Labels.of(dataset, "target")
    assert (labels.names, labels.problem_type) == (names, problem_type)
    assert [np.asarray(labels.encode(value)).tolist() for value in dataset["target"]] == encoded
    config = SupMAEConfig(**labels.config_fields())
    assert config.num_labels == len(names or [0]) and config.problem_type == problem_type


def test_no_labels():
    labels = Labels.of(make_dataset({"image": digit_images(2)}, {"image": datasets.Image()}))
    assert labels.column is None and labels.config_fields() == {}


def test_labels_outside_their_classes_are_refused():
    dataset = make_dataset(
        {"image": digit_images(3), "label": [0, -1, 1]}, {"image": datasets.Image(), "label": datasets.Value("int64")}
    )
    with pytest.raises(ValueError, match=r"'label' holds the label -1, outside \[0, 2\).*-100 or None"):
        Labels.of(dataset, "label")
    with pytest.raises(ValueError, match=r"'image' of the type Image.* cannot be used as labels"):
        Labels.of(dataset.remove_columns("label"), "image")


def test_labels_that_training_images_do_not_have_are_refused():
    features = {"image": datasets.Image(), "name": datasets.Value("string")}
    labels = Labels.of(make_dataset({"image": digit_images(2), "name": ["a", "b"]}, features), "name")
    with pytest.raises(ValueError, match="The label 'c' is not one of the training images' labels"):
        labels.encode("c")


# --- partly labelled data ---


@pytest.mark.parametrize("fraction", [0.1, 0.001])
def test_a_fraction_of_each_class_stays_labeled(fraction):
    train = load_training_splits()["train"]
    labels, truth = Labels.of(train), np.array(train["label"])
    labeled = labels.find_labeled(train, fraction)
    expected = [max(round(fraction * count), 1) for count in np.bincount(truth)]
    assert np.bincount(truth[labeled]).tolist() == expected
    assert labeled == labels.find_labeled(train, fraction)
    assert labeled != labels.find_labeled(train, fraction, seed=1)


def test_images_without_a_label_are_not_labeled():
    values = [1, None, -100, 0, 1]
    dataset = make_dataset(
        {"image": digit_images(5), "label": values}, {"image": datasets.Image(), "label": datasets.Value("int64")}
    )
    assert Labels.of(dataset, "label").find_labeled(dataset) == [0, 3, 4]


def test_label_fraction_needs_labels():
    dataset = make_dataset({"image": digit_images(5)}, {"image": datasets.Image()})
    assert Labels.of(dataset).find_labeled(dataset) == []
    with pytest.raises(ValueError, match="`--label_fraction` needs labels.*'image'"):
        Labels.of(dataset).find_labeled(dataset, 0.5)
