import collections
import io
import itertools
import tarfile
from functools import partial

import datasets
import numpy as np
import pytest
import tifffile
import torch
from accelerate import skip_first_batches
from conftest import digit_images, load_data, make_dataset, reference_config
from PIL import Image
from timm.data import Mixup
from torch.utils.data import DataLoader

from supmae_hf.data.dataset import Dealing, EpochSampler, ImageDataset, ImageStream, MixupCollator, collate
from supmae_hf.data.labels import Labels
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.preparation import build_image_processor


CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, (32, 48)])
def test_image_dataset(num_channels, image_size, photographs):
    config = reference_config(num_channels=num_channels, image_size=image_size)
    images = [Image.fromarray(photographs[0]), Image.fromarray(photographs[1]).convert("L")]
    dataset = make_dataset({"image": images, "label": [1, None]}, {"image": datasets.Image(), "label": CLASSES})
    labels = Labels.of(dataset)
    for transform in (TrainTransform(build_image_processor(config)), build_image_processor(config)):
        batch = collate([*ImageDataset(dataset, labels, transform)])
        height, width = (32, 32) if image_size == 32 else image_size
        assert batch["pixel_values"].shape == (2, num_channels, height, width)
        assert batch["labels"].tolist() == [1, -100]


def test_evaluation_has_a_fixed_mask_for_each_image():
    config = reference_config()
    dataset = make_dataset({"image": digit_images(4)}, {"image": datasets.Image()})
    items = ImageDataset(dataset, Labels.of(dataset), build_image_processor(config), num_patches=16)
    assert items[2]["noise"].shape == (16,) and torch.equal(items[2]["noise"], items[2]["noise"])
    assert not torch.equal(items[2]["noise"], items[3]["noise"])
    assert items[0]["labels"] == -100


def test_images_that_cannot_be_decoded_are_named(digit_folder):
    (digit_folder / "train" / "digit-3" / "broken.png").write_bytes(b"not an image")
    data = load_data(str(digit_folder / "train"), validation_dir=str(digit_folder / "held_out"))
    items = ImageDataset(data.train, data.labels, build_image_processor(reference_config()))
    with pytest.raises(ValueError, match=r"digit-3/broken.png \(image \d+\) cannot be decoded.*repair it or remove"):
        collate([items[index] for index in range(len(items))])


def test_truncated_bytes_are_named():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    records = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": buffer.getvalue()[:500], "path": None}]
    dataset = make_dataset({"image": records}, {"image": datasets.Image()})
    config = reference_config()
    items = ImageDataset(dataset, Labels.of(dataset), build_image_processor(config))
    assert items[0]["pixel_values"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="Image 1 cannot be decoded"):
        items[1]


def test_channels_that_images_do_not_have_are_refused():
    dataset = make_dataset({"image": digit_images(1)}, {"image": datasets.Image()})
    processor = build_image_processor(reference_config(num_channels=7))
    for transform in (processor, TrainTransform(processor)):
        with pytest.raises(ValueError, match="it has 1 channels, the model 7: set `num_channels`"):
            ImageDataset(dataset, Labels.of(dataset), transform)[0]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_arrays_are_images(dtype):
    """A column of arrays reaches the model as the same numbers in a TIFF do."""
    pixels = np.random.default_rng(0).integers(0, 65535, (3, 20, 24, 5)).astype(dtype)
    pixels = pixels / 65535 if dtype == "float32" else pixels
    arrays = make_dataset({"scan": pixels.tolist()}, {"scan": datasets.Array3D((20, 24, 5), dtype)})
    files = []
    for array in pixels.astype(dtype):
        file = io.BytesIO()
        tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
        files.append({"bytes": file.getvalue(), "path": None})
    tiffs = make_dataset({"image": files}, {"image": datasets.Image(decode=False)})
    processor = build_image_processor(reference_config(num_channels=5), pixel_type=dtype)
    for transform in (processor, TrainTransform(processor)):
        ours, theirs = (ImageDataset(data, Labels(), transform, seed=1) for data in (arrays, tiffs))
        for index in range(3):
            assert ours[index]["pixel_values"].shape == (5, 32, 32)
            assert torch.equal(ours[index]["pixel_values"], theirs[index]["pixel_values"])


# --- randomness ---


def train_dataset(size=20, seed=3, **kwargs):
    dataset = make_dataset(
        {"image": digit_images(size), "label": [index % 2 for index in range(size)]},
        {"image": datasets.Image(), "label": CLASSES},
    )
    transform = TrainTransform(build_image_processor(reference_config()))
    return ImageDataset(dataset, Labels.of(dataset), transform, seed=seed, num_patches=16, **kwargs)


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


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


