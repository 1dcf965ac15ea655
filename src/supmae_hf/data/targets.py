# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Targets of the model beside labels: captions and columns of numbers."""

from collections.abc import Mapping

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..supervision_supmae import UNLABELED
from .image_data import Split


_CHUNK = 1000  # captions at a time
RAW = "raw"  # the field of a caption's text, as COCO's captions on the Hub have it


class Column:
    """
    A column of numbers as targets, such as those of a kind of supervision of one's own.

    Args:
        argument: The kind's `argument`, and the name of the column.
        missing: Value of the target if the record has none.
    """

    def __init__(self, argument: str, missing: float = UNLABELED):
        self.argument, self.missing = argument, missing

    def encode(self, record: Mapping) -> torch.Tensor:
        value = record.get(self.argument)
        return torch.as_tensor(self.missing if value is None else value)


class Captions:
    """
    Captions as the ids of their distinct tokens, special and unknown ones left out: see [`SupMAECaptionHead`].

    Args:
        column: Column of texts (or of fields with one, `raw`), or of lists of them, whose tokens are joined.
        tokenizer: Any of Transformers.
        length: Length of the targets, which are filled up with -100.
    """

    argument = "caption_ids"

    def __init__(self, column: str, tokenizer: PreTrainedTokenizerBase, length: int = 0):
        self.column, self.tokenizer, self.length = column, tokenizer, length
        self._special = set(tokenizer.all_special_ids)
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())  # some tokenizers leave ids out

    def tokens(self, text: str) -> list[int]:
        """Its distinct tokens, in order."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return sorted(set(ids) - self._special)

    def encode(self, record: Mapping) -> torch.Tensor:
        tokens = self.tokens(text_of(record.get(self.column)))
        if len(tokens) > self.length:
            raise ValueError(
                f"A caption of {len(tokens)} tokens is longer than the longest for training, {self.length}."
            )
        return torch.tensor(tokens + [UNLABELED] * (self.length - len(tokens)), dtype=torch.long)

    def count(self, split: Split) -> tuple[torch.Tensor, int]:
        """Count the captions that each token occurs in, and the captions with a token; sets `length` to that of the longest."""
        counts, num_captions = np.zeros(self.vocab_size, dtype=np.int64), 0
        for text in texts_of(split, self.column):
            tokens = self.tokens(text)
            counts[tokens] += 1
            num_captions += bool(tokens)
            self.length = max(self.length, len(tokens))
        return torch.from_numpy(counts), num_captions


def text_of(value: str | list | Mapping | None) -> str:
    """The caption in a record: one text, or several in one."""
    if isinstance(value, Mapping):
        value = value.get(RAW)
    return " ".join(map(text_of, value)) if isinstance(value, (list, tuple)) else value or ""


def texts_of(split: Split, column: str):
    """The captions of a data set."""
    for rows in split.select_columns(column).iter(batch_size=_CHUNK):
        yield from map(text_of, rows[column])


def train_word_tokenizer(texts, vocab_size: int = 30_000) -> PreTrainedTokenizerFast:
    """
    A tokenizer of the most frequent words in texts, in lower case and without punctuation. Chinese characters are words of their
    own.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    characters = normalizers.BertNormalizer(handle_chinese_chars=True, strip_accents=False, lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), characters])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
