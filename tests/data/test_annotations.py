"""Masks and boxes in many forms: the right pixels, or an error that names the image and the remedy."""

import io
import itertools
import json

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY, run_example
from PIL import Image, ImageOps
from torchvision.transforms import v2

from supmae_hf.data.annotations import DenseLabels, find_objects, with_objects
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.labels import Labels
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.preparation import ExactMask, build_image_processor
from supmae_hf.supervision_supmae import UNLABELED


HEIGHT, WIDTH = 48, 64
BOX = (8, 8, 24, 16)  # left, top, width, height
RUN = ["--num_train_epochs", 1, "--warmup_epochs", 0, "--per_device_train_batch_size", 8, "--report_to", "none"]
RUN += ["--disable_tqdm", "True", "--use_cpu", "--save_strategy", "no", "--output_dir", "out"]


def drawn(values=(0, 1)) -> np.ndarray:
    """A mask of the box, or an image of it."""
    mask = np.full((HEIGHT, WIDTH), values[0], np.uint8)
    mask[8:24, 8:32] = values[1]
    return mask


def encoded(image: Image.Image, kind="PNG", **options) -> dict:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def classes(objects, box_format="xywh", categories=("shape",)) -> np.ndarray:
    places = {name: place for place, name in enumerate(categories, 1)}
    dense = DenseLabels(["background", *categories], "objects", places, box_format=box_format)
    return dense.encode({"objects": objects}, (HEIGHT, WIDTH), None).numpy()


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("xywh", [8, 8, 24, 16]),
        ("xyxy", [8, 8, 32, 24]),
        ("cxcywh", [20, 16, 24, 16]),
        ("rel_xywh", [8 / 64, 8 / 48, 24 / 64, 16 / 48]),
        ("rel_xyxy", [8 / 64, 8 / 48, 32 / 64, 24 / 48]),
        ("rel_cxcywh", [20 / 64, 16 / 48, 24 / 64, 16 / 48]),
    ],
)
def test_boxes_of_every_format(box_format, box):
    assert np.array_equal(classes({"bbox": [box], "category": ["shape"]}, box_format), drawn())


@pytest.mark.parametrize("name", ["categories", "category_id", "label", "labels"])
def test_categories_have_the_names_that_they_have_on_the_hub(name):
    assert np.array_equal(classes({"bbox": [BOX], name: ["shape"]}), drawn())
    assert np.array_equal(classes([{"bbox": BOX, name: "shape"}]), drawn())
    table = datasets.Dataset.from_dict({"objects": [{"bbox": [BOX], name: ["shape"]}, {"bbox": [], name: []}]})
    assert find_objects(table, "objects") == {"shape": "shape"}


def test_crowds_have_no_class():
    objects = {"bbox": [[0, 0, 64, 48], BOX], "category": ["shape", "shape"], "iscrowd": [1, 0]}
    assert np.array_equal(classes(objects), np.where(drawn(), 1, UNLABELED))
    listed = [{"bbox": [0, 0, 64, 48], "category": "shape", "iscrowd": 1}, {"bbox": BOX, "category": "shape"}]
    assert np.array_equal(classes(listed), np.where(drawn(), 1, UNLABELED))


