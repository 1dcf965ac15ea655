import io
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from conftest import digit_images, make_dataset, reference_config
from PIL import Image
from timm.data import Mixup
from torch.utils.data import DataLoader
from torchvision import transforms as T

from supmae_hf.data.images import (
    EpochSampler,
    ImageDataset,
    ImageStream,
    MixupCollator,
    build_finetune_transform,
    build_image_processor,
    build_train_transform,
    collate,
    normalize_pixels,
    seeded,
)
from supmae_hf.data.sources import DataArguments, Labels, load_image_data


CLASSES = datasets.ClassLabel(names=["cat", "dog"])


REFERENCE = partial(DataArguments, input_pipeline="reference")


@pytest.mark.parametrize("pipeline", ["fast", "reference"])
def test_train_transform(photographs, pipeline):
    arguments = partial(DataArguments, input_pipeline=pipeline)
    config = reference_config(image_size=64)
    image = Image.fromarray(photographs[0])
    whole = build_train_transform(config, arguments(crop_scale=[1.0, 1.0], horizontal_flip=False))
    pixel_values = whole(image)
    assert pixel_values.shape == (3, 64, 64)
    assert pixel_values.dtype == (torch.uint8 if pipeline == "fast" else torch.float32)
    random = build_train_transform(config, arguments())
    assert not torch.equal(random(image), random(image))
    flipped = [
        build_train_transform(config, arguments(crop_scale=[1.0, 1.0]))(image.resize((64, 64))) for _ in range(20)
    ]
    unflipped = whole(image.resize((64, 64)))
    same = sum(torch.equal(x, unflipped) for x in flipped)
    mirrored = sum(torch.equal(x, unflipped.flip(-1)) for x in flipped)
    assert same + mirrored == 20 and same and mirrored


