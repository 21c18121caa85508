"""callbacks.py: which epoch is kept, what a point of the learning curve stands for, and when the clock runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_study.training import callbacks
from lora_study.training.callbacks import BestEpoch, Curves


def a_trainer(**values) -> SimpleNamespace:
    """What the callbacks ask of a Trainer."""
    one_device = SimpleNamespace(reduce=lambda value, reduce_op: value)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}])
    found = {"num_training_batches": 61, "current_epoch": 0, "global_step": 0, "callback_metrics": {}}
    return SimpleNamespace(strategy=one_device, optimizers=[optimizer], **found | values)


def train(curves: Curves, trainer: SimpleNamespace, losses: list[float]) -> None:
    curves.on_train_epoch_start(trainer, None)
    for index, loss in enumerate(losses):
        curves.on_train_batch_start(trainer, None, None, index)
        trainer.global_step += 1
        curves.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, index)


def test_a_point_of_the_curve_is_the_mean_of_its_interval_at_the_intervals_end():
    curves = Curves()
    train(curves, a_trainer(current_epoch=2, global_step=122), [float(i**2) for i in range(61)])
    pairs = [(122 + 2 * k, ((2 * k - 2) ** 2 + (2 * k - 1) ** 2) / 2) for k in range(1, 31)]
    assert [(row["step"], row["train_loss"]) for row in curves.rows] == [*pairs, (183, 60.0**2)]
    assert {(row["epoch"], row["learning_rate"]) for row in curves.rows} == {(3, 0.25)}


def test_a_loss_that_is_not_finite_ends_training_and_its_own_step_is_named():
    losses = [1.0] * 10 + [float("nan")] + [1.0] * 50
    with pytest.raises(FloatingPointError, match=r"not finite at step 72; lower train\.learning_rate"):
        train(Curves(), a_trainer(global_step=61), losses)


def test_the_clocks_stand_still_while_an_epoch_is_validated(monkeypatch):
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 2 * now)
    monkeypatch.setattr(callbacks, "time", clock)
    curves, trainer = Curves(), a_trainer(callback_metrics={"val/loss": 0.5, "val/accuracy": 0.75})
    for start, trained, validated in ((1, 8, 11), (20, 25, 40)):
        now = start
        curves.on_train_epoch_start(trainer, None)
        now = trained
        curves.on_validation_start(trainer, None)
        now = validated
        curves.on_validation_end(trainer, None)
    assert (curves.train_seconds, curves.cpu_seconds) == (7 + 5, 14 + 10)
    assert [row["seconds"] for row in curves.rows] == [7, 12]
    assert (curves.rows[-1]["val_loss"], curves.rows[-1]["val_accuracy"]) == (0.5, 0.75)


def test_the_first_of_epochs_that_tie_is_kept_whatever_their_loss():
    best, module = BestEpoch(), nn.Linear(2, 1)
    for epoch, (accuracy, loss) in enumerate([(0.5, 0.1), (0.75, 0.6), (0.75, 0.2), (0.625, 0.05)]):
        nn.init.constant_(module.weight, epoch)
        best.on_validation_end(
            a_trainer(current_epoch=epoch, callback_metrics={"val/accuracy": accuracy, "val/loss": loss}), module
        )
    assert (best.epoch, best.scores) == (2, {"accuracy": 0.75, "loss": 0.6})
    best.restore(module)
    assert module.weight.tolist() == [[1.0, 1.0]]