@pytest.mark.parametrize(
    ("objects", "box_format", "message"),
    [
        ({"bbox": [BOX, BOX], "category": ["shape"]}, "xywh", "it has 2 boxes and 1 categories"),
        ({"bbox": [[8, 8, 24]], "category": ["shape"]}, "xywh", "is not of four numbers"),
        ({"bbox": [[8, 8, float("nan"), 4]], "category": ["shape"]}, "xywh", "is not of four numbers"),
        ({"bbox": [[8, 8, -1, 4]], "category": ["shape"]}, "xywh", "is not one of the format xywh"),
        ({"bbox": [[32, 24, 8, 8]], "category": ["shape"]}, "xyxy", "is not one of the format xyxy"),
        ({"bbox": [[500, 500, 24, 16]], "category": ["shape"]}, "xywh", "lies outside the image of 64x48 pixels"),
        ({"bbox": [BOX], "category": ["other"]}, "xywh", r"the category 'other' is not one of \['shape'\]"),
    ],
)
def test_bad_boxes_are_refused(objects, box_format, message):
    with pytest.raises(ValueError, match=message):
        classes(objects, box_format)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_of_turned_images(orientation):
    """Of the pixels as the file stores them, or of the upright image: to the pixel."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(drawn((0, 255))).convert("RGB")
    record = {"image": encoded(image, exif=exif), "mask": encoded(Image.fromarray(drawn()))}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    objects = {**record, "objects": {"bbox": [BOX], "category": ["shape"]}}
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(record["image"]["bytes"]))))[..., 0] > 127

    def read(data, dense):
        images = ImageDataset(data, Labels(), None, image_column="image", targets=[dense])
        return images.read_classes(images.dataset[0], images.read(images.dataset[0]["image"])[0]).numpy()

    stored = {"as_stored": True}
    masks = datasets.Dataset.from_list([record], features=features)
    assert np.array_equal(read(masks, DenseLabels(["ground", "shape"], "mask", **stored)), upright)
    boxes = datasets.Dataset.from_list([objects]).cast_column("image", datasets.Image())
    assert np.array_equal(
        read(boxes, DenseLabels(["background", "shape"], "objects", {"shape": 1}, **stored)), upright
    )
    shown = encoded(Image.fromarray(upright.astype(np.uint8)))
    masks = datasets.Dataset.from_list([{**record, "mask": shown}], features=features)
    assert np.array_equal(read(masks, DenseLabels(["ground", "shape"], "mask")), upright)


@pytest.mark.parametrize("size", [(20, 30), (24, 40), (96, 128), (31, 17)])
def test_masks_stay_on_their_images(size):
    """The centre of each pixel of a resized mask lies in the pixel of the mask that it is taken from."""
    values = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    resized = v2.functional.resize(ExactMask(values), list(size))
    rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(size, (HEIGHT, WIDTH)))
    assert np.array_equal(resized, rows.astype(int)[:, None] * WIDTH + columns.astype(int))


def test_image_and_mask_are_cropped_alike():
    """The mean place of the marked pixels is the same, to a tenth of a pixel on average."""
    image, mask = Image.fromarray(drawn((0, 255))).convert("RGB"), torch.from_numpy(drawn().astype(np.int64))

    class Config:
        num_channels, image_size, patch_size = 3, 32, 8

    processor = build_image_processor(Config, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    transform, distances = TrainTransform(processor, (0.5, 1.0)), []
    torch.manual_seed(0)
    for _ in range(40):
        pixels, classes = transform.with_mask(image, None, mask)
        weights = [pixels[0].double(), classes.double()]
        if weights[1].sum() > 20:
            places = torch.arange(32.0, dtype=torch.float64)
            centres = [torch.stack([(w.sum(axis) * places).sum() / w.sum() for axis in (0, 1)]) for w in weights]
            distances.append(centres[0] - centres[1])
    assert torch.stack(distances).mean(dim=0).abs().max() < 0.1


def test_masks_of_colours_and_lossy_ones():
    colors = np.stack([drawn() * 128, drawn() * 0, drawn() * 64], -1)
    read = lambda one, is_mask: (Image.open(io.BytesIO(one["bytes"])), one["bytes"])  # noqa: E731
    record = {"mask": encoded(Image.fromarray(colors))}
    found = DenseLabels(["ground", "shape"], "mask", colors=["000000", "#800040"])
    assert np.array_equal(found.encode(record, (HEIGHT, WIDTH), read), drawn())
    with pytest.raises(ValueError, match=r"holds colours \(000000, 800040\).*`--mask_colors`"):
        DenseLabels(["ground", "shape"], "mask").encode(record, (HEIGHT, WIDTH), read)
    with pytest.raises(ValueError, match="holds the colour 800040, which `--mask_colors` does not name"):
        DenseLabels(["a", "b"], "mask", colors=["000000", "800041"]).encode(record, (HEIGHT, WIDTH), read)
    with pytest.raises(ValueError, match="needs a colour such as 800040 for each of the 2 classes"):
        DenseLabels(["a", "b"], "mask", colors=["000000"])
    palette = Image.fromarray(drawn()).convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    one_bit, deep = Image.fromarray(drawn((0, 255))).convert("1"), Image.fromarray(drawn().astype(np.uint16))
    for image in (palette, one_bit, deep):
        dense = DenseLabels(["ground", "shape"], "mask")
        assert np.array_equal(dense.encode({"mask": encoded(image)}, (HEIGHT, WIDTH), read), drawn())
    for image in (drawn() * np.float32(0.7), np.where(drawn(), np.nan, 0).astype(np.float32)):
        with pytest.raises(ValueError, match=r"holds (0\.7|nan), but classes are whole numbers"):
            DenseLabels(["ground", "shape"], "mask").encode(
                {"mask": encoded(Image.fromarray(image), "TIFF")}, (HEIGHT, WIDTH), read
            )
    with pytest.raises(ValueError, match="has 2 channels: a mask has one, of classes, or three, of colours"):
        DenseLabels(["ground", "shape"], "mask").encode(
            {"mask": encoded(palette.convert("LA"))}, (HEIGHT, WIDTH), read
        )
    for kind, options in (("JPEG", {}), ("WEBP", {"lossless": False})):
        lossy = {"mask": encoded(Image.fromarray(drawn()), kind, **options)}
        with pytest.raises(ValueError, match="is compressed with losses"):
            DenseLabels(["ground", "shape"], "mask").encode(lossy, (HEIGHT, WIDTH), read)


def write(root, mask=None, stem="{}", objects=None, exif=None, split="train", count=24):
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8) + 120 * drawn()[..., None]
        path = root / "images" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif)
        if mask is not None:
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{stem.format(f'{index:02d}')}.png")
    if objects is not None:
        rows = [
            {"image": {"bytes": path.read_bytes(), "path": None}, "objects": objects}
            for path in (root / "images").iterdir()
        ]
        (root / "table").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(
            root / "table" / f"{split}.parquet"
        )


CONFIG = json.dumps({**TINY, "dense_classes": ["ground", "shape"]})
MASKS = ["--train_dir", "images", "--mask_dir", "masks", "--model_config", CONFIG]
TABLE = ["--dataset_name", "table", "--objects_column_name", "objects", "--model_config", json.dumps(TINY)]
ONE = {"bbox": [BOX], "category": ["shape"]}


@pytest.mark.parametrize(
    ("written", "arguments", "message"),
    [
        ({"mask": drawn((0, 255))}, MASKS, "values of masks are 0 and 255, of which 255 is no class"),
        ({"mask": drawn((1, 1))}, MASKS, "No pixel of the masks that were looked at is of the class 'ground'"),
        ({"mask": drawn(), "stem": "picture of {}"}, MASKS, "the names of masks are those of the images, such as "),
        ({"mask": drawn((0, 7))}, MASKS, "00.png holds class 7, outside [0, 2)"),
        ({"objects": {"bbox": [[0.1, 0.1, 0.4, 0.3]], "category": ["shape"]}}, TABLE, "Pass `--box_format rel_xywh`"),
        (
            {"objects": {"bbox": [[500, 500, 24, 16]], "category": ["shape"]}},
            TABLE,
            "Image 0: the box [500, 500, 24, 16] lies",
        ),
        ({"objects": {"bbox": [BOX, BOX], "category": ["shape"]}}, TABLE, "Image 0: it has 2 boxes and 1 categories"),
        ({}, ["--box_format", "xyxy"], "`--box_format` is for boxes"),
        ({}, ["--mask_colors", "000000"], "`--mask_colors` is for masks"),
    ],
)
def test_what_cannot_be_right_is_said_before_the_run(tmp_path, written, arguments, message):
    write(tmp_path, **written)
    assert message in run_example("run_pretrain.py", *RUN, *arguments, cwd=tmp_path, fails=True)
    assert not (tmp_path / "out").exists()


def test_a_category_of_held_out_images_alone(tmp_path):
    write(tmp_path, objects=ONE)
    write(tmp_path, objects={"bbox": [BOX], "category": ["other"]}, split="validation")
    error = run_example("run_pretrain.py", *RUN, *TABLE, cwd=tmp_path, fails=True)
    assert "Held-out images have the category 'other', which no training image has" in error


@pytest.mark.parametrize(
    ("written", "arguments", "lines"),
    [
        ({"mask": drawn(), "stem": "{}_mask"}, MASKS, ["training): ground 87.5%, shape 12.5%"]),
        (
            {"objects": {**ONE, "bbox": [[8, 8, 63, 47]]}},
            TABLE,
            ["22 of 22 boxes (training) reach beyond their image"],
        ),
        ({"objects": {**ONE, "category": ["background"]}}, TABLE, ["22 training images have boxes, of 1 classes"]),
        ({"objects": ONE, "exif": 6}, TABLE, ["images are turned by their EXIF orientation", "of the upright image"]),
        (
            {"objects": {**ONE, "bbox": [[50, 8, 14, 16]]}, "exif": 6},
            [*TABLE, "--annotations_as_stored", "True"],
            ["are taken to be of the stored pixels", "background 92.7%, shape 7.3%"],
        ),
    ],
)
def test_what_was_found_is_said(tmp_path, written, arguments, lines):
    if "exif" in written:
        written["exif"], orientation = Image.Exif(), written["exif"]
        written["exif"][0x0112] = orientation
    write(tmp_path, **written)
    fails = "of 1 classes" in lines[0]  # which the model refuses
    printed = run_example("run_pretrain.py", *RUN, *arguments, cwd=tmp_path, fails=fails)
    assert fails or all(line in printed for line in lines)


def test_files_of_coco(tmp_path):
    write(tmp_path)
    images = [{"id": 100 + index, "file_name": f"{index:02d}.png"} for index in range(20)]
    annotations = [{"image_id": image["id"], "bbox": BOX, "category_id": 7, "iscrowd": 0} for image in images[:18]]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "shape"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    run = [*RUN, "--train_dir", "images", "--model_config", json.dumps(TINY), "--objects_file", "instances.json"]
    printed = run_example("run_pretrain.py", *run, cwd=tmp_path)
    assert "background" in printed and "shape" in printed and "training images have boxes, of 2 classes" in printed
    (tmp_path / "instances.json").write_text(
        json.dumps({**content, "images": [{**x, "height": 96, "width": 128} for x in images]})
    )
    error = run_example("run_pretrain.py", *run, cwd=tmp_path, fails=True)
    assert "its objects are of an image of 96x128 pixels (height x width), but it has 48x64: take the images" in error
    (tmp_path / "instances.json").write_text("[]")
    data = datasets.Dataset.from_dict({"image": ["a.png"]}).cast_column("image", datasets.Image(decode=False))
    with pytest.raises(ValueError, match="is not of COCO's format"):
        with_objects([data], "image", [str(tmp_path / "instances.json")], "objects")


def test_unlabelled_images_alone_are_all_that_a_run_sees(tmp_path):
    write(tmp_path)
    run = [*RUN, "--unlabeled_dir", "images", "--model_config", json.dumps(TINY)]
    printed = run_example("run_pretrain.py", *run, cwd=tmp_path)
    assert (
        "| training | 22 | 0 |" in printed
        and "No labels: the reconstruction branch alone is trained (MAE)." in printed
    )


def test_masks_of_tiffs_are_as_the_file_has_them():
    """Whatever a TIFF says of black and white: values are classes."""
    tifffile = pytest.importorskip("tifffile")
    for photometric, mask in itertools.product(("miniswhite", "minisblack"), (drawn(), drawn().astype(bool))):
        file = io.BytesIO()
        tifffile.imwrite(file, mask, photometric=photometric)
        column = [{"bytes": file.getvalue(), "path": "a.tif"}]
        data = datasets.Dataset.from_dict(
            {"image": [encoded(Image.fromarray(drawn()))], "mask": column},
            features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
        )
        images = ImageDataset(data, Labels(), None, "image", targets=[DenseLabels(["ground", "shape"], "mask")])
        record = images.dataset[0]
        assert np.array_equal(images.read_classes(record, images.read(record["image"])[0]), drawn())