def test_labeled_images_come_several_times():
    items = train_dataset(labeled=[1, 2, 3])
    sampler = EpochSampler(items, labeled_share=0.5)
    left_out = []
    for epoch in (0, 1):
        sampler.epoch = epoch
        positions = list(sampler)
        assert positions == list(sampler) and len(set(positions)) == len(positions) == len(sampler) == 20
        images = [position % 20 for position in positions]
        assert sorted(images.count(index) for index in (1, 2, 3)) == [3, 3, 4]
        others = [index for index in images if index > 3 or not index]
        assert len(set(others)) == len(others) == 10
        left_out.append(set(range(20)) - set(images))
        # each time another crop and mask, the same whenever it is asked for
        copies = [items[position] for position in positions if position % 20 == 1]
        assert len({copy["noise"].sum().item() for copy in copies}) == len(copies)
        assert {copy["labels"].item() for copy in copies} == {1}
        assert_same(copies[0], items[next(position for position in positions if position % 20 == 1)])
        # not all in one part of the epoch
        assert 0 < sum(index in (1, 2, 3) for index in images[:10]) < 10
    assert left_out[0] != left_out[1]
    assert sorted(EpochSampler(items, labeled_share=0.15)) == list(range(20))  # so many have one


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


# --- mixing ---


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_timms_and_follows_from_the_images(mixup, cutmix):
    mix = partial(Mixup, mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=2)
    items = [train_dataset()[index] for index in range(8)]
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
    return dataset, {
        "labels": Labels.of(dataset),
        "transform": build_image_processor(reference_config()),
        "skip_bad_images": True,
    }


