"""Captions, masks and boxes: from the columns of a data set to a trained model."""

import json

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY, BrightnessHead, example_command, reference_config, run_command, run_example
from PIL import Image
from safetensors.torch import load_file

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.data.annotations import DenseLabels, find_objects, with_masks, with_objects
from supmae_hf.data.dataset import ImageDataset, collate
from supmae_hf.data.labels import Labels
from supmae_hf.data.sources import load_digits
from supmae_hf.data.targets import Captions, Column, train_word_tokenizer
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.preparation import build_image_processor
from supmae_hf.supervision_supmae import SUPERVISIONS, UNLABELED
from supmae_hf.training.arguments import PreTrainingArguments
from supmae_hf.training.trainer import PreTrainer


SCRIPTS = ["run_pretrain.py", "run_pretrain_no_trainer.py"]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RUN = ["--model_config", json.dumps(TINY), "--num_train_epochs", 2, "--warmup_epochs", 0, "--logging_steps", 1]
RUN += ["--per_device_train_batch_size", 16, "--report_to", "none", "--disable_tqdm", "True", "--use_cpu"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Digits with, for some of them, a class, a caption, and boxes of their dark halves."""
    folder = tmp_path_factory.mktemp("table")
    for name, rows in (("train", range(64)), ("test", range(200, 220))):
        digits = load_digits()["train"].select(rows)
        label = digits["label"][:]
        caption = [None if i % 3 == 0 else f"This is a {NAMES[x]}, a digit." for i, x in enumerate(label)]
        objects = [
            None if i % 4 == 0 else {"bbox": [[0, 0, 8, 4], [2, 1, 2, 2]], "category": [0, 1]}
            for i in range(len(label))
        ]
        columns = {"image": digits["image"][:], "caption": caption, "objects": objects}
        columns["label"] = [UNLABELED if i % 2 else x for i, x in enumerate(label)]
        features = {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=["top", "spot"])),
            },
            "label": datasets.Value("int64"),
        }
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{name}.parquet")
    return folder


def log_of(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_words_of_captions():
    texts = ["A dog, and a DOG!", "two dogs", "", "a cat"]
    tokenizer = train_word_tokenizer(texts)
    captions = Captions("text", tokenizer)
    split = datasets.Dataset.from_dict({"text": [*texts, None]})
    counts, num_captions = captions.count(split)
    words = {tokenizer.convert_ids_to_tokens(place): int(count) for place, count in enumerate(counts)}
    assert words == {"[UNK]": 0, "a": 2, "dog": 1, "and": 1, "two": 1, "dogs": 1, "cat": 1}
    assert num_captions == 3 and captions.length == 3
    ids = captions.encode({"text": "A unicorn and a dog"})  # unknown words and repetitions do not count
    assert sorted(tokenizer.convert_ids_to_tokens(ids[ids >= 0].tolist())) == ["a", "and", "dog"]
    assert (captions.encode({"text": None}) == UNLABELED).all()
    joined = captions.encode({"text": ["a cat", "two"]})
    assert sorted(tokenizer.convert_ids_to_tokens(joined.tolist())) == ["a", "cat", "two"]


def test_captions_of_other_forms():
    chinese = train_word_tokenizer(["一只狗 a dog", "红色的汽车"])
    assert len(Captions("text", chinese).tokens("一只狗")) == 3
    tokenizer = train_word_tokenizer(["a dog", "two cats"])
    captions = Captions("text", tokenizer, 8)
    expected = captions.encode({"text": "a dog two cats"})
    for value in (["a dog", "two cats"], [{"raw": "a dog"}, {"raw": "two cats"}], {"raw": "a dog two cats"}):
        assert torch.equal(captions.encode({"text": value}), expected)
    tokenizer.add_tokens(["rare"])
    assert Captions("text", tokenizer).vocab_size == 1 + max(tokenizer.get_vocab().values())


def test_masks_are_cropped_and_flipped_with_their_images():
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 3, (5, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8) for _ in range(4)]
    masks[1][:20] = 255
    columns = {"image": [Image.fromarray(mask * 80) for mask in masks], "mask": [Image.fromarray(x) for x in masks]}
    columns["mask"][3] = None
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    data = datasets.Dataset.from_dict(columns, features=features)
    processor = build_image_processor(reference_config(), image_mean=[0.0] * 3, image_std=[1.0] * 3)
    targets = [DenseLabels(["a", "b", "c"], "mask")]
    for options, transform in (({"seed": 0}, TrainTransform(processor, num_views=2)), ({}, processor)):
        images = ImageDataset(data, Labels(), transform, targets=targets, **options)
        for position in range(12 if options else 4):
            item = images[position]
            pixels, labels = (
                item[name].reshape(-1, *item[name].shape[-2:]) for name in ("pixel_values", "segmentation_maps")
            )
            pixels, known = pixels[::3] * 255, labels != UNLABELED
            assert labels.shape == pixels.shape and known.any() == (position % 4 != 3)
            wrong = (pixels - 80 * labels).abs() > 20
            assert wrong[known].sum() <= 0.25 * known.sum()  # at the borders of the squares, where the image is smooth
            if position % 4 == 1:
                assert (pixels[~known] > 150).float().mean() > 0.8  # 255 * 80 modulo 256 is 176
    with pytest.raises(ValueError, match=r"holds class 2, outside \[0, 2\)"):
        ImageDataset(data, Labels(), processor, targets=[DenseLabels(["a", "b"], "mask")])[0]


def test_values_of_masks():
    values = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
    record = {"mask": {"path": "a.png"}}
    read = lambda encoded, is_mask: (Image.fromarray(values), None)  # noqa: E731
    for reduce_labels, classes in ((False, [0, 1, 2, 2, 1, -100]), (True, [-100, 0, 1, 1, 0, -100])):
        dense = DenseLabels(["a", "b", "c"], "mask", reduce_labels=reduce_labels)
        assert dense.encode(record, (2, 3), read).flatten().tolist() == classes
    with pytest.raises(ValueError, match=r"a.png has the shape \(2, 3\), but its image is 3x2 pixels"):
        dense.encode(record, (3, 2), read)
    with pytest.raises(ValueError, match="256 classes, but of masks at most 255"):
        DenseLabels([str(index) for index in range(256)], "mask")


def test_boxes_are_drawn_the_smallest_last(table):
    data = datasets.load_dataset("parquet", data_files=str(table / "train.parquet"), split="train")
    assert list(find_objects(data, "objects").values()) == ["top", "spot"]
    dense = DenseLabels(["background", "top", "spot"], "objects", {0: 1, 1: 2})
    mask = dense.encode(data[1], (8, 8), None)
    assert mask[0].tolist() == [1] * 8 and mask[1].tolist() == [1, 1, 2, 2, 1, 1, 1, 1] and not mask[4:].any()
    assert (dense.encode(data[0], (8, 8), None) == UNLABELED).all()
    with pytest.raises(ValueError, match="has not the fields 'bbox' and 'category'"):
        find_objects(data, "caption")
    listed = [[{"bbox": [0, 0, 8, 4], "category": "top"}, {"bbox": [2, 1, 2, 2], "category": "spot"}], None]
    assert find_objects(datasets.Dataset.from_dict({"objects": listed}), "objects") == {"spot": "spot", "top": "top"}
    again = DenseLabels(["background", "spot", "top"], "objects", {"spot": 1, "top": 2})
    assert torch.equal(again.encode({"objects": listed[0]}, (8, 8), None), torch.tensor([0, 2, 1])[mask])


@pytest.mark.parametrize(
    ("masks", "found"),
    [
        (["a/1.png", "b/1_mask.png", "b/2.png"], ["a/1.png", "b/1_mask.png", "b/2.png"]),
        (["train/a/1.png", "a/1.png", "other/2.png"], ["train/a/1.png", None, "other/2.png"]),
        (["a/1.png", "a/1.json", "a/1_mask.png"], ["a/1.png", None, None]),  # not the mask of b's image of that name
        (["2_seg.png"], [None, None, "2_seg.png"]),
        (["e\u0301/3.png"], [None, None, None, "e\u0301/3.png"]),  # an accent of its own
        (["1.png"], "1.png may be of the image train/a/1.jpg or of train/b/1.jpg: name it with the folder"),
        (["c/1.png", "d/1.png"], [None, None, None]),
        (["c/2.png", "d/2.png"], "d/2.png are both named as the image train/b/2.jpg: name it with the folder"),
        (["2.png", "2.tif"], "2.tif are both named as the image train/b/2.jpg"),
    ],
)
def test_a_mask_is_that_of_one_image(tmp_path, monkeypatch, masks, found):
    """The same for the objects of COCO's files, whose names may have folders, too."""
    for place in masks:
        (tmp_path / "masks" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / place).touch()
    monkeypatch.chdir(tmp_path)
    paths = [f"train/{name}" for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "\u00e9/3.jpg", "d/3.jpg")]
    data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
    if isinstance(found, list):
        values = with_masks([data, None], "image", "masks", "mask")[0]["mask"]
        found += [None] * (5 - len(found))
        assert [value and value["path"] for value in values] == [place and f"masks/{place}" for place in found]
    else:
        with pytest.raises(ValueError, match=found):
            with_masks([data, None], "image", "masks", "mask")
    if all(place.count("_") == 0 for place in masks):
        names = [place.replace(".png", ".jpg") for place in masks if place.endswith(".png")]
        content = {"images": [{"id": index, "file_name": name} for index, name in enumerate(names)]}
        content["categories"] = [{"id": index, "name": name} for index, name in enumerate(names)]
        content["annotations"] = [
            {"image_id": index, "bbox": [0, 0, 1, 1], "category_id": index} for index in range(len(names))
        ]
        (tmp_path / "coco.json").write_text(json.dumps(content))
        if isinstance(found, list):
            values = with_objects([data], "image", ["coco.json"], "objects")[0]["objects"]
            assert [value and value["category"][0].replace(".jpg", ".png") for value in values] == found
        elif len(names) == len(masks):
            with pytest.raises(ValueError, match=found.split(".png")[1]):
                with_objects([data], "image", ["coco.json"], "objects")


