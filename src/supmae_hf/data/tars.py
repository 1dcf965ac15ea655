# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Tars in the layout of WebDataset whose samples differ: parts that some lack, images of several types, fields of JSON parts."""

import json
import tarfile
from collections.abc import Iterable

import datasets
import fsspec
import pyarrow as pa
from PIL import Image

from .image_data import Split


_NUMBERS, _TEXTS, _JSON = ("cls", "cls2", "index", "inx", "id"), ("txt", "text", "transcript"), ("json", "jsn")
# Samples of each tar that are searched for parts.
_NUM_SAMPLES = 1_000


def find_tar_features(files: Iterable[str]) -> datasets.Features | None:
    """
    The columns of tars: the parts of any of the first 1,000 samples of each. `None` if there is a part of another kind than images,
    text, whole numbers and JSON, whose type `datasets` finds out.

    Args:
        files: Paths or addresses.

    Raises:
        ValueError: if JSON parts cannot be read, or differ in the types of their fields.
    """
    features, objects = {}, {}
    is_image = Image.registered_extensions()
    for file in files:
        keys = set()
        with fsspec.open(file) as opened, tarfile.open(fileobj=opened, mode="r|*") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, part = name.partition(".")
                if not (member.isfile() and key and part):
                    continue
                keys.add((folder, key))
                if len(keys) > _NUM_SAMPLES:
                    break
                ending = part.rpartition(".")[2].lower()
                if ending in _JSON:
                    objects.setdefault(part, []).append(_read_json(tar.extractfile(member).read(), member.name, file))
                elif f".{ending}" in is_image:
                    features[part] = datasets.Image()
                elif ending in _NUMBERS or ending in _TEXTS:
                    features[part] = datasets.Value("int64" if ending in _NUMBERS else "string")
                else:
                    return None
    for part, values in objects.items():
        try:
            fields = pa.array(values).type  # a struct of the fields of all of them
            features[part] = datasets.Features.from_arrow_schema(pa.schema(list(fields)))
        except pa.ArrowInvalid as error:
            raise ValueError(f"The '.{part}' parts of tars have fields of several types: {error}.") from error
    return datasets.Features({**features, "__key__": datasets.Value("string"), "__url__": datasets.Value("string")})


def _read_json(content: bytes, name: str, file: str) -> dict:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name} in {file} is no JSON ({error}): correct it.") from error
    if not isinstance(value, dict):
        raise ValueError(f'{name} in {file} holds {value!r}, but JSON parts hold fields: write {{"label": ...}}.')
    return value


def with_fields(split: Split) -> Split:
    """The fields of JSON parts as columns, and images of several types (`jpg`, `png`) as the column `image`."""
    parts = sorted(name for name, feature in split.features.items() if isinstance(feature, dict))
    images = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
    types = [name for name in images if "." not in name]
    types = types if len(types) > 1 else []
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
            row["image"] = next((record[name] for name in types if record[name] is not None), None)
        return row

    split = split.map(unpack, remove_columns=[*parts, *types], features=datasets.Features(features))
    for name in features:
        if isinstance(features[name], datasets.Image):
            split = split.cast_column(name, datasets.Image())
    return split