def encode(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"quality": 90, "progressive": True, "subsampling": 0}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"exif": {274: 6}}),  # to be rotated
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
    ],
)
@pytest.mark.parametrize(("width", "crop_scale"), [(500, [0.2, 1.0]), (2000, [0.5, 1.0])])
def test_fast_pipeline_takes_the_crops_of_the_reference(photographs, file_format, mode, options, width, crop_scale):
    """From the same random numbers the same crops and flips, and nearly the same pixels; 2000 pixels are reduced."""
    exif = Image.Exif()
    exif.update(options.get("exif", {}))
    photo = Image.fromarray(photographs[0]).resize((width, width * 3 // 4), Image.Resampling.BICUBIC).convert(mode)
    file = encode(photo, format=file_format, **{**options, "exif": exif} if "exif" in options else options)
    dataset = make_dataset({"image": [{"bytes": file, "path": None}]}, {"image": datasets.Image()})
    config = reference_config(image_size=(160, 128), patch_size=16)

    def items(pipeline):
        args = DataArguments(input_pipeline=pipeline, crop_scale=crop_scale)
        transform = build_train_transform(config, args)
        images = ImageDataset(dataset, config, Labels.of(dataset), transform, args, seed=5, masks=True)
        return collate([images[epoch] for epoch in range(12)])

    fast, reference = items("fast"), items("reference")
    assert torch.equal(fast["noise"], reference["noise"])
    assert fast["pixel_values"].dtype == torch.uint8
    difference = (normalize_pixels(fast["pixel_values"]) - reference["pixel_values"]).abs() * 0.225 * 255
    # levels of 255, of another crop or a missed flip about 60 on average; JPEG files may be decoded at half their size
    tolerance = 3.0 if (file_format, mode) == ("JPEG", "RGB") and "exif" not in options else 1.0
    assert difference.mean() < tolerance
    assert difference.flatten(1).mean(dim=1).max() < 2 * tolerance


def test_fast_pipeline_takes_jpeg_files_with_bytes_behind_their_end(photographs):
    file = encode(Image.fromarray(photographs[0]).resize((200, 150)), format="JPEG") + b"\0"
    transform = build_train_transform(reference_config(image_size=224, patch_size=16), DataArguments())
    for _ in range(4):  # of crops smaller than the model's images
        assert transform(Image.open(io.BytesIO(file)), file).shape == (3, 224, 224)


def test_fast_pipeline_samples_the_distribution_of_torchvisions_crops():
    """Share and aspect ratio of the crops and where they lie, against torchvision's own, by a two-sample test."""
    from scipy.stats import ks_2samp

    width, height = 500, 375
    image = Image.new("RGB", (width, height))
    fast = build_train_transform(reference_config(image_size=224, patch_size=16), DataArguments())
    crops = []
    fast._decode = lambda image, file, scale, **crop: crops.append(crop) or torch.zeros(3, 224, 224, dtype=torch.uint8)
    torch.manual_seed(0)
    for _ in range(2000):
        fast(image)
    expected = [T.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    expected = [dict(zip(("top", "left", "height", "width"), crop)) for crop in expected]
    for figure in (
        lambda crop: crop["height"] * crop["width"],
        lambda crop: crop["height"] / crop["width"],
        lambda crop: crop["left"] / max(width - crop["width"], 1),
        lambda crop: crop["top"] / max(height - crop["height"], 1),
    ):
        assert ks_2samp([*map(figure, crops)], [*map(figure, expected)]).pvalue > 0.001


def test_normalised_pixels_are_those_of_torchvision(photographs):
    images = torch.stack([torch.tensor(photo) for photo in photographs]).permute(0, 3, 1, 2)
    expected = T.functional.normalize(images / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(normalize_pixels(images), expected, atol=1e-5, rtol=1e-5)
    assert normalize_pixels(expected) is expected


def test_image_processor_resizes_then_crops(photographs):
    image = Image.fromarray(photographs[0])  # 640x427
    pixel_values = build_image_processor(reference_config(image_size=224, patch_size=16))(image, return_tensors="pt")
    resized = image.resize((int(640 * 256 / 427), 256), Image.Resampling.BICUBIC)
    left = (resized.width - 224) / 2
    cropped = np.asarray(resized)[16:240, int(left) : int(left) + 224] / 255
    expected = (
        torch.tensor(cropped).permute(2, 0, 1) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    ) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    difference = (pixel_values["pixel_values"][0] - expected.float()).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.2  # rounding to 8 bits differs


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, (32, 48)])
def test_image_dataset(num_channels, image_size, photographs):
    config = reference_config(num_channels=num_channels, image_size=image_size)
    images = [Image.fromarray(photographs[0]), Image.fromarray(photographs[1]).convert("L")]
    dataset = make_dataset({"image": images, "label": [1, None]}, {"image": datasets.Image(), "label": CLASSES})
    labels = Labels.of(dataset)
    for transform in (build_train_transform(config, DataArguments()), build_image_processor(config)):
        batch = collate([*ImageDataset(dataset, config, labels, transform)])
        height, width = (32, 32) if image_size == 32 else image_size
        assert batch["pixel_values"].shape == (2, num_channels, height, width)
        assert batch["labels"].tolist() == [1, -100]


def test_evaluation_has_a_fixed_mask_for_each_image():
    config = reference_config()
    dataset = make_dataset({"image": digit_images(4)}, {"image": datasets.Image()})
    items = ImageDataset(dataset, config, Labels.of(dataset), build_image_processor(config), masks=True)
    assert items[2]["noise"].shape == (16,) and torch.equal(items[2]["noise"], items[2]["noise"])
    assert not torch.equal(items[2]["noise"], items[3]["noise"])
    assert items[0]["labels"] == -100


def test_images_that_cannot_be_decoded_are_named(digit_folder):
    (digit_folder / "train" / "digit-3" / "broken.png").write_bytes(b"not an image")
    data = load_image_data(
        DataArguments(train_dir=str(digit_folder / "train"), validation_dir=str(digit_folder / "held_out"))
    )
    config = reference_config()
    items = ImageDataset(data["train"], config, Labels.of(data["train"]), build_image_processor(config))
    with pytest.raises(ValueError, match=r"digit-3/broken.png \(image \d+\) cannot be decoded.*repair it or remove"):
        collate([items[index] for index in range(len(items))])


def test_truncated_bytes_are_named():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    records = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": buffer.getvalue()[:500], "path": None}]
    dataset = make_dataset({"image": records}, {"image": datasets.Image()})
    config = reference_config()
    items = ImageDataset(dataset, config, Labels.of(dataset), build_image_processor(config))
    assert items[0]["pixel_values"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="Image 1 cannot be decoded"):
        items[1]


def test_channels_that_images_do_not_have_are_refused():
    dataset = make_dataset({"image": digit_images(1)}, {"image": datasets.Image()})
    config = reference_config(num_channels=7)
    with pytest.raises(ValueError, match="`num_channels` is 7"):
        ImageDataset(dataset, config, Labels.of(dataset), None)


# --- randomness ---


def train_dataset(size=20, seed=3, arguments=DataArguments, **kwargs):
    config = reference_config()
    dataset = make_dataset(
        {"image": digit_images(size), "label": [index % 2 for index in range(size)]},
        {"image": datasets.Image(), "label": CLASSES},
    )
    transform = build_train_transform(config, arguments())
    return ImageDataset(dataset, config, Labels.of(dataset), transform, seed=seed, masks=True, **kwargs)


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_seeded_draws_follow_from_the_key_and_disturb_nothing():
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), __import__("random").random()

    with seeded(1, 2, 3):
        first = draws()
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.rand(1), np.random.rand(1)
    with seeded(1, 2, 3):
        assert draws() == first
    after = torch.rand(1), np.random.rand(1)
    torch.manual_seed(0)
    np.random.seed(0)
    assert (torch.rand(1), np.random.rand(1)) == before and (torch.rand(1), np.random.rand(1)) == after
    with seeded(1, 2, 4):
        assert draws() != first


def test_items_follow_from_seed_epoch_and_index_alone():
    items, again = train_dataset(), train_dataset()
    for position in (7, 27, 3):
        again[3], torch.rand(5)
        assert_same(items[position], again[position])
    assert torch.equal(items[7]["labels"], items[27]["labels"])  # the same image in another epoch
    for name in ("pixel_values", "noise"):
        assert not torch.equal(items[7][name], items[27][name])
        assert not torch.equal(items[7][name], train_dataset(seed=4)[7][name])


def test_epochs_are_shuffled_anew_and_complete():
    sampler = EpochSampler(train_dataset())
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        positions = list(sampler)
        assert sorted(positions) == list(range(20 * epoch, 20 * epoch + 20)) and len(sampler) == 20
        orders.append([position % 20 for position in positions])
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    items = train_dataset()
    sampler = EpochSampler(items)
    sampler.epoch = 2
    plain, workers = (
        list(DataLoader(items, 5, sampler=sampler, collate_fn=collate, num_workers=n)) for n in (0, num_workers)
    )
    for first, second in zip(plain, workers, strict=True):
        assert_same(first, second)


def test_only_chosen_labels_are_used():
    assert [train_dataset(4, labeled=[1, 2])[index]["labels"].item() for index in range(4)] == [-100, 1, 0, -100]


# --- fine-tuning ---


@pytest.mark.parametrize("num_channels", [1, 3])
def test_finetune_transform_is_timms(photographs, num_channels):
    config = reference_config(image_size=(64, 48), num_channels=num_channels)
    image = Image.fromarray(photographs[0]).convert({1: "L", 3: "RGB"}[num_channels])
    transform = build_finetune_transform(config, DataArguments(), "rand-m9-mstd0.5-inc1", 0.25)
    names = [type(step).__name__ for step in transform.transforms]
    assert names.index("RandomHorizontalFlip") < names.index("RandAugment") < names.index("Normalize")
    assert names[-1] == "RandomErasing"
    erasing = transform.transforms[-1]
    assert (erasing.probability, erasing.per_pixel) == (0.25, True)
    results = []
    for key in (1, 1, 2):
        with seeded(key):
            results.append(transform(image))
    assert results[0].shape == (num_channels, 64, 48)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    for index in range(100):  # every operation at every strength
        with seeded(index):
            assert transform(image).isfinite().all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_timms_and_follows_from_the_images(mixup, cutmix):
    mix = partial(Mixup, mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=2)
    items = [train_dataset(arguments=REFERENCE)[index] for index in range(8)]
    batch, again = (MixupCollator(mix())(items) for _ in range(2))
    assert_same(batch, again)
    assert batch["labels"].shape == (8, 2) and torch.allclose(batch["labels"].sum(dim=1), torch.ones(8))
    plain = collate(items)["pixel_values"]
    assert not torch.equal(batch["pixel_values"], plain)
    if not cutmix:  # mixed half with half: the weight follows from the pixels
        weight = (batch["pixel_values"] - plain.flip(0)) / (plain - plain.flip(0))
        weight = weight[(plain - plain.flip(0)).abs() > 0.1].median()
        smoothed = torch.full((8, 2), 0.05) + 0.9 * torch.nn.functional.one_hot(torch.arange(8) % 2, 2)
        torch.testing.assert_close(
            batch["labels"], weight * smoothed + (1 - weight) * smoothed.flip(0), atol=1e-5, rtol=0
        )
    assert_same(MixupCollator(mix())(items[::-1]), MixupCollator(mix())(items[::-1]))


# --- broken images ---


def with_broken(indices, **kwargs):
    images = [{"bytes": None, "path": None} for _ in range(10)]
    for index, image in enumerate(digit_images(10)):
        buffer = io.BytesIO()
        image.save(buffer, "png")
        images[index]["bytes"] = buffer.getvalue()[: 30 if index in indices else None]
    dataset = make_dataset(
        {"image": images, "label": [index % 2 for index in range(10)]}, {"image": datasets.Image(), "label": CLASSES}
    )
    config = reference_config()
    args = DataArguments(on_bad_image="skip")
    return dataset, (config, Labels.of(dataset), build_image_processor(config), args)


def test_the_next_image_takes_the_place_of_a_broken_one():
    dataset, arguments = with_broken([3, 4, 9])
    items = ImageDataset(dataset, *arguments, seed=0)
    assert [items[index]["skipped"].item() for index in range(10)] == [0, 0, 0, 2, 1, 0, 0, 0, 0, 1]
    assert torch.equal(items[3]["pixel_values"], items[5]["pixel_values"]) and items[3]["labels"] == 1
    assert torch.equal(items[9]["pixel_values"], items[0]["pixel_values"])
    # in evaluation it does not count twice
    assert [item["labels"].item() for item in ImageDataset(dataset, *arguments)] == [
        0,
        1,
        0,
        -100,
        -100,
        1,
        0,
        1,
        0,
        -100,
    ]


def test_nothing_but_broken_images_is_an_error():
    dataset, arguments = with_broken(range(10))
    with pytest.raises(ValueError, match="None of the images can be decoded"):
        ImageDataset(dataset, *arguments, seed=0)[0]


def test_streams_leave_broken_images_out():
    dataset, arguments = with_broken([3, 4, 9])
    items = list(ImageStream(dataset.to_iterable_dataset(), *arguments))
    assert [item["skipped"].item() for item in items] == [0, 0, 0, 2, 0, 0, 0]


# --- streams ---


def stream(num_images=16, seed=3):
    items = train_dataset(20)
    dataset = items.dataset.to_iterable_dataset(num_shards=4)
    dataset = dataset.cast_column("image", datasets.Image())
    return ImageStream(
        dataset, reference_config(), items.labels, items.transform, seed=seed, masks=True, num_images=num_images
    )


def take(images: ImageStream, epoch: int, count: int = 20) -> list[dict]:
    images.epoch = epoch
    return [item for _, item in zip(range(count), images)]


def test_streams_follow_from_seed_and_epoch():
    first, again, next_epoch = take(stream(), 0), take(stream(), 0), take(stream(), 1)
    for one, other in zip(first, again, strict=True):
        assert_same(one, other)
    assert not torch.equal(first[0]["pixel_values"], next_epoch[0]["pixel_values"])
    assert len(stream()) == 16


def test_streams_see_every_image_once():
    images = stream()
    images.transform = build_image_processor(reference_config())  # so that images can be recognised
    seen = {item["pixel_values"].numpy().tobytes() for item in take(images, 0)}
    assert len(seen) == len({image.tobytes() for image in digit_images(20)}) == 20


def test_streamed_evaluation_ends():
    config = reference_config()
    dataset = make_dataset({"image": digit_images(7)}, {"image": datasets.Image()})
    images = ImageStream(dataset.to_iterable_dataset(), config, Labels(None), build_image_processor(config))
    assert len(list(images)) == 7
    with pytest.raises(TypeError, match="does not know its length"):
        len(images)
