"""Annotated images from everywhere: folders, tables, streams, tars and packed files give the same numbers."""

import io
import json
import tarfile

import datasets
import numpy as np
import pandas
import pytest
from conftest import TINY, digit_images, load_data, run_example
from PIL import Image
from sklearn.datasets import load_digits


RUN = ["--report_to", "none", "--disable_tqdm", "True", "--use_cpu", "--warmup_epochs", 0, "--save_strategy", "no"]
RUN += ["--max_steps", 1, "--learning_rate", 0, "--per_device_train_batch_size", 8, "--label_column_name", "label"]
TARGET = load_digits().target


def file_of(image: Image.Image, kind="PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_tar(path, samples: list[dict]):
    """A tar of samples, each with the contents of its parts by their endings."""
    with tarfile.open(path, "w") as tar:
        for index, parts in enumerate(samples):
            for ending, content in parts.items():
                info = tarfile.TarInfo(f"{index:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def annotated(tmp_path):
    """The same 24 and 8 images with labels, captions, masks and boxes, in many forms."""
    for name in ("table", "tars"):
        (tmp_path / name).mkdir()
    images = digit_images(32)
    for split, places in (("train", range(24)), ("validation", range(24, 32))):
        rows, samples = [], []
        for name in ("folder", "masks"):
            (tmp_path / name / split).mkdir(parents=True)
        for index in places:
            image = images[index].convert("RGB").resize((16, 16))
            mask = Image.fromarray((np.asarray(image)[..., 0] > 100).astype(np.uint8))
            fields = {"label": int(TARGET[index]), "text": f"a scan of {TARGET[index]}"}
            fields["objects"] = {"bbox": [[2.0, 3.0, 8.0, 9.0]], "category": ["digit"]}
            files = {"image": {"bytes": file_of(image), "path": None}, "mask": {"bytes": file_of(mask), "path": None}}
            rows.append(files | fields)
            samples.append({"png": files["image"]["bytes"], "seg.png": files["mask"]["bytes"]})
            samples[-1]["json"] = json.dumps(fields).encode()
            image.save(tmp_path / "folder" / split / f"{index:04d}.png")
            mask.save(tmp_path / "masks" / split / f"{index:04d}.png")
        table = pandas.DataFrame({"file_name": [f"{index:04d}.png" for index in places]})
        table["label"], table["text"] = ([row[name] for row in rows] for name in ("label", "text"))
        table.to_csv(tmp_path / "folder" / split / "metadata.csv", index=False)
        data = datasets.Dataset.from_list(rows)
        data = data.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
        data.to_parquet(tmp_path / "table" / f"{split}.parquet")
        write_tar(tmp_path / "tars" / f"{split}-0.tar", samples)
    return tmp_path


def losses(cwd, name: str, *arguments, **fields) -> dict:
    run_example(
        *("run_pretrain.py", *RUN, "--model_config", json.dumps(TINY | fields), "--output_dir", name, *arguments),
        cwd=cwd,
    )
    results = json.loads((cwd / name / "eval_results.json").read_text())
    return {key: value for key, value in results.items() if key.endswith("loss")}


KINDS = {"boxes": (["--objects_column_name", "objects"], {}), "masks": (["--mask_column_name"], {"dense_classes": 2})}
COLUMNS = {"table": ["image", "mask"], "packed": ["image", "mask"], "tars": ["png", "seg.png"]}


# `datasets` waits for ten seconds after each Parquet file that is read as a stream
@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_same_losses_from_everywhere(annotated, kind, streaming):
    flags, fields = KINDS[kind]
    common = ["--caption_column_name", "text", "--streaming", streaming]
    if streaming:
        fields, common = {"num_labels": 10, **fields}, [*common, "--max_train_samples", 24]
    run_example("pack_images.py", "--dataset_name", "table", "--output_dir", "packed", "--size", 64, cwd=annotated)
    found = {}
    for source, (image, mask) in COLUMNS.items():
        given = ["--dataset_name", source, "--image_column_name", image, *flags, *([mask] if kind == "masks" else [])]
        found[source] = losses(annotated, f"from-{source}", *common, *given, **fields)
    if not streaming:
        coco = {"categories": [{"id": 7, "name": "digit"}], "images": [], "annotations": []}
        for index in range(32):
            coco["images"].append({"id": index, "file_name": f"{index:04d}.png"})
            coco["annotations"].append({"image_id": index, "category_id": 7, "bbox": [2, 3, 8, 9]})
        (annotated / "coco.json").write_text(json.dumps(coco))
        given = ["--mask_dir", "masks"] if kind == "masks" else ["--objects_file", "coco.json"]
        found["folder"] = losses(annotated, "from-folder", *common, "--train_dir", "folder", *given, **fields)
    assert len(found["table"]) == 5
    assert all(result == found["table"] for result in found.values()), found


def test_samples_of_tars_may_differ(tmp_path):
    """Without some parts, with images of several types, with fields of JSON that some lack; from a stream, too."""
    images = digit_images(12)
    samples = [
        {"jpg" if place % 2 else "png": file_of(image, "JPEG" if place % 2 else "PNG")}
        for place, image in enumerate(images)
    ]
    for place, sample in enumerate(samples):
        if place % 3:
            sample["cls"] = str(place % 2).encode()
        if place % 4:
            sample["json"] = json.dumps(
                {"text": f"number {place}", **({"score": place} if place > 2 else {})}
            ).encode()
    for split, part in (("train", samples), ("test", samples[:6])):
        write_tar(tmp_path / f"{split}.tar", part)
    data = load_data(str(tmp_path))
    assert data.image_column == "image"
    assert data.labels.classes(data.train).tolist() == [place % 2 if place % 3 else -100 for place in range(12)]
    texts = [f"number {place}" if place % 4 else None for place in range(12)]
    assert data.train["text"] == texts
    assert data.train["score"] == [place if place % 4 and place > 2 else None for place in range(12)]
    stream = load_data(str(tmp_path), streaming=True, num_labels=2).train
    assert [record["text"] for record in stream] == texts
    for place, (record, streamed) in enumerate(zip(data.train, stream)):
        assert record["image"]["bytes"] == streamed["image"]["bytes"] == samples[place]["jpg" if place % 2 else "png"]


def test_two_images_of_a_sample_stay_two(tmp_path):
    image = digit_images(1)[0]
    samples = [{"jpg": file_of(image, "JPEG"), "png": file_of(image), "cls": b"1"}] * 2 + [
        {"jpg": file_of(image, "JPEG")}
    ]
    write_tar(tmp_path / "train.tar", samples)
    data = load_data(str(tmp_path), image_column_name="jpg", train_val_split=0)
    assert data.image_column == "jpg" and [png is None for png in data.train["png"]] == [False, False, True]


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "0000.json in .* is no JSON"), (b"3", "holds 3, but JSON parts hold fields")]
)
def test_broken_parts_are_named(tmp_path, content, message):
    write_tar(tmp_path / "train.tar", [{"png": file_of(digit_images(1)[0]), "json": content}])
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path))


def test_a_broken_tar_is_refused(tmp_path):
    (tmp_path / "train.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        load_data(str(tmp_path))
