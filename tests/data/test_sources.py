"""Tables and data sets: columns, splits, what is held out, streams."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import digit_images, load_data, load_images, make_dataset
from PIL import Image
from sklearn.datasets import load_digits as load_scikit_learn_digits

from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.labels import Labels
from supmae_hf.data.sources import (
    find_image_column,
    load_digits,
    load_labeled_data,
    load_training_data,
    number_of_images,
    take,
)


CLASSES = datasets.ClassLabel(names=["cat", "dog"])
FEATURES = {"image": datasets.Image(), "label": CLASSES}


def encode(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def labeled(count=12, features=FEATURES, **columns) -> datasets.Dataset:
    return make_dataset(
        {"image": digit_images(count), "label": [index % 2 for index in range(count)], **columns}, features
    )


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
    first, second = load_data(), load_data()
    assert first.validation["label"][:50] == second.validation["label"][:50]
    assert len(load_images().validation) == 360


# --- tables and data sets ---


@pytest.mark.parametrize("form", ["saved", "saved splits", "parquet", "bytes", "paths", "relative paths", "jsonl"])
def test_data_sets_in_folders(tmp_path, form):
    data, folder = labeled(), tmp_path / "data"
    folder.mkdir()
    for index, image in enumerate(data["image"]):
        image.save(tmp_path / f"{index}.png")
        image.save(folder / f"{index}.png") if form == "relative paths" else None
    if form == "saved":
        data.save_to_disk(folder)
    elif form == "saved splits":
        datasets.DatasetDict(train=data, test=data.select(range(4))).save_to_disk(folder)
    elif form == "parquet":
        data.to_parquet(folder / "train.parquet")
    elif form == "bytes":
        rows = {"image": [encode(image) for image in data["image"]], "label": data["label"]}
        pd.DataFrame(rows).to_parquet(folder / "train.parquet")
    else:
        root = "" if form == "relative paths" else f"{tmp_path}/"
        rows = pd.DataFrame({"path": [f"{root}{index}.png" for index in range(12)], "cls": ["cat", "dog"] * 6})
        if form == "jsonl":
            rows.to_json(folder / "train.jsonl", orient="records", lines=True)
        elif form == "paths":
            rows.to_csv(folder / "train.csv", index=False)
        else:
            for index in range(12):
                (folder / f"{index}.png").unlink()
            (folder / "images").mkdir()
            for index, image in enumerate(data["image"]):
                image.save(folder / "images" / f"{index}.png")
            rows["path"] = "images/" + rows["path"]
            rows.to_csv(folder / "train.csv", index=False)
    loaded = load_data(str(folder), train_val_split=0.25)
    assert (len(loaded.train), len(loaded.validation)) == ((12, 4) if form == "saved splits" else (9, 3))
    assert len(loaded.labels.names) == 2 and set(loaded.labels.classes(loaded.train)) == {0, 1}
    record = loaded.train[0][loaded.image_column]
    assert record["bytes"] is not None or record["path"].startswith(str(tmp_path))
    found = load_images(str(folder))
    assert len(found.validation) == (4 if form == "saved splits" else 12)


def test_data_sets_that_do_not_exist_are_refused():
    for load in (load_data, load_images):
        with pytest.raises(FileNotFoundError, match="There is no data set 'no/where' that can be read"):
            load(dataset_name="no/where")


def test_broken_tables_are_refused(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        load_data(str(tmp_path))


# --- what is held out ---


def test_holding_out_is_balanced_and_always_the_same(digit_folder):
    first, second = (load_data(str(digit_folder / "train"), train_val_split=0.25) for _ in range(2))
    assert (len(first.train), len(first.validation)) == (30, 10)
    assert sorted(first.validation["label"]) == list(range(10))
    assert first.validation["label"] == second.validation["label"]
    assert "25% of the training images" in first.held_out


def save_splits(folder, **splits) -> str:
    for name, data in splits.items():
        data.to_parquet(folder / f"{name}.parquet")
    return str(folder)


def test_splits_without_labels_are_not_held_out(tmp_path):
    """As of ImageNet and others on the Hub, whose test labels are -1."""
    blank = labeled(4).remove_columns("label").add_column("label", [-1] * 4, feature=CLASSES)
    folder = save_splits(tmp_path, train=labeled(), test=blank)
    data = load_data(folder)
    assert (len(data.train) + len(data.validation)) == 12 and set(data.validation["label"]) <= {0, 1}
    assert "the split 'test' has no labels and is not used" in data.notes
    save_splits(tmp_path, validation=labeled(6))
    assert len(load_data(folder).validation) == 6


def test_classes_that_only_held_out_images_have_are_known(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    folder = save_splits(tmp_path, train=labeled(features=features), validation=labeled(3, features, label=[0, 1, 2]))
    data = load_data(folder)
    assert data.labels.names == ["0", "1", "2"] and "no training image: 2" in data.table()


def test_rare_classes_stay_in_training(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    values = ["cat", "dog"] * 5 + ["rare", "cat"]
    data = load_data(save_splits(tmp_path, train=labeled(12, features, label=values)), train_val_split=0.3)
    assert data.labels.names == ["cat", "dog", "rare"] and "rare" in data.train["label"]


def test_some_labels_are_held_out_if_there_are_some(tmp_path):
    data = labeled(20).remove_columns("label").add_column("label", [0, 0, 1, 1] + [None] * 16, feature=CLASSES)
    loaded = load_data(save_splits(tmp_path, train=data))
    assert (loaded.labels.classes(loaded.validation) >= 0).any()


def test_an_image_of_several_rows_is_on_one_side(digit_folder):
    """Such as one row for each of its captions."""
    files = sorted(map(str, (digit_folder / "train").glob("*/*.png")))
    (digit_folder / "table").mkdir()
    pd.DataFrame({"image": files * 3, "label": [Path(file).parent.name for file in files] * 3}).to_csv(
        digit_folder / "table" / "train.csv"
    )
    data = load_data(str(digit_folder / "table"))
    train, held_out = ({row["path"] for row in split["image"]} for split in (data.train, data.validation))
    assert (len(train), len(held_out)) == (36, 4) and not train & held_out
    assert "80 times an image comes again: none is both trained on and held out" in data.table()
    data = load_data(str(digit_folder / "train"), validation_dir=str(digit_folder / "train"))
    assert "40 training images are held out, too" in data.table()


def test_nothing_is_held_out_if_asked_for(digit_folder):
    data = load_data(str(digit_folder / "train"), train_val_split=0)
    assert len(data.train) == 40 and data.validation is None


def test_too_few_images_to_hold_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match="too few to hold out some of each class.*--train_val_split 0"):
        load_data(save_splits(tmp_path, train=labeled(2)))


def test_limits(digit_folder):
    data = load_data(str(digit_folder / "train"), max_train_samples=5, max_eval_samples=2)
    assert (len(data.train), len(data.validation)) == (5, 2)
    assert len(set(load_data(str(digit_folder / "train"), max_train_samples=12).train["label"])) > 3


@pytest.mark.parametrize("names", [["label"], ["kind"]])
def test_labels_that_were_asked_for_must_be_there(tmp_path, names):
    data = labeled().remove_columns("label").add_column("label", [None] * 12, feature=CLASSES)
    message = "No training image has a label" if names == ["label"] else "no label column 'kind'"
    with pytest.raises(ValueError, match=message):
        load_data(save_splits(tmp_path, train=data), label_column_name=names)


# --- the table ---


def test_the_table_says_what_was_read(digit_folder):
    (digit_folder / "train" / "notes.zip").write_bytes(b"")
    lines = load_data(str(digit_folder / "train")).table().splitlines()
    assert lines[2:4] == [
        "| training | 36 | 36 |",
        "| held out (10% of the training images, the same in every run) | 4 | 4 |",
    ]
    assert any(line.startswith("10 classes: digit-0 ") for line in lines)
    assert any("archives (unpack them" in line for line in lines)


# --- columns ---


def test_image_columns_are_found():
    image, array, text = datasets.Image(), datasets.Array3D((2, 8, 8), "uint16"), datasets.Value("string")
    for features, found in (
        ({"label": text, "picture": image}, "picture"),
        ({"image": text, "scan": array}, "scan"),
        ({"path": text, "label": text}, "path"),
        ({"image": image, "annotation": image}, "image"),
        ({"img": datasets.Value("binary"), "path": text, "scan": image}, "scan"),
    ):
        assert find_image_column(datasets.Features(features)) == found
    assert find_image_column(datasets.Features({"a": text}), "a") == "a"


@pytest.mark.parametrize(
    ("features", "name", "message"),
    [
        ({"text": datasets.Value("string")}, None, "No columns hold images.*'text'"),
        ({"a": datasets.Image(), "b": datasets.Image()}, None, "2 columns.*--image_column_name"),
        ({"a": datasets.Image()}, "b", "'b' is not a column of images"),
        ({"a": datasets.Value("int64")}, "a", "'a' is not a column of images"),
    ],
)
def test_ambiguous_image_columns_are_refused(features, name, message):
    with pytest.raises(ValueError, match=message):
        find_image_column(datasets.Features(features), name)


@pytest.mark.parametrize("name", ["tab*", "tab?", "tab[1]", "[tab]"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_names_of_tables_are_no_patterns(tmp_path, name, ending):
    for folder, count in ((name, 3), ("tab1", 5), ("tab2", 7), ("t", 9)):
        (tmp_path / folder).mkdir()
        names = [f"{folder}-{index}.png" for index in range(count)]
        rows = pd.DataFrame({"image": names, "label": [index % 2 for index in range(count)]})
        path = tmp_path / folder / f"train.{ending}"
        rows.to_parquet(path) if ending == "parquet" else rows.to_csv(
            path, index=False, sep="\t" if ending == "tsv" else ","
        )
    data = load_data(str(tmp_path / name), train_val_split=0)
    assert len(data.train) == 3


# --- streams ---


def test_streams(digit_folder):
    folders = {"train_dir": digit_folder / "train", "validation_dir": str(digit_folder / "held_out")}
    data = load_data(**folders, streaming=True)
    assert isinstance(data.train, datasets.IterableDataset) and data.labels.names[0] == "digit-0"
    assert number_of_images(data.train) == 40 and number_of_images(data.train, 30) == 30
    # a part of a stream is not its head
    head = [record["label"] for record in take(data.train, 10)]
    assert len(set(head)) > 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_dir": None}, r"A stream needs a held-out split, but there is only \['train'\]"),
        ({"unlabeled_dir": ["."]}, "leave out `--streaming`"),
    ],
)
def test_what_streams_cannot_do_is_refused(digit_folder, fields, message):
    folders = {"train_dir": str(digit_folder / "train"), "validation_dir": str(digit_folder / "held_out")}
    with pytest.raises(ValueError, match=message):
        load_data(**{**folders, "streaming": True, **fields})


def test_a_part_of_the_labels_of_a_stream_is_for_pretraining(digit_folder):
    data_args = DataArguments(
        train_dir=str(digit_folder / "train"),
        validation_dir=str(digit_folder / "held_out"),
        streaming=True,
        label_fraction=0.5,
    )
    assert isinstance(load_training_data(data_args).train, datasets.IterableDataset)
    with pytest.raises(
        ValueError, match="Fine-tuning on a part of the labels reads all images: leave out `--streaming`"
    ):
        load_labeled_data(data_args, "Fine-tuning")


def test_streams_must_know_their_length():
    with pytest.raises(ValueError, match="say it with `--max_train_samples`"):
        number_of_images(labeled().to_iterable_dataset())


def test_streams_must_name_their_classes():
    dataset = make_dataset({"name": ["a", "b"]}, {"name": datasets.Value("string")}).to_iterable_dataset()
    with pytest.raises(ValueError, match="does not name its classes"):
        Labels.of(dataset, ["name"])


def test_tars_of_webdataset(tmp_path):
    digits = load_scikit_learn_digits()
    for split, places in (("train", range(0, 60)), ("validation", range(60, 80))):
        for part in (0, 1):
            with tarfile.open(tmp_path / f"{split}-{part}.tar", "w") as tar:
                for place in places[part::2]:
                    file = io.BytesIO()
                    Image.fromarray((digits.images[place] * 15).astype(np.uint8)).save(file, "png")
                    for ending, content in (("png", file.getvalue()), ("cls", str(digits.target[place]).encode())):
                        entry = tarfile.TarInfo(f"{place:04d}.{ending}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
    whole = load_data(str(tmp_path))
    assert len(whole.train) == 60 and whole.labels.names == list("0123456789") and whole.image_column == "png"
    with pytest.raises(ValueError, match="does not name its classes.*`--model_config '{\"num_labels\": 1000}'`"):
        load_data(str(tmp_path), streaming=True)
    stream = load_data(str(tmp_path), streaming=True, num_labels=10)
    assert stream.labels.names == list("0123456789") and stream.train.num_shards == 2
    labels = [stream.labels.encode(record) for record in stream.train]
    assert sorted(labels) == sorted(digits.target[:60])
    few = load_data(str(tmp_path), streaming=True, num_labels=5)
    with pytest.raises(ValueError, match="The label '[5-9]' is not one of the classes"):
        [few.labels.encode(record) for record in few.train]
