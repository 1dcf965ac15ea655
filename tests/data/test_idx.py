"""Folders in MNIST's format, wherever a folder of images is taken."""

import json

import numpy as np
import pytest
from conftest import TINY, load_data, load_images, make_mnist, run_example, write_idx
from evaluation.zoo import make_model
from sklearn.datasets import load_digits

from supmae_hf.data.dataset import ImageDataset


DIGITS = load_digits()
PIXELS = np.round(DIGITS.images * (255 / 16)).astype(np.uint8)


def decoded(data) -> np.ndarray:
    images = ImageDataset(data.validation, data.labels, None, image_column="image")
    return np.stack([np.asarray(images.read(record["image"])[0]) for record in data.validation])


@pytest.mark.parametrize("layout", ["gzipped", "plain", "torchvision", "dots"])
def test_mnist(tmp_path, layout):
    if layout == "torchvision":  # both, in the folder that it makes
        make_mnist(tmp_path / "MNIST" / "raw", ending=".gz")
        make_mnist(tmp_path / "MNIST" / "raw")
    elif layout == "dots":
        make_mnist(tmp_path)
        for path in list(tmp_path.iterdir()):
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    else:
        make_mnist(tmp_path, ending=".gz" if layout == "gzipped" else "")
    data = load_data(str(tmp_path))
    assert len(data.train) == 60 and data.labels.names == list("0123456789")
    assert np.array_equal(data.labels.classes(data.validation), DIGITS.target[60:100])
    assert np.array_equal(decoded(data), PIXELS[60:100])
    assert np.array_equal(decoded(load_images(str(tmp_path))), PIXELS[60:100])


def test_emnist_is_turned_and_its_classes_are_characters(tmp_path):
    make_mnist(tmp_path, prefix="emnist-digits-", ending=".gz", test="test", transpose=True)
    make_mnist(tmp_path, prefix="emnist-mnist-", ending=".gz", test="test", transpose=True)
    (tmp_path / "emnist-digits-mapping.txt").write_text(
        "\n".join(f"{code} {65 + code} {97 + code}" for code in range(10))
    )
    with pytest.raises(ValueError, match="has the sets digits, mnist: name one of them with `--dataset_config_name`"):
        load_data(str(tmp_path))
    with pytest.raises(ValueError, match="has the sets digits, mnist"):
        load_data(str(tmp_path), dataset_config_name="letters")
    data = load_data(str(tmp_path), dataset_config_name="digits")
    assert data.labels.names[:2] == ["A/a", "B/b"] and np.array_equal(decoded(data), PIXELS[60:100])
    assert any("rows and columns exchanged" in note for note in data.notes)


def test_qmnist_has_more_than_classes(tmp_path):
    make_mnist(tmp_path, prefix="qmnist-", ending=".gz", test="test", labels=False)
    for split, places in (("train", range(60)), ("test", range(60, 100))):
        more = np.stack([DIGITS.target[list(places)], np.arange(len(places)) + 1000], axis=1)
        write_idx(tmp_path / f"qmnist-{split}-labels-idx2-int.gz", more, ">i4")
    data = load_data(str(tmp_path))
    assert np.array_equal(data.labels.classes(data.validation), DIGITS.target[60:100])


def test_without_labels_and_as_unlabelled_images(tmp_path):
    make_mnist(tmp_path / "blank", labels=False)
    data = load_data(str(tmp_path / "blank"))
    assert not data.labels.columns and len(data.train) == 60
    make_mnist(tmp_path / "labelled")
    data = load_data(str(tmp_path / "labelled"), unlabeled_dir=[str(tmp_path / "blank")])
    assert len(data.train) == 160 and (data.labels.classes(data.train) >= 0).sum() == 60


@pytest.mark.parametrize("damage", ["short", "text", "labels", "shape"])
def test_bad_files_are_named(tmp_path, damage):
    make_mnist(tmp_path, ending=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "text":
        path.write_text("not an IDX file")
    elif damage == "shape":
        write_idx(path, PIXELS[0])
    else:
        write_idx(tmp_path / "train-labels-idx1-ubyte.gz", DIGITS.target[:59])
    message = {"labels": "has 59 labels for the 60 images", "shape": r"shape \(8, 8\), not images"}
    with pytest.raises(ValueError, match=message.get(damage, f"{path} is not an IDX file, or it is damaged")):
        load_data(str(tmp_path))


def test_scripts_take_them(tmp_path):
    make_mnist(tmp_path / "mnist", ending=".gz")
    arguments = ["--train_dir", "mnist", "--model_config", json.dumps(TINY), "--num_train_epochs", 1]
    arguments += ["--warmup_epochs", 0, "--per_device_train_batch_size", 8, "--report_to", "none", "--use_cpu"]
    printed = run_example("run_pretrain.py", *arguments, "--output_dir", "out", cwd=tmp_path)
    assert "| held out (split 'test') | 40 | 40 |" in printed
    model = make_model("supmae_classifier", tmp_path)
    printed = run_example("run_eval.py", "--models", model, "--image_dir", "mnist", "--output_dir", "e", cwd=tmp_path)
    assert "| evaluation (split 'test') | 40 | 40 |" in printed
