"""Labels as people write them."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
from conftest import digit_images, make_dataset
from datasets.table import InMemoryTable

from supmae_hf import SupMAEConfig
from supmae_hf.data.labels import Labels, find_label_columns, imagenet_indices
from supmae_hf.data.sources import load_digits


CLASSES = datasets.ClassLabel(names=["cat", "dog"])
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.mark.parametrize(
    ("feature", "values", "names", "problem_type", "encoded"),
    [
        (CLASSES, [1, None, 0], ["cat", "dog"], SINGLE, [1, -100, 0]),
        (CLASSES, [1, -1, 0], ["cat", "dog"], SINGLE, [1, -100, 0]),
        ("string", ["b", None, "a"], ["a", "b"], SINGLE, [1, -100, 0]),
        ("string", ["b", "", "a"], ["a", "b"], SINGLE, [1, -100, 0]),
        ("large_string", ["b", None, "a"], ["a", "b"], SINGLE, [1, -100, 0]),
        ("int32", [7, -100, 0], ["0", "7"], SINGLE, [1, -100, 0]),
        ("int64", [2, -1, 0], ["0", "2"], SINGLE, [1, -100, 0]),
        ("int64", [47126, 152345, None], ["47126", "152345"], SINGLE, [0, 1, -100]),
        ("uint8", [10, 9, None], ["9", "10"], SINGLE, [1, 0, -100]),
        ("float64", [1.0, None, 0.0], ["0", "1"], SINGLE, [1, -100, 0]),  # integers with gaps, as CSV files have them
        ("float64", [1.0, float("nan"), 0.0], ["0", "1"], SINGLE, [1, -100, 0]),
        ("bool", [True, None, False], ["False", "True"], SINGLE, [1, -100, 0]),
        ("float32", [0.5, None, 2.0], None, "regression", [0.5, -100.0, 2.0]),
        (datasets.List(CLASSES), [[1, 0], None, []], ["cat", "dog"], MULTI, [[1, 1], [-100, -100], [0, 0]]),
        (
            datasets.List(datasets.Value("string")),
            [["pet", "cat"], None, ["dog"]],
            ["cat", "dog", "pet"],
            MULTI,
            [[1, 0, 1], [-100] * 3, [0, 1, 0]],
        ),
        (
            datasets.List(datasets.Value("int64")),
            [[5, 3], [3], None],
            ["3", "5"],
            MULTI,
            [[1, 1], [1, 0], [-100, -100]],
        ),
        # places of zeros and ones
        (
            datasets.List(datasets.Value("int8")),
            [[1, 0, 1], [0, 0, 1], None],
            ["0", "1", "2"],
            MULTI,
            [[1, 0, 1], [0, 0, 1], [-100] * 3],
        ),
        # of which some are not known
        (
            datasets.List(datasets.Value("int8")),
            [[1, -100, 1], [0, 0, -100], None],
            ["0", "1", "2"],
            MULTI,
            [[1, -100, 1], [0, 0, -100], [-100] * 3],
        ),
    ],
)
def test_meanings_of_labels(feature, values, names, problem_type, encoded):
    feature = datasets.Value(feature) if isinstance(feature, str) else feature
    dataset = make_dataset(
        {"image": digit_images(3), "target": values}, {"image": datasets.Image(), "target": feature}
    )
    labels = Labels.of(dataset, ["target"])
    assert (labels.names, labels.problem_type) == (names, problem_type)
    assert [np.asarray(labels.encode(record)).tolist() for record in dataset.select_columns("target")] == encoded
    classes = labels.classes(dataset)
    if problem_type == SINGLE:
        assert classes.tolist() == encoded
    else:
        assert (classes == -100).tolist() == [np.max(row) == -100 for row in encoded]
    assert labels.find_labeled(dataset) == np.flatnonzero(classes != -100).tolist()
    config = SupMAEConfig(**labels.config_fields())
    assert config.num_labels == len(names or [0]) and config.problem_type == problem_type


def test_several_columns_are_one_class_each():
    columns = {"cat": [1, -100, None], "dog": [True, False, None], "bird": [0.0, 1.0, None]}
    features = {"cat": datasets.Value("int64"), "dog": datasets.Value("bool"), "bird": datasets.Value("float64")}
    dataset = make_dataset(columns, features)
    labels = Labels.of(dataset, ["cat", "dog", "bird"])
    assert (labels.names, labels.problem_type) == (["cat", "dog", "bird"], MULTI)
    assert [labels.encode(record).tolist() for record in dataset] == [[1, 1, 0], [-100, 0, 1], [-100] * 3]
    assert labels.find_labeled(dataset) == [0, 1]
    with pytest.raises(ValueError, match="hold .*: 0 and 1 can be used"):
        labels.encode({"cat": 2, "dog": 0, "bird": 0})
    with pytest.raises(ValueError, match="'name' of the type .* is not one of 0 and 1"):
        Labels.of(
            make_dataset({"cat": [1], "name": ["x"]}, {**{"cat": features["cat"]}, "name": datasets.Value("string")}),
            ["cat", "name"],
        )


def test_whole_numbers_can_be_a_regression():
    dataset = make_dataset({"age": [20.0, 31.0, None]}, {"age": datasets.Value("float64")})
    labels = Labels.of(dataset, ["age"], "regression")
    assert labels.problem_type == "regression" and labels.encode({"age": 20.0}) == 20
    classes = Labels.of(dataset, ["age"])
    assert classes.names == ["20", "31"] and "they are classes" in classes.notes[0]


def test_classes_that_may_be_one_are_pointed_out():
    notes = Labels.of(datasets.Dataset.from_dict({"label": ["cat", " Cat", "dog"]})).notes
    assert notes == ["the classes ' Cat' and 'cat' differ in case or spaces alone: are they one?"]
    assert not Labels.of(datasets.Dataset.from_dict({"label": ["cat", "dog"]})).notes


def test_classes_of_all_splits_are_joined():
    features = {"name": datasets.Value("string")}
    splits = [make_dataset({"name": names}, features) for names in (["b", "c"], ["a", "c"])]
    assert Labels.of(splits, ["name"]).names == ["a", "b", "c"]


def test_no_labels():
    labels = Labels.of(make_dataset({"image": digit_images(2)}, {"image": datasets.Image()}))
    assert labels.columns == [] and labels.config_fields() == {} and labels.encode({}) == -100


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([0, -5, 1], datasets.Value("int64"), "holds -5, which may be a class or say that there is none"),
        ([1, -1, 1], datasets.Value("int64"), "holds -1, which may be a class or say that there is none"),
        ([None, None], datasets.Value("int64"), "holds no label"),
        ([[0.5], [1.0]], datasets.List(datasets.Value("float32")), "lists of numbers that are no classes"),
        ([{"a": 1}], {"a": datasets.Value("int64")}, "cannot be used as labels"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(values, feature, message):
    with pytest.raises(ValueError, match=message):
        Labels.of(datasets.Dataset.from_dict({"x": values}, features=datasets.Features({"x": feature})), ["x"])


def test_numbers_outside_of_their_classes_are_refused():
    table = InMemoryTable(pa.table({"x": [0, 1, 7]}))  # as a Parquet file may hold
    dataset = datasets.Dataset(table, info=datasets.DatasetInfo(features=datasets.Features({"x": CLASSES})))
    with pytest.raises(ValueError, match=r"label 7, outside \[0, 2\).*-100 or None"):
        Labels.of(dataset)


def test_unknown_labels_are_refused():
    labels = Labels.of(make_dataset({"name": ["a", "b"]}, {"name": datasets.Value("string")}), ["name"])
    with pytest.raises(ValueError, match="The label 'c' is not one of the classes"):
        labels.encode({"name": "c"})


# --- which column ---

TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")


@pytest.mark.parametrize(
    ("features", "names", "found"),
    [
        ({"label": TEXT, "animal": CLASSES}, None, ["animal"]),
        ({"label": CLASSES, "animal": CLASSES}, None, ["label"]),
        ({"label": TEXT, "animal": CLASSES}, ["label"], ["label"]),
        ({"image": TEXT, "cls": NUMBER}, None, ["cls"]),
        ({"Fine_Label": NUMBER}, None, ["Fine_Label"]),
        ({"id": NUMBER}, None, []),
    ],
)
def test_label_columns_are_found(features, names, found):
    assert find_label_columns(datasets.Features(features), names) == found


@pytest.mark.parametrize(
    ("features", "names", "message"),
    [
        ({"a": CLASSES, "b": CLASSES}, None, r"\['a', 'b'\].*--label_column_name"),
        ({"label": TEXT, "category": TEXT}, None, r"\['label', 'category'\].*--label_column_name"),
        ({"a": CLASSES}, ["b"], r"no label column 'b'.*\['a'\]"),
    ],
)
def test_ambiguous_label_columns_are_refused(features, names, message):
    with pytest.raises(ValueError, match=message):
        find_label_columns(datasets.Features(features), names)


# --- partly labelled data ---


@pytest.mark.parametrize("fraction", [0.1, 0.001])
def test_a_fraction_of_each_class_stays_labeled(fraction):
    train = load_digits()["train"]
    labels, truth = Labels.of(train), np.array(train["label"])
    labeled = labels.find_labeled(train, fraction)
    expected = [max(round(fraction * count), 1) for count in np.bincount(truth)]
    assert np.bincount(truth[labeled]).tolist() == expected
    assert labeled == labels.find_labeled(train, fraction)
    assert labeled != labels.find_labeled(train, fraction, seed=1)


def test_label_fraction_needs_labels():
    dataset = make_dataset({"image": digit_images(5)}, {"image": datasets.Image()})
    assert Labels.of(dataset).find_labeled(dataset) == []
    with pytest.raises(ValueError, match="`--label_fraction` needs labels.*'image'"):
        Labels.of(dataset).find_labeled(dataset, 0.5)


def test_imagenet_is_known_by_its_identifiers():
    assert imagenet_indices(["n15075141", "n01440764"]) == [999, 0] and imagenet_indices(["cat"]) is None
