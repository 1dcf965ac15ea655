"""Pixels as cameras and instruments write them reach the model with their precision."""

import io
import struct
import tracemalloc
import zlib

import datasets
import numpy as np
import pytest
import tifffile
import torch
from conftest import reference_config
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from supmae_hf import SupMAEForImageClassification, SupMAEImageProcessor
from supmae_hf.data.dataset import UNREADABLE, ImageDataset
from supmae_hf.data.labels import Labels
from supmae_hf.data.transforms import TrainTransform, build_finetune_transform
from supmae_hf.image_processing_supmae import read_image, to_pixels
from supmae_hf.preparation import build_image_processor, to_pil


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def encode(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    if form == "npy":
        np.save(file, image)
    elif form == "tiff":
        tifffile.imwrite(file, image, **options)
    else:
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["png", "TIFF", "tiff", "npy"])
def test_16_bit_grey(form):
    image = read_image(encode((RAMP * 65535).astype(np.uint16), form))
    pixels = to_pixels(image, num_channels=1)
    assert pixels.dtype == torch.float32 and pixels.shape == (1, 64, 64)
    np.testing.assert_allclose(pixels[0], (RAMP * 65535).astype(np.uint16) / 65535, atol=1e-7)
    assert torch.equal(to_pixels(image, num_channels=3), pixels.expand(3, -1, -1))


def test_16_bit_colours_keep_their_bits():
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, 3)).astype(np.uint16)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 20, 16, 2, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(read_image(file), pixels)
    with pytest.raises(OSError, match="."):
        read_image(file[:300])


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (np.uint8([[0, 255]]), {}, [0, 255]),
        (np.array([[False, True]]), {}, [0, 255]),
        (np.uint16([[0, 65535]]), {}, [0, 1]),
        (np.int16([[0, 32767]]), {}, [0, 1]),
        (np.float32([[0.25, 1]]), {}, [0.25, 1]),
        (np.float64([[0.25, 1]]), {}, [0.25, 1]),
        (np.float16([[0.25, 1]]), {}, [0.25, 1]),
        (np.uint16([[0, 4095]]), {"pixel_range": (0, 4095)}, [0, 1]),
        (np.int16([[-1000, 200]]), {"pixel_range": (-1000, 1000)}, [0, 0.6]),  # Hounsfield units
        (np.int16([[-3000, 3000]]), {"pixel_range": (-1000, 1000)}, [0, 1]),  # a window
        (np.int32([[0, 65535]]), {"pixel_range": (0, 65535)}, [0, 1]),
        (np.uint8([[0, 51]]), {"pixel_range": (0, 102)}, [0, 0.5]),
    ],
)
def test_ranges_follow_from_types(pixels, options, expected):
    found = to_pixels(pixels[..., None], num_channels=1, **options)
    assert found.dtype == (torch.uint8 if max(expected) > 1 else torch.float32)
    np.testing.assert_allclose(found.flatten(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.float32([[0, 1.5]]), "float32 from 0 to 1.5: say with `--pixel_range LOW HIGH`"),
        (np.float32([[-0.1, 1]]), "float32 from -0.1 to 1"),
        (np.float32([[np.nan, 1]]), "pixels that are not finite"),
        (np.int16([[-1, 1]]), "int16 from -1 to 1"),
        (np.int32([[0, 65535]]), "int32 from 0 to 65535"),
        (np.complex64([[0, 1]]), "of the type complex64"),
    ],
)
def test_unknown_ranges_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(pixels[..., None], num_channels=1)


@pytest.mark.parametrize("bands", [2, 4, 5, 13])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"bigtiff": True}])
def test_bands(bands, planes, options):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, bands)).astype(np.uint16)
    stored = pixels if planes == "contig" else np.moveaxis(pixels, -1, 0)
    file = encode(np.ascontiguousarray(stored), "tiff", photometric="minisblack", planarconfig=planes, **options)
    image = read_image(file)
    assert np.array_equal(image, pixels)
    assert to_pixels(image, bands).shape == (bands, 20, 24)
    chosen = to_pixels(image, 2, channels=[1, 0])
    np.testing.assert_allclose(chosen[0], pixels[..., 1] / 65535, atol=1e-6)
    with pytest.raises(ValueError, match=f"has {bands} channels, and `channels` names"):
        to_pixels(image, 1, channels=[bands])
    if bands != 3:
        with pytest.raises(ValueError, match=f"has {bands} channels, the model 3: set `num_channels`"):
            to_pixels(image, 3)