def test_the_next_image_takes_the_place_of_a_broken_one():
    dataset, arguments = with_broken([3, 4, 9])
    items = ImageDataset(dataset, **arguments, seed=0)
    assert [items[index]["skipped"].item() for index in range(10)] == [0, 0, 0, 2, 1, 0, 0, 0, 0, 1]
    assert torch.equal(items[3]["pixel_values"], items[5]["pixel_values"]) and items[3]["labels"] == 1
    assert torch.equal(items[9]["pixel_values"], items[0]["pixel_values"])
    # in evaluation it does not count twice
    assert [item["labels"].item() for item in ImageDataset(dataset, **arguments)] == [
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
        ImageDataset(dataset, **arguments, seed=0)[0]


def test_streams_leave_broken_images_out():
    dataset, arguments = with_broken([3, 4, 9])
    items = list(ImageStream(dataset.to_iterable_dataset(), **arguments))
    assert [item["skipped"].item() for item in items] == [0, 0, 0, 2, 0, 0, 0]


# --- streams ---


def stream(num_images=16, seed=3):
    items = train_dataset(20)
    dataset = items.dataset.to_iterable_dataset(num_shards=4)
    dataset = dataset.cast_column("image", datasets.Image())
    dealing = Dealing(num_images=num_images)
    return ImageStream(dataset, items.labels, items.transform, seed=seed, num_patches=16, dealing=dealing)


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


def known(rows: datasets.Dataset, num_shards: int) -> datasets.IterableDataset:
    """A stream that knows how many rows its shards have."""
    stream = rows.to_iterable_dataset(num_shards=num_shards)
    lengths = [len(part) for part in np.array_split(np.arange(len(rows)), num_shards)]
    info = datasets.SplitInfo("train", num_examples=len(rows), shard_lengths=lengths)
    stream.info.splits = datasets.SplitDict({"train": info})
    return stream


def part_of_stream(process_index=0, num_processes=1, num_images=16, num_shards=4, **arguments):
    items = train_dataset(20)
    dataset = known(items.dataset, num_shards).cast_column("image", datasets.Image())
    arguments |= {"process_index": process_index, "num_processes": num_processes, "num_images": num_images}
    dealing = Dealing(**arguments)
    return ImageStream(dataset, items.labels, items.transform, seed=3, num_patches=16, dealing=dealing)


def noises(batches) -> list[float]:
    """One number for each image that comes: the noise follows from it and the epoch."""
    return [noise.sum().item() for batch in batches for noise in batch["noise"]]


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 0), (2, 2), (4, 2), (1, 5), (5, 0), (2, 5)])
@pytest.mark.parametrize("num_shards", [1, 4, 7])
def test_processes_and_workers_share_a_stream(num_processes, num_workers, num_shards):
    for epoch in (0, 1):
        seen = []
        for process_index in range(num_processes):
            images = part_of_stream(process_index, num_processes, num_images=20, num_shards=num_shards)
            images.epoch = epoch
            loader = DataLoader(images, 1, num_workers=num_workers, collate_fn=collate)
            batches = [batch for _, batch in zip(range(20 // num_processes), loader)]
            assert not any(batch["repeated"].any() for batch in batches)
            seen += noises(batches)
        assert len(set(seen)) == len(seen) == 20


def test_who_runs_out_of_images_says_so():
    images = part_of_stream(0, 2, num_images=40)
    items = [item for _, item in zip(range(20), images)]
    assert [item["repeated"].item() for item in items] == [0] * 10 + [1] * 10
    assert len({item["noise"].sum().item() for item in items}) == 20  # with another crop and mask


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_streams_go_on_after_batches_that_were_had(num_workers, num_batches):
    whole, rest = part_of_stream(num_images=15, batch_size=3), part_of_stream(num_images=15, batch_size=3)
    for images in (whole, rest):
        images.epoch = 5
    rest.skip_batches(num_batches)
    decoded = []
    if not num_workers:
        transform = rest.transform
        rest.transform = lambda image: decoded.append(1) or transform(image)
    loaders = [DataLoader(images, 3, num_workers=num_workers, collate_fn=collate) for images in (whole, rest)]
    expected = [batch for _, batch in zip(range(5), loaders[0])][num_batches:]
    found = [batch for _, batch in zip(range(5 - num_batches), skip_first_batches(loaders[1], num_batches))]
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)
    assert num_workers or len(decoded) <= 3 * (5 - num_batches)
    rest.epoch = 6  # which begins at its beginning
    assert next(iter(rest))


def test_a_part_of_a_stream_and_of_its_labels():
    def labels(epoch, **arguments):
        images = part_of_stream(num_images=20, **arguments)
        images.transform = build_image_processor(reference_config())
        images.epoch = epoch
        items = list(itertools.takewhile(lambda item: not item["repeated"], images))
        return {item["pixel_values"].numpy().tobytes(): item["labels"].item() for item in items}

    everything = labels(0)
    assert len(everything) == 20 and -100 not in everything.values()
    for arguments in ({"part": 0.5}, {"label_fraction": 0.5}):
        first, second = labels(0, **arguments), labels(1, **arguments)
        assert first == second and all(label in (-100, everything[image]) for image, label in first.items())
        used = [image for image, label in first.items() if label != -100]
        assert 4 <= len(used) <= 16
    assert labels(0, label_fraction=0.5) != labels(0, label_fraction=0.5, label_seed=1)
    assert len(labels(0, part=0.5)) < 17


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 3), (2, 3), (4, 0)])
def test_an_epoch_sees_every_image_of_uneven_files(tmp_path, form, num_processes, num_workers):
    """Once from Parquet files, which know their rows; of tars 95% at least."""
    sizes, start = (50, 100, 75, 60, 90, 25), 0
    for number, size in enumerate((*sizes, 1)):
        files = []
        for place in range(start, start + size):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), [place % 256, place // 256, 0], dtype=np.uint8)).save(file, "png")
            files.append(file.getvalue())
        path, start = tmp_path / f"{'train' if number < len(sizes) else 'test'}-{number}.{form}", start + size
        if form == "parquet":
            rows = {"image": [{"bytes": file, "path": None} for file in files]}
            make_dataset(rows, {"image": datasets.Image(decode=False)}).to_parquet(path)
            continue
        with tarfile.open(path, "w") as tar:
            for place, file in enumerate(files):
                entry = tarfile.TarInfo(f"{place:04d}.png")
                entry.size = len(file)
                tar.addfile(entry, io.BytesIO(file))
    data = load_data(str(tmp_path), streaming=True)
    counts = collections.Counter()
    for index in range(num_processes):
        images = ImageStream(
            data.train,
            Labels(),
            lambda image: torch.tensor(image.getpixel((0, 0))),
            image_column=data.image_column,
            seed=0,
            dealing=Dealing(sum(sizes), batch_size=5, process_index=index, num_processes=num_processes),
        )
        loader = DataLoader(images, 5, num_workers=num_workers, collate_fn=collate)
        for _, batch in zip(range(len(images) // 5), loader):
            counts.update(map(tuple, batch["pixel_values"].tolist()))
    assert counts.total() == sum(sizes) == 400
    assert len(counts) == 400 if form == "parquet" else len(counts) >= 380


def test_streamed_evaluation_ends():
    config = reference_config()
    dataset = make_dataset({"image": digit_images(7)}, {"image": datasets.Image()})
    images = ImageStream(dataset.to_iterable_dataset(), Labels(), build_image_processor(config))
    assert len(list(images)) == 7
    with pytest.raises(TypeError, match="does not know its length"):
        len(images)
