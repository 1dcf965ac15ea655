"""Data sets that are packed for many epochs."""

import io
import json

import datasets
import numpy as np
import pytest
from conftest import TINY, load_data, run_example
from PIL import Image


@pytest.fixture
def photos(tmp_path, photographs):
    """Two splits of two classes: photographs, a small one, a drawing, a 16-bit scan, a turned one."""
    for split, count in (("train", 6), ("val", 2)):
        for name, photo in zip(("china", "flower"), photographs):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(photo[index:]).save(folder / f"{index}.jpg", quality=95)
    train = tmp_path / "photos" / "train" / "china"
    Image.fromarray(photographs[0]).resize((60, 40)).save(train / "small.jpg")
    Image.fromarray(photographs[0]).quantize(16).save(train / "drawing.png")
    Image.fromarray(photographs[0][..., 0].astype(np.uint16) * 256).save(train / "scan.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(photographs[0]).save(train / "turned.jpg", exif=exif)
    return tmp_path


def pack(cwd, *arguments, fails=False):
    return run_example(
        "pack_images.py",
        "--output_dir",
        "packed",
        "--size",
        128,
        "--images_per_file",
        7,
        *arguments,
        cwd=cwd,
        fails=fails,
    )


def opened(split) -> dict[str, Image.Image]:
    return {record["image"]["path"]: Image.open(io.BytesIO(record["image"]["bytes"])) for record in split}


def test_same_classes_and_splits_in_smaller_files(photos):
    printed = pack(photos, "--image_dir", "photos")
    assert "20 images in 4 files" in printed and "(before: " in printed
    packed, before = (load_data(str(photos / name)) for name in ("packed", "photos"))
    assert packed.labels.names == before.labels.names == ["china", "flower"]
    for split, other in ((packed.train, before.train), (packed.validation, before.validation)):
        assert np.array_equal(packed.labels.classes(split), before.labels.classes(other))
    images = opened(packed.train)
    assert images["small.jpg"].size == (60, 40) and images["scan.png"].size == (640, 427)
    assert images["drawing.png"].format == "PNG" and images["drawing.png"].size == (192, 128)
    assert images["turned.jpg"].size == (128, 192)
    photo, original = images["0.jpg"], Image.open(photos / "photos" / "train" / "flower" / "0.jpg")
    assert photo.format == "JPEG" and photo.size == (192, 128)
    difference = np.asarray(photo, dtype=float) - np.asarray(original.resize(photo.size, Image.Resampling.BICUBIC))
    assert np.abs(difference).mean() < 4
    files = {record["image"]["path"]: record["image"]["bytes"] for record in packed.train}
    for name in ("small.jpg", "scan.png"):
        assert files[name] == (photos / "photos" / "train" / "china" / name).read_bytes()


def test_goes_on_where_it_was(photos):
    pack(photos, "--image_dir", "photos")
    contents = {path.name: path.read_bytes() for path in (photos / "packed").iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in (photos / "packed").iterdir()}
    (photos / "packed" / "train-00001.parquet").unlink()
    (photos / "packed" / ".train-00001.parquet.part").write_bytes(b"half")
    printed = pack(photos, "--image_dir", "photos", "--dataloader_num_workers", 1)
    assert "2/4 packed/train-00001.parquet" in printed and "1/4" not in printed
    assert contents == {path.name: path.read_bytes() for path in (photos / "packed").iterdir()}
    assert times["train-00000.parquet"] == (photos / "packed" / "train-00000.parquet").stat().st_mtime_ns
    error = pack(photos, "--image_dir", "photos", "--quality", 50, fails=True)
    assert "holds another run. What differs:\n  quality: 90 before, 50 now" in error


def test_broken_images(photos):
    path = photos / "photos" / "train" / "flower" / "3.jpg"
    path.write_bytes(path.read_bytes()[:2000])
    error = pack(photos, "--image_dir", "photos", fails=True)
    assert "flower/3.jpg (image 6) cannot be decoded" in error and "--on_bad_image skip" in error
    pack(photos, "--image_dir", "photos", "--on_bad_image", "skip", "--overwrite_output_dir", "True")
    packed = load_data(str(photos / "packed"))
    assert np.bincount(packed.labels.classes(packed.train)).tolist() == [10, 5]


def test_a_run_trains_on_it(photos):
    (photos / "photos" / "train" / "china" / "scan.png").unlink()
    pack(photos, "--image_dir", "photos")
    arguments = [
        "--model_config",
        json.dumps(TINY),
        "--num_train_epochs",
        1,
        "--warmup_epochs",
        0,
        "--report_to",
        "none",
    ]
    arguments += ["--per_device_train_batch_size", 5, "--save_strategy", "no", "--use_cpu", "--output_dir", "out"]
    printed = run_example("run_pretrain.py", "--dataset_name", "packed", *arguments, cwd=photos)
    assert "2 classes: china 9, flower 6." in printed and "on 15 images; on 4 held-out images" in printed


def test_masks_boxes_and_captions_stay_with_their_images(tmp_path):
    """Every column stays; masks and boxes are made smaller with the image, those of small images and fractions are not."""
    sizes, rows = [(60, 40), (400, 200), (256, 512)], []
    for width, height in sizes:
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 2 :] = 2
        box = [width / 2, height / 4, width / 2, height / 4]
        files = {"image": Image.fromarray(mask * 100), "mask": Image.fromarray(mask)}
        files = {name: {"bytes": png(image), "path": None} for name, image in files.items()}
        objects, fractions = ({"bbox": [x], "category": ["shape"]} for x in (box, [0.5, 0.25, 0.5, 0.25]))
        rows.append(files | {"objects": objects, "fractions": fractions, "text": f"{width} wide", "many": [1, 2]})
    (tmp_path / "table").mkdir()
    data = (
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    )
    data.to_parquet(tmp_path / "table" / "train.parquet")
    pack(tmp_path, "--dataset_name", "table")
    packed = datasets.Dataset.from_parquet(str(tmp_path / "packed" / "train-00000.parquet"), cache_dir=str(tmp_path))
    assert set(packed.column_names) == set(data.column_names)
    assert [image.size for image in packed["image"]] == [(60, 40), (256, 128), (128, 256)]
    for row, before in zip(packed, rows):
        image, mask = np.array(row["image"]), np.array(row["mask"])
        assert set(np.unique(mask)) == {0, 2} and (np.abs(image - mask * 100.0) < 60).mean() > 0.99
        left, top, width, height = row["objects"]["bbox"][0]
        expected = np.zeros_like(mask)
        expected[round(top) : round(top + height), round(left) : round(left + width)] = 2
        assert np.array_equal(mask, expected)
        assert {name: row[name] for name in ("fractions", "text", "many")} == {
            name: before[name] for name in ("fractions", "text", "many")
        }


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