@pytest.mark.parametrize("kind", ["captions", "dense", "all"])
def test_both_scripts_learn_from_parts(table, tmp_path, kind):
    flags = {"captions": ["--caption_column_name", "caption"], "dense": ["--objects_column_name", "objects"]}
    flags["all"] = [*flags["captions"], *flags["dense"]]
    if kind != "all":
        flags[kind] += ["--classification_branch", "False"]
    weights = []
    for script in SCRIPTS:
        more = [*flags[kind], "--gradient_accumulation_steps", 2, "--output_dir", script]
        printed = run_example(script, *RUN, "--dataset_name", table, *more, cwd=tmp_path)
        assert ("42 training images have a caption" in printed) == (kind != "dense")
        assert ("48 training images have boxes, of 3 classes" in printed) == (kind != "captions")
        weights.append(load_file(tmp_path / script / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    logs = [log_of(tmp_path / script) for script in SCRIPTS]
    names = {"captions": ["caption_loss", "caption_accuracy"], "dense": ["dense_loss", "patch_miou"]}
    names["all"] = [*names["captions"], *names["dense"], "classification_loss"]
    for log, other in zip(*([entry for entry in log if "loss" in entry] for log in logs)):
        assert log["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert all(log[name] == pytest.approx(other[name], rel=1e-5) for name in names[kind])
    evaluated = [next(entry for entry in reversed(log) if "eval_reconstruction_loss" in entry) for log in logs]
    for name in names[kind]:
        values = [entry[f"eval_{name}"] for entry in evaluated]
        assert values[0] == pytest.approx(values[1], rel=1e-5) and values[0] >= 0

    config = SupMAEForPreTraining.from_pretrained(tmp_path / SCRIPTS[0]).config
    kinds = {"captions": ["captions"], "dense": ["dense"], "all": ["labels", "captions", "dense"]}[kind]
    assert list(config.supervision_weights) == kinds
    if kind != "dense":
        model = SupMAEForPreTraining.from_pretrained(tmp_path / SCRIPTS[1]).eval()
        assert model.supervision["captions"].num_captions == 42
        words = model.tag(torch.zeros(2, 3, 16, 16), num_words=4)
        assert [len(row) for row in words] == [4, 4] and set(words[0]) <= {*NAMES, "this", "is", "a", "digit", "[UNK]"}
    if kind != "captions":
        assert config.dense_classes == ["background", "top", "spot"]


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(table, tmp_path):
    flags = ["--dataset_name", table, "--caption_column_name", "caption", "--objects_column_name", "objects"]
    config = json.dumps({**TINY, "classifier_hidden_size": 0})
    for processes in (1, 2):
        batch = ["--per_device_train_batch_size", 16 // processes, "--output_dir", processes]
        arguments = ["run_pretrain.py", *RUN, "--model_config", config, *flags, *batch]
        if processes == 1:
            run_example(*arguments, cwd=tmp_path)
        else:
            run_command(example_command(*arguments, processes=processes), tmp_path)
    one, two = (log_of(tmp_path / str(processes)) for processes in (1, 2))
    assert len(one) == len(two)
    for entry, other in zip(one, two):
        shared = [name for name in entry if "loss" in name or "miou" in name or "accuracy" in name]
        assert {name: entry[name] for name in shared} == pytest.approx(
            {name: other[name] for name in shared}, rel=1e-4
        )
    weights = [load_file(tmp_path / str(processes) / "model.safetensors") for processes in (1, 2)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=1e-5)


def test_a_kind_of_ones_own_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(SUPERVISIONS, "brightness", BrightnessHead)
    brightness = [None if index % 3 else index / 10 for index in range(64)]
    data = (
        load_digits()["train"]
        .select(range(64))
        .add_column("brightness", brightness, feature=datasets.Value("float32"))
    )
    config = SupMAEConfig(**TINY, supervision={"brightness": 1.0})
    processor, more = (
        build_image_processor(config),
        {"num_patches": config.num_patches, "targets": [Column("brightness")]},
    )
    train = ImageDataset(data, Labels(), TrainTransform(processor), seed=0, **more)
    args = PreTrainingArguments(
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        logging_steps=1,
        use_cpu=True,
    )
    args.report_to, args.save_strategy = [], "no"
    trainer = PreTrainer(
        SupMAEForPreTraining(config),
        args,
        train_dataset=train,
        eval_dataset=ImageDataset(data, Labels(), processor, **more),
        data_collator=collate,
    )
    trainer.train()
    metrics = trainer.evaluate()
    with torch.no_grad():
        items = [trainer.eval_dataset[index] for index in range(0, 64, 3)]
        batch = collate(items)
        outputs = trainer.model.eval()(batch["pixel_values"], brightness=batch["brightness"], noise=batch["noise"])
    assert metrics["eval_brightness_loss"] == pytest.approx(outputs.supervision_losses["brightness"].item(), rel=1e-5)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all("brightness_loss" in entry and "classification_loss" not in entry for entry in log)
    # 64 images, of which 22 are labelled, are two steps of 32
    assert sum(entry["images_with_brightness_per_step"] for entry in log[:2]) == 22


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--caption_column_name", "text"], "`--caption_column_name` text is no column: the columns are"),
        (["--caption_column_name", "label"], "holds no texts"),
        (["--objects_column_name", "caption"], "has not the fields 'bbox' and 'category'"),
        (["--mask_column_name", "image"], "it must be said which"),
        (["--mask_column_name", "caption"], "`--mask_column_name` caption is a column of text: masks are images"),
        (["--mask_dir", "nowhere"], "`--mask_dir` nowhere is not a folder"),
        (["--tokenizer_name", "x"], "`--tokenizer_name` needs `--caption_column_name`"),
        (["--reduce_labels", "True"], "`--reduce_labels` is for masks"),
        (["--model_config", json.dumps({"supervision": "captions"})], "`supervision` has captions, but no column"),
        (["--model_config", json.dumps({"supervision": "words"})], "`supervision` names 'words'"),
        (
            ["--caption_column_name", "caption", "--model_config", json.dumps({"supervision": "labels"})],
            "leaves out captions, for which a column is named",
        ),
    ],
)
def test_bad_input_is_refused(table, tmp_path, flags, message):
    error = run_example(
        "run_pretrain.py", "--dataset_name", table, *flags, "--output_dir", "out", cwd=tmp_path, fails=True
    )
    assert message in error and not (tmp_path / "out").exists()
