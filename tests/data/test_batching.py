"""Batches hold every review once; the data module gives them to Lightning unchanged."""

import json
from typing import TypeVar

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig, SplitSizes
from lora_study.data.batching import BucketSampler, collate, evaluation_batches
from lora_study.data.datamodule import ReviewDataModule, load_splits
from lora_study.data.tokens import TokenisedReviews

T = TypeVar("T")

LENGTHS = st.lists(st.integers(3, 512), min_size=1, max_size=90).map(np.array)


def tokens_of(reviews):
    return TokenisedReviews(
        tokens=np.array([token for review in reviews for token in review], dtype=np.int32),
        offsets=np.cumsum([0, *map(len, reviews)]),
        truncated=np.zeros(len(reviews), dtype=bool),
        labels=np.arange(len(reviews)) % 2,
        ids=tuple(map(str, range(len(reviews)))),
    )


def flat(batches):
    return [row for batch in batches for row in batch]


@given(lengths=LENGTHS, batch_size=st.integers(1, 20), window=st.integers(1, 6), seed=st.integers(0, 99))
def test_an_epoch_holds_every_review_once_in_full_batches(lengths, batch_size, window, seed):
    sampler = BucketSampler(lengths, batch_size, window, seed)
    for _ in range(2):
        batches = list(sampler)
        assert sorted(flat(batches)) == list(range(len(lengths)))
        assert len(batches) == len(sampler)
        assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)


def test_epochs_differ_and_depend_on_seed_and_epoch_alone():
    lengths = np.arange(3, 103)
    runs = BucketSampler(lengths, 8, 4, seed=5)
    first, second = list(runs), list(runs)
    torch.rand(3)  # the global random state must not matter
    other = BucketSampler(lengths, 8, 4, seed=5)
    assert [list(other), list(other)] == [first, second]
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))
    assert list(BucketSampler(lengths, 8, 4, seed=6)) != first


def test_setting_the_epoch_agrees_with_advancing_and_counts_once():
    advancing, told = (BucketSampler(np.arange(3, 53), 8, 2, seed=0) for _ in range(2))
    for epoch in range(3):
        told.set_epoch(epoch)
        assert list(told) == list(advancing)
    told.set_epoch(1)
    next(iter(told))  # an epoch that was only begun does not count
    expected = BucketSampler(np.arange(3, 53), 8, 2, seed=0)
    expected.set_epoch(1)
    assert list(told) == list(expected)


def test_epoch_may_be_set_after_the_iterator_was_made():
    sampler, expected = (BucketSampler(np.arange(3, 53), 8, 2, seed=0) for _ in range(2))
    batches = iter(sampler)
    sampler.set_epoch(2)
    expected.set_epoch(2)
    assert list(batches) == list(expected)


def test_window_of_one_is_an_ordinary_shuffle():
    batches = list(BucketSampler(np.arange(3, 53), 8, 1, seed=3))
    assert flat(batches) == np.random.default_rng((3, 0)).permutation(50).tolist()
    assert len(batches[-1]) == 2


def test_windows_spare_padding_and_do_not_order_the_epoch_by_length():
    lengths = np.random.default_rng(0).integers(3, 512, size=4000)

    def padded(batches):
        return sum(len(batch) * lengths[batch].max() for batch in batches)

    shuffled, bucketed = (list(BucketSampler(lengths, 12, window, seed=1)) for window in (1, 50))
    assert padded(bucketed) < 1.05 * lengths.sum() < 1.5 * lengths.sum() < padded(shuffled)
    longest = [lengths[batch].max() for batch in bucketed]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.2


