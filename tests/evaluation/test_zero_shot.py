"""Classes recognised by the words of their names."""

import json
import math

import datasets
import pytest
import torch
from conftest import ROOT, reference_config, run_example
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from supmae_hf import SupMAEForPreTraining
from supmae_hf.data.targets import Captions, train_word_tokenizer
from supmae_hf.evaluation.zero_shot import class_tokens, load_captioner, zero_shot_function
from supmae_hf.preparation import build_image_processor


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def model() -> SupMAEForPreTraining:
    tokenizer = train_word_tokenizer(["a red dog", "a cat", "a photo"])
    config = reference_config(supervision="captions", caption_vocab_size=len(tokenizer))
    model = SupMAEForPreTraining(config).eval()
    model.tokenizer = tokenizer
    counts = {"[UNK]": 0, "a": 3, "red": 1, "dog": 1, "cat": 1, "photo": 1}
    frequencies = [counts[word] for word in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    model.supervision["captions"].set_frequencies(torch.tensor(frequencies), 3)
    return model


def test_scores_by_hand(model, digits, tmp_path):
    weights = class_tokens(model, ["Red_dog", "cat"], ["{}", "a photo: {}"])
    id_of = model.tokenizer.convert_tokens_to_ids
    one, common = math.log(3 / 2) + 1e-3, 1e-3
    expected = torch.zeros(2, 6)
    expected[0, [id_of("red"), id_of("dog")]] = (1 / 2 + one / (3 * one + common)) / 2
    expected[0, [id_of("photo"), id_of("a")]] = torch.tensor([one, common]) / (3 * one + common) / 2
    expected[1, id_of("cat")] = (1 + one / (2 * one + common)) / 2
    expected[1, [id_of("photo"), id_of("a")]] = torch.tensor([one, common]) / (2 * one + common) / 2
    torch.testing.assert_close(weights, expected)
    with torch.no_grad():
        scores = zero_shot_function(model, weights)(digits)
        logits = model(digits, mask_ratio=0.0).supervision_logits["captions"]
    torch.testing.assert_close(scores, logits.log_softmax(1) @ expected.T)

    model.save_pretrained(tmp_path)
    words = load_captioner(str(tmp_path)).tag(digits, num_words=2)
    best = logits.topk(2).indices.tolist()
    assert words == [model.tokenizer.convert_ids_to_tokens(row) for row in best]


def test_byte_level_tokenizers_know_words_behind_a_space():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(["a dog", "my dog", "a cat"] * 9, trainers.BpeTrainer(initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    captions = Captions("text", tokenizer)
    config = reference_config(supervision="captions", caption_vocab_size=captions.vocab_size)
    model = SupMAEForPreTraining(config)
    model.tokenizer = tokenizer
    rows = datasets.Dataset.from_dict({"text": ["a dog", "my dog", "a cat"]})
    model.supervision["captions"].set_frequencies(*captions.count(rows))
    weights = class_tokens(model, ["Dog", "cat"])
    dog, cat = (tokenizer.convert_tokens_to_ids(word) for word in ("Ġdog", "Ġcat"))
    assert weights[0].nonzero().flatten().tolist() == [dog] and weights[1].nonzero().flatten().tolist() == [cat]
    with pytest.raises(ValueError, match="knows no word of the class 'xyz'"):
        class_tokens(model, ["xyz"])


def test_what_has_no_words_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="knows no word of the class 'unicorn'"):
        class_tokens(model, ["dog", "unicorn"])
    with pytest.raises(ValueError, match="A prompt has a place for the name"):
        class_tokens(model, ["dog"], ["a photo"])
    SupMAEForPreTraining(reference_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has not learnt from captions"):
        load_captioner(str(tmp_path))


@pytest.mark.slow
def test_digits_are_learnt_from_captions(tmp_path):
    """No label is seen in training."""
    recipe = ROOT / "examples" / "configs" / "pretrain_digits.yaml"
    flags = ["--caption_column_name", "caption", "--classification_branch", "False", "--output_dir", "out"]
    run_example("run_pretrain.py", recipe, *flags, cwd=tmp_path)
    more = ["--models", "out", "--class_names", *NAMES, "--output_dir", "results"]
    printed = run_example("run_zero_shot.py", *more, cwd=tmp_path)
    (row,) = json.loads((tmp_path / "results" / "results.json").read_text())
    assert row["images"] == 360 and row["top1"] > 60, printed


def test_a_small_model_is_evaluated(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    build_image_processor(model.config).save_pretrained(tmp_path / "model")
    names = ["cat", "dog", "red cat", "red dog", "photo", "a cat", "a dog", "red", "cat dog", "cat photo"]
    flags = ["--models", "model", "--max_samples", 30, "--class_names", *names]
    run_example("run_zero_shot.py", *flags, "--output_dir", "results", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "results" / "results.json").read_text())
    assert row["images"] == 30 and 0 <= row["top1"] <= row["top5"] <= 100
    error = run_example("run_zero_shot.py", "--models", "model", "--class_names", "cat", cwd=tmp_path, fails=True)
    assert "`--class_names` names 1 classes, but the data set has 10" in error