def test_usual_tiffs_are_images_of_pillow(photographs):
    for photograph, options in (
        (photographs[0], {}),
        (photographs[0], {"compression": "lzw"}),
        (photographs[0][..., 0], {}),
    ):
        image = read_image(encode(photograph, "tiff", **options))
        assert isinstance(image, Image.Image) and np.array_equal(np.asarray(image), photograph)
    cmyk = Image.fromarray(photographs[0]).convert("CMYK")
    assert read_image(encode(cmyk, "TIFF")).mode == "CMYK"
    palette = Image.fromarray(photographs[0]).convert("P")
    assert to_pixels(read_image(encode(palette, "TIFF"))).shape == (3, 427, 640)


def test_arrays_of_other_shapes():
    pixels = np.random.default_rng(0).random((5, 20, 24)).astype(np.float32)
    assert np.array_equal(read_image(encode(pixels, "npy")), np.moveaxis(pixels, 0, -1))
    assert read_image(encode(pixels[0], "npy")).shape == (20, 24, 1)
    for shape in ((16, 16, 40), (40, 16, 16)):  # more bands than rows
        assert read_image(encode(np.zeros(shape, np.uint16), "npy")).shape == (16, 16, 40)
    with pytest.raises(ValueError, match="which is no image"):
        read_image(encode(pixels[None], "npy"))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_image(encode(np.array([{}]), "npy"))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_8_bit_images_become_the_models(photographs, mode, num_channels):
    image = Image.fromarray(photographs[0]).convert(mode)
    pixels = to_pixels(image, num_channels)
    assert pixels.dtype == torch.uint8 and pixels.shape == (num_channels, 427, 640)
    # a pipeline, which makes every image RGB first, sees the same
    if num_channels < 4:
        assert torch.equal(pixels, to_pixels(image.convert("RGB"), num_channels))


def test_deep_images_for_8_bit_models(photographs):
    image = to_pil(photographs[0].astype(np.uint16) * 257)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), photographs[0])


# --- the processor ---


def processor_for(num_channels, **fields):
    return build_image_processor(reference_config(num_channels=num_channels), **fields)


def test_8_bit_rgb_needs_no_code_of_ours():
    assert type(processor_for(3)) is ViTImageProcessor
    for other in (processor_for(1), processor_for(3, pixel_type="uint16"), processor_for(3, channels=[2, 1, 0])):
        assert isinstance(other, SupMAEImageProcessor)


def test_8_bit_images_are_prepared_as_by_transformers(photographs):
    fields = {"image_mean": [0.4], "image_std": [0.2]}
    ours = processor_for(1, **fields)
    stock = ViTImageProcessor(**{**ours.to_dict(), "auto_map": None}, do_convert_rgb=False)
    grey = Image.fromarray(photographs[0]).convert("L")
    for image in (grey, np.asarray(grey)[..., None]):
        expected = stock(np.asarray(grey)[..., None], return_tensors="pt")["pixel_values"]
        assert torch.equal(ours(image, return_tensors="pt")["pixel_values"], expected)


def test_16_bits_are_not_rounded_to_8():
    ours = processor_for(1, image_mean=[0.0], image_std=[1.0], crop_ratio=1.0)
    image = (RAMP * 65535).astype(np.uint16)
    pixel_values = ours(image, return_tensors="pt")["pixel_values"]
    assert len(pixel_values.unique()) > 600 and 0 <= pixel_values.min() < pixel_values.max() <= 1
    again = ours([image, (RAMP * 255).astype(np.uint8)], return_tensors="pt")["pixel_values"]  # mixed
    assert torch.equal(again[0], pixel_values[0]) and (again[1] - pixel_values[0]).abs().max() < 0.01


@pytest.mark.parametrize("is_saved", [False, True])
def test_processors_are_saved_with_what_they_need(tmp_path, is_saved):
    ours = processor_for(
        2, channels=[4, 0], pixel_range=[10, 300], pixel_type="uint16", image_mean=[0.1, 0.2], image_std=[1, 2]
    )
    image = np.random.default_rng(0).integers(0, 400, (40, 50, 6)).astype(np.uint16)
    if is_saved:
        ours.save_pretrained(tmp_path)
        ours, before = AutoImageProcessor.from_pretrained(tmp_path), ours
        assert type(ours) is SupMAEImageProcessor and ours.to_dict() == before.to_dict()
        assert (tmp_path / "image_processing_supmae.py").is_file()
    pixel_values = ours(image, return_tensors="pt")["pixel_values"]
    first_last = ours(torch.from_numpy(np.moveaxis(image, -1, 0).astype(np.int32)), return_tensors="pt")[
        "pixel_values"
    ]
    assert pixel_values.shape == (1, 2, 32, 32) and torch.equal(pixel_values, first_last)


