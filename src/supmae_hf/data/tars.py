# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Tars in the layout of WebDataset whose samples differ: parts that some lack, images of several types, fields of JSON parts."""

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable

import datasets
import fsspec
import pyarrow as pa
from PIL import Image

from .image_data import Split


_NUMBERS, _TEXTS, _JSON = ("cls", "cls2", "index", "inx", "id"), ("txt", "text", "transcript"), ("json", "jsn")
# Samples of each tar that are searched for parts.
_NUM_SAMPLES = 1_000


def find_parts(files: Iterable[str]) -> tuple[datasets.Features | None, list[str]]:
    """
    Look at the parts of the first 1,000 samples of tars.

    Args:
        files: Paths or addresses.

    Returns:
        The columns, one for each part that any sample has; `None` if there is a part of another kind than images, text, whole numbers
        and JSON, whose type `datasets` finds out. And the types of images (`jpg`, `png`) if each sample has one of several.

    Raises:
        ValueError: if JSON parts cannot be read, or differ in the types of their fields.
    """
    features, objects, all_types, has_several = {}, {}, set(), False
    is_image = Image.registered_extensions()
    for file in files:
        samples = defaultdict(set)  # types of images
        with fsspec.open(file) as opened, tarfile.open(fileobj=opened, mode="r|*") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, part = name.partition(".")
                if not (member.isfile() and key and part):
                    continue
                types = samples[folder, key]
                if len(samples) > _NUM_SAMPLES:
                    break
                ending = part.rpartition(".")[2].lower()
                if ending in _JSON:
                    objects.setdefault(part, []).append(_read_json(tar.extractfile(member).read(), member.name, file))
                elif f".{ending}" in is_image:
                    features[part] = datasets.Image()
                    types |= {part} if "." not in part else set()
                elif ending in _NUMBERS or ending in _TEXTS:
                    features[part] = datasets.Value("int64" if ending in _NUMBERS else "string")
                else:
                    return None, []
        all_types |= set().union(*samples.values())
        has_several = has_several or any(len(types) > 1 for types in samples.values())
    for part, values in objects.items():
        try:
            fields = pa.array(values).type  # a struct of the fields of all of them
            features[part] = datasets.Features.from_arrow_schema(pa.schema(list(fields)))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"The '.{part}' parts of tars have fields of several types: {error}.") from error
    features |= {"__key__": datasets.Value("string"), "__url__": datasets.Value("string")}
    return datasets.Features(features), [] if has_several or len(all_types) < 2 else sorted(all_types)


def _read_json(content: bytes, name: str, file: str) -> dict:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name} in {file} is no JSON ({error}): correct it.") from error
    if not isinstance(value, dict):
        raise ValueError(f'{name} in {file} holds {value!r}, but JSON parts hold fields: write {{"label": ...}}.')
    return value


def with_fields(split: Split, types: list[str]) -> Split:
    """The fields of JSON parts as columns, and images of several `types` as the column `image`; see [`find_parts`]."""
    parts = sorted(name for name, feature in split.features.items() if isinstance(feature, dict))
    images = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
    if not parts and not types:
        return split
    kept = {name: feature for name, feature in split.features.items() if name not in (*parts, *types)}
    features, fields = {name: datasets.Image(decode=False) if name in images else kept[name] for name in kept}, {}
    for part in parts:
        for field, feature in split.features[part].items():
            name = f"{part}.{field}" if field in features else field
            fields[name], features[name] = (part, field), feature
    if types:
        features["image"] = datasets.Image(decode=False)
    for name in images:
        split = split.cast_column(name, datasets.Image(decode=False))

    def unpack(record: dict) -> dict:
        row = {name: (record[part] or {}).get(field) for name, (part, field) in fields.items()}
        if types:
            several = [record[name] for name in types if record[name] is not None]
            if len(several) > 1:
                raise ValueError(
                    f"The sample {record['__key__']} has an image of each of the types {types}, others have one."
                )
            row["image"] = several[0] if several else None
        return row

    split = split.map(unpack, remove_columns=[*parts, *types], features=datasets.Features(features))
    for name in features:
        if isinstance(features[name], datasets.Image):
            split = split.cast_column(name, datasets.Image())
    return split
