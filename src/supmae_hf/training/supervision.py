# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""From the columns that a run names to the kinds of supervision of its model, and to their targets."""

import os
from dataclasses import dataclass, field
from itertools import islice

import datasets
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..configuration_supmae import SupMAEConfig
from ..data.annotations import (
    BACKGROUND,
    DenseLabels,
    check_num_classes,
    find_objects,
    with_masks,
    with_objects,
)
from ..data.labels import values_of
from ..data.statistics import look_at_annotations
from ..data.targets import RAW, Captions, texts_of, train_word_tokenizer
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEForPreTraining


_MASKS, _OBJECTS = "_mask", "_objects"  # the columns of masks from a folder, of objects from files


@dataclass
class Supervision:
    """
    The supervision of a run.

    Args:
        kinds: Names of the kinds.
        fields: Fields of the model's configuration.
        targets: Targets of the data sets.
        frequencies: See [`~SupMAECaptionHead.set_frequencies`].
    """

    kinds: list[str]
    fields: dict
    targets: list[Captions | DenseLabels] = field(default_factory=list)
    tokenizer: PreTrainedTokenizerBase | None = None
    frequencies: tuple[torch.Tensor, int] | None = None

    def prepare(self, model: SupMAEForPreTraining):
        """Give the model what it needs beside its configuration."""
        if self.tokenizer is not None:
            model.tokenizer = self.tokenizer
            model.supervision["captions"].set_frequencies(*self.frequencies)


def prepare_supervision(job) -> Supervision:
    """
    Read captions, masks and objects, and choose the kinds of supervision: those for which there is a column, unless
    `--model_config` names them. Adds to the data's notes what was found, and a column of masks from `--mask_dir` to its splits.

    Args:
        job ([`Job`]): The run, with its data.

    Raises:
        ValueError: if a column does not exist or holds something else, or a kind that is named has no column.
    """
    args, data, model_config = job.args, job.data, job.model_args.model_config
    flags = {name: getattr(args, name) for name in ("caption_column_name", "mask_column_name", "objects_column_name")}
    named = {name: column for name, column in flags.items() if column is not None}
    if (args.mask_dir or args.objects_file) and isinstance(data.train, datasets.IterableDataset):
        raise ValueError(
            "`--mask_dir` and `--objects_file` are for images that are not a stream: leave out `--streaming`, or name a column."
        )
    for name, column in named.items():
        if column not in data.train.features:
            raise ValueError(f"`--{name}` {column} is no column: the columns are {list(data.train.features)}.")

    kinds = ["labels"] if data.labels.columns else []
    kinds += ["captions"] if args.caption_column_name else []
    is_dense = args.mask_dir or args.mask_column_name or args.objects_column_name or args.objects_file
    kinds += ["dense"] if is_dense else []
    wanted = model_config.get("supervision", kinds or "labels")
    wanted = list(SupMAEConfig(supervision=wanted).supervision_weights)
    for kind, flag in (("captions", "caption_column_name"), ("dense", "mask_column_name")):
        if kind in wanted and kind not in kinds:
            raise ValueError(f"`supervision` has {kind}, but no column is named: see `--{flag}`.")
        if kind in kinds and kind not in wanted:
            raise ValueError(f"`supervision` in `--model_config` leaves out {kind}, for which a column is named.")
    supervision = Supervision(wanted, {"supervision": wanted[0] if len(wanted) == 1 else wanted})
    if "labels" in wanted:
        supervision.fields |= data.labels.config_fields()
    if "captions" in wanted:
        _add_captions(supervision, job)
    if "dense" in wanted:
        _add_dense(supervision, job)
    data.more_columns = [target.column for target in supervision.targets]
    return supervision