@given(lengths=LENGTHS, batch_size=st.integers(1, 20), window=st.sampled_from([1, 3]), world_size=st.integers(2, 4))
def test_devices_share_every_batch(lengths, batch_size, window, world_size):
    whole = list(BucketSampler(lengths, batch_size, window, 7))
    shares = [list(BucketSampler(lengths, batch_size, window, 7, rank, world_size)) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(parts)
        assert set(flat(parts)) == set(batch)
        assert len(flat(parts)) == max(len(batch), world_size)
        weights = [lengths[part].sum() for part in parts]
        assert max(weights) - min(weights) <= lengths[batch].max()  # tokens: a device hardly waits for another
    scored = [evaluation_batches(lengths, batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(flat(flat(scored))) == list(range(len(lengths)))


@given(lengths=LENGTHS, batch_size=st.integers(1, 20))
def test_evaluation_goes_from_long_to_short_and_drops_none(lengths, batch_size):
    batches = evaluation_batches(lengths, batch_size)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    assert (np.diff(lengths[flat(batches)]) <= 0).all()
    assert max(map(len, batches)) <= batch_size


@given(
    reviews=st.lists(st.lists(st.integers(0, 30_521), min_size=1, max_size=20), min_size=1, max_size=9),
    choose=st.randoms(use_true_random=False),
    pad_id=st.integers(0, 5),
)
def test_a_batch_is_padded_little_beyond_its_longest_review(reviews, choose, pad_id):
    rows = choose.sample(range(len(reviews)), choose.randint(1, len(reviews)))
    batch = collate(tokens_of(reviews), rows, pad_id)
    needed, most = max(len(reviews[row]) for row in rows), max(map(len, reviews))
    width = batch["input_ids"].shape[1]
    assert needed <= width <= min(needed + 7, most)
    assert width % 8 == 0 or width == most
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"].tolist() == [reviews[row] + [pad_id] * (width - len(reviews[row])) for row in rows]
    assert batch["attention_mask"].tolist() == [
        [1] * len(reviews[row]) + [0] * (width - len(reviews[row])) for row in rows
    ]
    assert batch["labels"].tolist() == [row % 2 for row in rows]
    assert batch["index"].tolist() == rows


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone):
    return PreTrainedTokenizerFast.from_pretrained(tiny_backbone)


def module_of(reviews_csv, tokenizer, cache, **changes):
    settings = {"sizes": SplitSizes(50, 20, 30), "batch_size": 8, "eval_batch_size": 9, "max_length": 24}
    config = DataConfig(source=str(reviews_csv), cache_dir=str(cache), **{**settings, **changes})
    data = ReviewDataModule(config, tokenizer, order_seed=4)
    data.setup()
    return data


@pytest.fixture
def data(reviews_csv, tokenizer, tmp_path):
    return module_of(reviews_csv, tokenizer, tmp_path)


def rows_of(batches):
    return [batch["index"].tolist() for batch in batches]


def test_a_loader_gives_the_first_reviews_of_a_part_if_it_is_told_how_many(data):
    assert sorted(flat(rows_of(data.eval_dataloader("train", 21)))) == list(range(21))
    assert (data.scored("train", 21), data.scored("train", 60), data.scored("train")) == (21, 50, 50)


def test_loaders_give_every_review_of_their_part_once(data):
    loaders = {
        "train": [data.train_dataloader(), data.eval_dataloader("train")],
        "val": [data.val_dataloader(), data.eval_dataloader("val")],
        "test": [data.test_dataloader()],
    }
    for part, size in {"train": 50, "val": 20, "test": 30}.items():
        for loader in loaders[part]:
            batches = list(loader)
            assert sorted(flat(rows_of(batches))) == list(range(size))
            assert len(batches) == len(loader)
            for batch in batches:
                assert batch["labels"].tolist() == data.parts[part].labels[batch["index"]].tolist()
                assert batch["input_ids"].shape == batch["attention_mask"].shape
                assert batch["attention_mask"].sum(1).tolist() == data.parts[part].lengths[batch["index"]].tolist()


def test_setup_loads_once(data):
    before = dict(data.parts)
    data.setup("fit")
    assert all(data.parts[part] is before[part] for part in before)


def test_description_is_plain_json_without_the_users_paths(reviews_csv, tokenizer, tmp_path, data):
    description = data.describe()
    text = json.dumps(description, allow_nan=False)
    assert json.loads(text) == description
    assert str(reviews_csv.parent) not in text
    assert description["source"] == "reviews.csv"
    assert description["sizes"] == {"train": 50, "val": 20, "test": 30}
    assert description["labels"]["train"] == {"0": 25, "1": 25}
    assert 3 <= description["mean_tokens"]["val"] <= 24
    assert 0 <= description["share_truncated"]["test"] <= 1
    assert description["overlap"]["across"]["test_in_train"] == 0


def test_a_folder_called_hub_is_not_the_hub(reviews_csv, tokenizer, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    pd.read_csv(reviews_csv).to_parquet(folder / "train.parquet")
    assert module_of(folder, tokenizer, tmp_path).describe()["source"] == "./hub"


def test_description_counts_labels_and_tokens_as_they_are(reviews_csv, tokenizer, tmp_path):
    reviews = pd.read_csv(reviews_csv)
    labels = reviews["label"] == 1
    uneven = pd.concat([reviews[labels].head(70), reviews[~labels].head(30)])
    uneven.to_csv(tmp_path / "uneven.csv", index=False)
    most = int(np.quantile([len(tokenizer(text)["input_ids"]) for text in uneven["text"]], 0.7))
    data = module_of(tmp_path / "uneven.csv", tokenizer, tmp_path, max_length=most)
    description, positive = data.describe(), 0
    for part, rows in load_splits(data.config).items():
        lengths = np.array([len(tokenizer(text)["input_ids"]) for text in rows["text"]])
        assert description["mean_tokens"][part] == pytest.approx(np.minimum(lengths, most).mean())
        assert description["share_truncated"][part] == pytest.approx((lengths > most).mean())
        assert 0 < description["share_truncated"][part] < 0.5
        negative = description["labels"][part]["0"]
        assert negative == (rows["label"] == 0).sum() < description["labels"][part]["1"] == len(rows) - negative
        positive += description["labels"][part]["1"]
    assert positive == 70


def test_fingerprint_follows_the_reviews_alone(reviews_csv, tokenizer, tmp_path, data):
    description = data.describe()
    batched = module_of(reviews_csv, tokenizer, tmp_path, batch_size=3, max_length=9).describe()
    assert batched["fingerprint"] == description["fingerprint"]
    smaller = module_of(reviews_csv, tokenizer, tmp_path, sizes=SplitSizes(40, 20, 30)).describe()
    assert smaller["fingerprint"] != description["fingerprint"]
    assert smaller["fingerprints"]["test"] == description["fingerprints"]["test"]
    reseeded = module_of(reviews_csv, tokenizer, tmp_path, split_seed=1).describe()
    assert reseeded["fingerprints"]["test"] != description["fingerprints"]["test"]


def test_deduplication_happens_before_splitting(tokenizer, tmp_path):
    rows = [f"review {row % 40},{row % 2}" for row in range(80)]
    (tmp_path / "twice.csv").write_text("\n".join(["text,label", *rows]))
    twice = module_of(tmp_path / "twice.csv", tokenizer, tmp_path, sizes=SplitSizes(40, 20, 20)).describe()
    assert twice["overlap"]["across"]["test_in_train"] > 0
    once = module_of(
        tmp_path / "twice.csv", tokenizer, tmp_path, sizes=SplitSizes(None, 10, 10), deduplicate=True
    ).describe()
    assert once["sizes"]["train"] == 20
    assert set(once["overlap"]["across"].values()) == {0}


def test_tokenizer_without_padding_is_refused(tiny_backbone):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_backbone)
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="padding token"):
        ReviewDataModule(DataConfig(), tokenizer, order_seed=0)


LIGHTNING = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # by design, see ReviewDataModule
    "ignore:.*LeafSpec:FutureWarning",  # Lightning's own use of torch
)


