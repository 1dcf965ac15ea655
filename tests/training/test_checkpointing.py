"""Runs that save what is whole, and stop in order."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import digit_pixel_values, reference_config
from sklearn.datasets import load_digits
from transformers import TrainerCallback

from supmae_hf import SupMAEForPreTraining
from supmae_hf.records import find_checkpoint, list_checkpoints
from supmae_hf.training.arguments import PreTrainingArguments
from supmae_hf.training.trainer import PreTrainer


def arguments(tmp_path, **fields) -> PreTrainingArguments:
    return PreTrainingArguments(
        **{
            "output_dir": str(tmp_path / "run"),
            "num_train_epochs": 2,
            "warmup_epochs": 1,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
    )


def names(args) -> list[str]:
    return [path.name for path in list_checkpoints(args.output_dir)]


# --- stopping ---


class Items(torch.utils.data.Dataset):
    """Digits, of which reading one calls `event`."""

    def __init__(self, at=None, event=None):
        self.pixel_values = digit_pixel_values(range(24))
        self.at, self.event, self.count = at, event, 0

    def __len__(self):
        return 24

    def __getitem__(self, index):
        self.count += 1
        pixel_values = self.pixel_values[index]
        if self.count == self.at:
            pixel_values = self.event(pixel_values)
        return {"pixel_values": pixel_values, "labels": load_digits().target[index]}


def trainer(tmp_path, items, **fields) -> PreTrainer:
    args = arguments(tmp_path, **fields)
    torch.manual_seed(0)
    return PreTrainer(model=SupMAEForPreTraining(reference_config()), args=args, train_dataset=items)


def test_losses_that_are_not_finite_end_the_run(tmp_path):
    # the fourth batch is read while the third step runs
    broken = Items(at=30, event=lambda pixel_values: pixel_values * torch.nan)
    run = trainer(tmp_path, broken)
    with pytest.raises(FloatingPointError) as error:
        run.train()
    message = str(error.value)
    assert message.startswith("Step 4: the loss is not finite (")
    assert "reconstruction_loss nan" in message and "classification_loss nan" in message
    assert "checkpoint-3" in message and "--base_learning_rate" in message
    assert names(run.args) == ["checkpoint-2", "checkpoint-3"]


class Break(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:  # counted at the end of the step
            model.decoder.decoder_norm.weight.data[0] = torch.inf


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = trainer(tmp_path, Items(), save_steps=3)
    run.add_callback(Break())
    with pytest.raises(FloatingPointError, match=r"Step 3: the weight decoder\.decoder_norm\.weight is not finite"):
        run.train()
    assert names(run.args) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    def terminate(pixel_values):
        os.kill(os.getpid(), number)
        return pixel_values

    handler = signal.getsignal(number)
    run = trainer(tmp_path, Items(at=30, event=terminate), save_steps=100)
    run.train()
    assert run.was_stopped and 3 <= run.state.global_step < 6
    assert names(run.args) == [f"checkpoint-{run.state.global_step}"]
    assert find_checkpoint(run.args.output_dir) is not None
    assert signal.getsignal(number) is handler and run.monitor.stop.received == number


def test_a_second_interrupt_stops_at_once(tmp_path):
    def interrupt(pixel_values):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return pixel_values

    run = trainer(tmp_path, Items(at=10, event=interrupt))
    with pytest.raises(KeyboardInterrupt):
        run.train()


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:  # a file is where the checkpoint's folder would be
                (tmp_path / "run" / "checkpoint-2").write_text("in the way")

    run = trainer(tmp_path, Items())
    run.add_callback(Fill())
    with pytest.raises(
        OSError, match="step 2 cannot be written to .*run: .*The last one kept is checkpoint-1. Make room"
    ):
        run.train()
    assert find_checkpoint(run.args.output_dir) == tmp_path / "run" / "checkpoint-1"


def test_the_newest_checkpoints_and_the_best_one_stay(tmp_path):
    run = trainer(tmp_path, Items())
    run.train()
    assert names(run.args) == ["checkpoint-5", "checkpoint-6"]
    items = Items()
    args = arguments(tmp_path, output_dir=str(tmp_path / "best"), eval_strategy="steps", eval_steps=1)
    args.metric_for_best_model, args.greater_is_better = "reconstruction_loss", True  # the first, then
    args.load_best_model_at_end = True
    torch.manual_seed(0)
    model = SupMAEForPreTraining(reference_config())
    run = PreTrainer(model=model, args=args, train_dataset=items, eval_dataset=items)
    run.train()
    best = Path(run.state.best_model_checkpoint).name
    assert best in names(args) and len(names(args)) == 2