def _add_captions(supervision: Supervision, job):
    args, data, checkpoint = job.args, job.data, job.model_args.model_name_or_path
    column = args.caption_column_name
    value = data.train.features[column]
    text = getattr(value, "feature", value)
    text = text.get(RAW) if isinstance(text, dict) else text
    if getattr(text, "dtype", "") not in ("string", "large_string"):
        raise ValueError(f"`--caption_column_name` {column} of the type {value} holds no texts.")
    tokenizer, what = None, ""
    if args.tokenizer_name or (
        checkpoint and "captions" in load_pretrained(SupMAEConfig, checkpoint).supervision_weights
    ):
        name = args.tokenizer_name or checkpoint
        try:
            tokenizer, what = load_pretrained(AutoTokenizer, name), f"tokens of '{name}'"
        except (OSError, ValueError) as error:
            raise ValueError(f"There is no tokenizer '{name}': check `--tokenizer_name`. ({error})") from error
    if tokenizer is None:
        tokenizer, what = train_word_tokenizer(texts_of(data.train, column)), "words"
    captions = Captions(column, tokenizer)
    supervision.frequencies = captions.count(data.train)
    if data.validation is not None and column in data.validation.features:
        captions.count(data.validation)  # of which the longest counts
    known, number = supervision.frequencies
    if not number:
        raise ValueError(f"`--caption_column_name` {column} holds no caption.")
    supervision.tokenizer = tokenizer
    supervision.targets.append(captions)
    supervision.fields["caption_vocab_size"] = captions.vocab_size
    data.notes.append(
        f"{number} training images have a caption ('{column}'), of {int((known > 0).sum())} {what} in all, at most "
        f"{captions.length} each"
    )
    some = [text for text in islice(texts_of(data.train, column), 1000) if text]
    if what == "words" and sum(map(len, some)) > 15 * sum(len(captions.tokens(text)) for text in some):
        data.notes.append(
            "captions have few words for their length: a language without spaces needs a tokenizer (`--tokenizer_name`)"
        )


def _add_dense(supervision: Supervision, job):
    args, data = job.args, job.data
    flags = ("mask_dir", "mask_column_name", "objects_column_name", "objects_file")
    given = [name for name in flags if getattr(args, name) is not None]
    if len(given) > 1:
        raise ValueError(f"`--{given[0]}` and `--{given[1]}` both name dense labels: give one of them.")
    column, has_objects = args.mask_column_name or args.objects_column_name, given[0].startswith("objects")
    if args.mask_column_name and getattr(data.train.features[column], "dtype", "") in ("string", "large_string"):
        raise ValueError(
            f"`--mask_column_name` {column} is a column of text: masks are images, or arrays of two dimensions."
        )
    if args.mask_dir:
        column, more = _MASKS, (data.image_column, args.mask_dir, _MASKS)
        data.train, data.validation = with_masks([data.train, data.validation], *more)
    if args.objects_file:
        column, more = _OBJECTS, (data.image_column, args.objects_file, _OBJECTS)
        data.train, data.validation = with_objects([data.train, data.validation], *more)
    is_stream = isinstance(data.train, datasets.IterableDataset)
    number = None if is_stream else len(data.train) - values_of(data.train, column).null_count
    if number == 0:
        hint = f": the names of masks are those of the images, such as {_example(data)}" if args.mask_dir else ""
        raise ValueError(
            f"No training image has dense labels in {args.mask_dir or args.objects_file or column}{hint}."
        )
    categories = None
    if has_objects:
        found = find_objects(data.train, column)
        names = [BACKGROUND, *[name for name in dict.fromkeys(found.values()) if name != BACKGROUND]]
        categories = {value: names.index(name) for value, name in found.items()}
        if len(names) == 1:
            raise ValueError(
                f"The objects in {column} are all 'background', which is what no box covers: name other categories."
            )
        has_column = data.validation is not None and column in data.validation.features
        held_out = find_objects(data.validation, column) if has_column else {}
        new = [name for value, name in held_out.items() if value not in categories]
        if new:
            raise ValueError(
                f"Held-out images have the category '{new[0]}', which no training image has: remove its boxes, or train on some."
            )
    else:
        names = job.model_args.model_config.get("dense_classes")
        if not names:
            raise ValueError(
                'Masks hold numbers of classes, and it must be said which: `--model_config \'{"dense_classes": ["sky", '
                '"road"]}\'`, or how many there are.'
            )
        check_num_classes(names if isinstance(names, int) else len(names), "`dense_classes` in `--model_config`")
        names = list(map(str, range(names))) if isinstance(names, int) else list(names)
    dense = DenseLabels(
        names,
        column,
        categories,
        args.reduce_labels,
        box_format=args.box_format,
        colors=args.mask_colors,
        as_stored=args.annotations_as_stored,
    )
    supervision.fields["dense_classes"] = names
    supervision.targets.append(dense)
    what = "boxes" if has_objects else "a mask"
    data.notes.append(f"{'' if is_stream else f'{number} '}training images have {what}, of {len(names)} classes")
    data.notes += look_at_annotations(data, dense)


def _example(data) -> str:
    """The name of a training image."""
    path = next(iter(values_of(data.train, data.image_column).to_pylist()))["path"]
    return os.path.basename(path or "?")