def test_what_pipelines_lost_is_refused(tmp_path):
    """A pipeline makes every file an 8-bit RGB image: right for grey images, wrong for what has more to it."""
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "grey16.png")
    for fields in ({"num_channels": 1, "pixel_type": "uint16"}, {"num_channels": 5}):
        config = reference_config(num_channels=fields["num_channels"])
        SupMAEForImageClassification(config).save_pretrained(tmp_path / "model")
        processor_for(**fields).save_pretrained(tmp_path / "model")
        classify = pipeline("image-classification", model=str(tmp_path / "model"))
        with pytest.raises(ValueError, match="this one is 8-bit RGB, as pipelines convert files.*fetch_images"):
            classify(str(tmp_path / "grey16.png"))
    SupMAEForImageClassification(reference_config(num_channels=1)).save_pretrained(tmp_path / "model")
    processor_for(1, pixel_type="uint16").save_pretrained(tmp_path / "model")
    classify = pipeline("image-classification", model=str(tmp_path / "model"))
    image = classify.image_processor.fetch_images(str(tmp_path / "grey16.png"))
    assert image.dtype == np.uint16
    np.testing.assert_allclose(classify(image)[0]["score"], classify((RAMP * 65535).astype(np.uint16))[0]["score"])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [None, [0, 0, 0]])
def test_8_bit_files_for_deep_models(tmp_path, photographs, mode, channels):
    """Of a folder with images of both kinds."""
    image = Image.fromarray(photographs[0]).convert(mode)
    image.save(tmp_path / "image.png")
    processor = processor_for(3, pixel_type="uint16", channels=channels)
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "image.png")]})
    evaluated = ImageDataset(data, Labels(), processor)[0]["pixel_values"]
    fetched = processor.fetch_images(str(tmp_path / "image.png"))
    assert torch.equal(processor(fetched, return_tensors="pt")["pixel_values"][0], evaluated)


# --- training ---


@pytest.mark.parametrize(("num_channels", "dtype"), [(1, np.uint16), (3, np.uint16), (13, np.uint8), (2, np.float32)])
def test_training_crops_are_those_of_evaluation(num_channels, dtype):
    """An uncropped training image is the evaluation's."""
    pixels = np.random.default_rng(0).random((32, 32, num_channels))
    image = (pixels * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)
    processor = processor_for(num_channels, crop_ratio=1.0, pixel_type=np.dtype(dtype).name)
    whole = TrainTransform(processor, crop_scale=[1.0, 1.0], horizontal_flip=False)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(whole(image), expected, atol=1e-5, rtol=0)


def test_fine_tuning_augments_what_randaugment_cannot():
    processor = processor_for(5, pixel_type="uint16")
    transform = build_finetune_transform(processor, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=1.0)
    image = np.random.default_rng(0).integers(0, 65536, (40, 50, 5)).astype(np.uint16)
    torch.manual_seed(0)
    assert transform(image).shape == (5, 32, 32) and not torch.equal(transform(image), transform(image))


def write_deep_png(path, side: int):
    """A black 16-bit PNG of `side` x `side` pixels, in a few megabytes whatever its size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 2 * side)) for _ in range(100)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_files_that_would_take_all_memory_are_refused_by_their_header(tmp_path):
    write_deep_png(tmp_path / "large.png", 30_000)
    for name in ("sparse.png", "sparse.tif", "sparse.npy"):
        with open(tmp_path / name, "wb") as file:
            file.write({".tif": b"II*\0", ".npy": b"\x93NUMPY\1\0"}.get(name[-4:], b""))
            file.truncate(2**31)
    np.lib.format.open_memmap(tmp_path / "large.npy", mode="w+", dtype=np.uint16, shape=(30_000, 30_000))
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for _ in range(1100):
            writer.write(np.zeros((8, 8), np.uint8), metadata=None)
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        for _ in range(2):
            writer.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    for path in sorted(tmp_path.iterdir()):
        tracemalloc.start()
        with pytest.raises(UNREADABLE):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26, path
        tracemalloc.stop()
