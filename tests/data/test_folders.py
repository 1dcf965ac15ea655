"""Folders as people have them: which images, which classes, what is left out."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import load_data, load_images
from PIL import Image

from supmae_hf.data.folders import find_splits, read_folder, to_dataset


def save(path: Path, count: int = 3, ending: str = "png"):
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((8, 8, 3), 20 * index, np.uint8)).save(path / f"{index}.{ending}")


@pytest.fixture
def photos(tmp_path) -> Path:
    save(tmp_path / "photos" / "cat")
    save(tmp_path / "photos" / "dog")
    return tmp_path / "photos"


def classes_of(root) -> dict[str | None, int]:
    """How many images each class of a folder has."""
    dataset = to_dataset(read_folder(root))
    names = dataset.features["label"].names
    found = [None if label is None else names[label] for label in dataset["label"]]
    return {name: found.count(name) for name in found}


@pytest.mark.parametrize("name", ["photos/", "photos [v1]", "star*", "a b", "ünï", "100%", "{x}"])
def test_names_of_folders_do_not_matter(tmp_path, name):
    save(tmp_path / name / "cat")
    save(tmp_path / name / "dog")
    save(tmp_path / "starfish" / "red")
    assert classes_of(f"{tmp_path}/{name}") == {"cat": 3, "dog": 3}
    data = load_data(f"{tmp_path}/{name}")
    assert data.labels.names == ["cat", "dog"]


def test_images_at_any_depth_are_of_the_sub_folder_of_the_root(photos):
    save(photos / "dog" / "2024" / "may")
    assert classes_of(photos) == {"cat": 3, "dog": 6}


def test_images_beside_the_class_folders_have_no_label(photos):
    save(photos, 1)
    assert classes_of(photos) == {None: 1, "cat": 3, "dog": 3}


@pytest.mark.parametrize("name", ["__background__", "_x", "train_set", "1", "None"])
def test_any_visible_name_is_a_class(photos, name):
    save(photos / name)
    assert classes_of(photos)[name] == 3


@pytest.mark.parametrize("name", [".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN"])
def test_hidden_and_system_folders_are_no_classes(photos, name):
    save(photos / name)
    save(photos / "cat" / name)
    (photos / "cat" / ".DS_Store").write_text("")
    (photos / "cat" / "._0.png").write_text("")  # macOS on foreign disks
    (photos / "cat" / "Thumbs.db").write_text("")
    folder = read_folder(photos)
    assert folder.names == ["cat", "dog"] and len(folder) == 6 and not folder.left_out


def test_links_are_followed_once(photos, tmp_path):
    os.symlink(photos / "cat", photos / "lynx")
    save(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", photos / "bird")
    os.symlink(photos, photos / "dog" / "loop")
    os.symlink(tmp_path / "nowhere", photos / "dog" / "gone.png")
    os.symlink(photos / "cat" / "0.png", photos / "dog" / "link.png")
    folder = read_folder(photos)
    assert classes_of(photos) == {"bird": 3, "cat": 3, "dog": 4}
    text = "\n".join(folder.left_out)
    assert "2 links to folders that are read already, such as" in text
    assert "1 broken links, or not files, such as gone.png" in text


def test_what_is_no_image_is_listed(photos):
    with zipfile.ZipFile(photos / "photos.zip", "w") as file:
        file.write(photos / "cat" / "0.png")
    (photos / "cat" / "notes.txt").write_text("")
    (photos / "dog" / "README").write_text("")
    (photos / "labels.csv").write_text("")
    (photos / "fish").mkdir()
    (photos / "fish" / "0.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "empty").mkdir()
    os.mkfifo(photos / "cat" / "pipe.png")
    left_out = "\n".join(read_folder(photos).left_out)
    for text in (
        "1 archives (unpack them to use their images), such as photos.zip",
        "1 .txt files, such as notes.txt",
        "1 .csv files (labels are read from metadata.csv, by its column file_name), such as labels.csv",
        "1 files whose names have no ending, such as README",
        "1 .heic files (pip install pillow-heif to read them)",
        "1 folders without an image that can be read, such as empty/",
        "such as pipe.png",
    ):
        assert text in left_out
    assert classes_of(photos) == {"cat": 3, "dog": 3}


@pytest.mark.parametrize("ending", ["JPG", "jpeg", "avif", "webp", "TIF", "bmp", "jp2", "ppm"])
def test_endings_of_images(photos, ending):
    save(photos / "bird", ending=ending)
    assert classes_of(photos)["bird"] == 3


def test_output_of_runs_is_left_out(photos):
    save(photos / "out")
    (photos / "out" / "trainer_state.json").write_text("{}")
    folder = read_folder(photos)
    assert folder.names == ["cat", "dog"] and "1 outputs of training runs, such as" in folder.left_out[0]


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_differ_in_case_or_accents_only_are_refused(tmp_path, one, other):
    save(tmp_path / one)
    save(tmp_path / other)
    with pytest.raises(ValueError, match="differ in case only"):
        read_folder(tmp_path)


def test_names_that_are_not_utf_8_are_refused(photos):
    os.mkdir(os.fsencode(photos) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\xe9' is not UTF-8: rename it"):
        read_folder(photos)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere' is not a folder of images"):
        read_folder("nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="There is no image in .*: 1 .txt files, such as notes.txt"):
        load_data(str(tmp_path))


# --- splits ---


@pytest.mark.parametrize(("train", "held_out"), [("train", "val"), ("Train", "Test"), ("training", "dev")])
def test_splits_in_a_folder(photos, train, held_out):
    root = photos.parent / "splits"
    root.mkdir()
    photos.rename(root / train)
    save(root / held_out / "dog", 2)  # not every class
    save(root / "other", 1)
    data = load_data(str(root))
    assert data.labels.names == ["cat", "dog"] and (len(data.train), len(data.validation)) == (6, 2)
    assert set(data.validation["label"]) == {1}
    assert "has the splits" in data.notes[0] and data.notes[1].endswith("beside the splits: other")
    # the held-out images are what is evaluated on
    assert len(load_images(str(root)).validation) == 2
    assert len(load_images(str(root), split="train").validation) == 6


def test_splits_without_classes(tmp_path):
    save(tmp_path / "train", 4)
    save(tmp_path / "val", 2)
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.validation)) == (4, 2) and not data.labels.columns


def test_class_folders_are_no_splits(photos):
    save(photos / "test")
    save(photos / "validation")
    assert find_splits(photos) == {} and len(read_folder(photos).names) == 4


@pytest.mark.parametrize(("name", "message"), [("Cat", "they have 'cat': rename"), ("bird", "only cat, dog")])
def test_held_out_classes_must_be_known(photos, tmp_path, name, message):
    save(tmp_path / "val" / name)
    with pytest.raises(
        ValueError, match=f"val has the class '{name}', which the training images do not have.*{message}"
    ):
        load_data(str(photos), validation_dir=str(tmp_path / "val"))


def test_held_out_images_without_classes(photos, tmp_path):
    save(tmp_path / "flat")
    data = load_data(str(photos), validation_dir=str(tmp_path / "flat"))
    assert data.labels.names == ["cat", "dog"] and data.validation["label"] == [None] * 3
    assert "the held-out images have no labels" in data.notes


def test_unlabeled_folders(photos, tmp_path):
    save(tmp_path / "more" / "x", 2)
    sources = [str(tmp_path / "more"), str(photos / "cat")]
    data = load_data(str(photos), unlabeled_dir=sources, train_val_split=0.2)
    labels = data.labels.classes(data.train)
    assert len(data.train) + len(data.validation) == 8 and (labels == -100).sum() == 2
    assert any("3 images of" in note and "are there already" in note for note in data.notes)


# --- metadata ---


def test_images_that_metadata_do_not_list_are_unlabeled(tmp_path):
    save(tmp_path, 4)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat\n./2.png,NA\n")
    data = load_data(str(tmp_path), train_val_split=0)
    assert data.labels.names == ["NA", "cat"] and data.labels.classes(data.train).tolist() == [1, -100, 0, -100]


def test_numbers_with_leading_zeros_are_names(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,007\n1.png,\n2.png,010\n")
    assert load_data(str(tmp_path), train_val_split=0).labels.names == ["007", "010"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\n0.png,a\n9.png,b\n", "lists 1 files that are not there.*9.png"),
        ("file_name,label\n0.png,a\n0.png,b\n", "0.png more than once"),
        ("name,label\n0.png,a\n", "no column 'file_name', only name, label"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path, text, message):
    save(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path))


def test_no_label_in_spite_of_folders_is_an_error(photos):
    (photos / "metadata.jsonl").write_text('{"file_name": "cat/0.png", "caption": "a cat"}\n')
    with pytest.raises(ValueError, match="has sub-folders, such as cat, but its metadata give no image a label"):
        load_data(str(photos))
    assert not load_data(str(photos), classification_branch=False).labels.columns
    assert load_data(str(photos), label_column_name=["caption"]).labels.names == ["a cat"]


def test_fingerprints_follow_the_data(photos):
    def fingerprint():
        return load_data(str(photos)).fingerprint()

    before = fingerprint()
    assert before == fingerprint()
    moved = photos.rename(photos.with_name("moved"))
    assert load_data(str(moved)).fingerprint() == before
    (moved / "cat" / "0.png").rename(moved / "dog" / "9.png")
    photos = moved
    assert fingerprint() != before


def test_metadata_of_several_types_are_refused(tmp_path):
    save(tmp_path, 2)
    lines = ('{"file_name": "0.png", "label": "cat"}', '{"file_name": "1.png", "label": 3}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="metadata.jsonl has a column with values of several types.*label"):
        load_data(str(tmp_path))