class Recorder(L.LightningModule):
    """Writes down which reviews it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs = {}
        self.scored = []

    def training_step(self, batch):
        self.epochs.setdefault(self.current_epoch, []).append(batch["index"].tolist())
        return self.weight.sum()

    def validation_step(self, batch):
        if not self.trainer.sanity_checking:
            self.scored += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(folder, epochs, **options):
    return L.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def expected_epochs(data, epochs):
    sampler = BucketSampler(data.parts["train"].lengths, 8, data.config.bucket_window, seed=4)
    return {epoch: list(sampler) for epoch in range(epochs)}


@LIGHTNING
def test_lightning_trains_the_samplers_epochs_also_when_it_resumes(reviews_csv, tokenizer, tmp_path):
    def fit(epochs, checkpoint=None):
        module, trainer = Recorder(), trainer_of(tmp_path, epochs)
        data = module_of(reviews_csv, tokenizer, tmp_path, bucket_window=2)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    data = module_of(reviews_csv, tokenizer, tmp_path, bucket_window=2)
    whole, _ = fit(3)
    assert whole.epochs == expected_epochs(data, 3)
    assert sorted(whole.scored) == sorted(3 * list(range(20)))

    first, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    rest, _ = fit(3, tmp_path / "one.ckpt")
    assert list(rest.epochs) == [1, 2]
    assert {**first.epochs, **rest.epochs} == whole.epochs


@pytest.fixture
def process_group():
    """Leaves no process group behind: with one, Lightning would take every later test for a distributed one."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@LIGHTNING
def test_lightning_leaves_the_batches_alone_or_refuses_when_distributed(reviews_csv, tokenizer, tmp_path):
    data, module = module_of(reviews_csv, tokenizer, tmp_path), Recorder()
    trainer_of(tmp_path, 2, strategy="ddp", devices=1, use_distributed_sampler=False).fit(module, datamodule=data)
    assert module.epochs == expected_epochs(data, 2)
    with pytest.raises(TypeError, match="use_distributed_sampler=False"):
        trainer_of(tmp_path, 1, strategy="ddp", devices=1).fit(Recorder(), datamodule=data)
