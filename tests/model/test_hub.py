"""Models and reviews by name from a hub, from its cache, and what is said when there is neither.

The hub is a miniature one on the loopback interface; see `miniature_hub`.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from miniature_hub import MiniatureHub, Repository

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.config import DataConfig, ModelConfig
from lora_study.config_files import load_study
from lora_study.data.sources import load_reviews
from lora_study.model.encoder import build_model, build_skeleton, build_tokenizer, describe

CONFIGS = Path(__file__).parents[2] / "configs"
LOAD_BY_NAME = """
import json, sys
from lora_study.model.encoder import build_model, build_tokenizer, describe
from lora_study.config import DataConfig, ModelConfig
from lora_study.data.sources import load_reviews

config = ModelConfig(backbone="tiny/distilbert", revision=sys.argv[1])
reviews = load_reviews(DataConfig(source="hub", revision=sys.argv[2]))
weights = build_model(config, head_seed=1).state_dict()
print(json.dumps({
    "weights": {name: weight.double().sum().item() for name, weight in weights.items()},
    "tokens": build_tokenizer(config)("a great film")["input_ids"],
    "encoder": describe(config),
    "reviews": {column: reviews[column].tolist() for column in ("text", "label", "split")},
}))
"""

RUN_STUDY = """
import json, sys
from lora_study.config_files import load_study
from lora_study.training.experiment import run_experiment

records = [run_experiment(experiment, sys.argv[2]) for experiment in load_study(sys.argv[1])[1]]
print(json.dumps([[record.name, record.status, record.encoder.revision] for record in records]))
"""


@pytest.fixture(scope="module")
def model(tiny_backbone):
    return Repository("models", "tiny/distilbert", tiny_backbone)


@pytest.fixture(scope="module")
def reviews(reviews_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imdb")
    (folder / "README.md").write_text("# IMDb")
    (folder / "plain_text").mkdir()
    table = pd.read_csv(reviews_csv)
    table[:300].to_parquet(folder / "plain_text/train-00000-of-00001.parquet", index=False)
    table[300:].to_parquet(folder / "plain_text/test-00000-of-00001.parquet", index=False)
    unlabelled = pd.DataFrame({"text": ["a film", "another"], "label": [-1, -1]})
    unlabelled.to_parquet(folder / "plain_text/unsupervised-00000-of-00001.parquet", index=False)
    return Repository("datasets", "stanfordnlp/imdb", folder)


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Point this process at a hub, or take it offline, with a cache of the test's own.

    These are what the environment variables decide, but huggingface_hub reads them only when it is imported.
    """

    def connect_to(hub):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", hub is None)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        url = hub.url if hub else "https://huggingface.co"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    return connect_to


def in_own_python(code, *arguments, **environment):
    """What the code prints last, as JSON, in a Python whose environment has only these settings of Hugging Face's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_environment_variables_choose_hub_and_cache(model, reviews, reviews_csv, tmp_path):
    revisions, home = (model.commit, reviews.commit), str(tmp_path)
    with MiniatureHub.serving([model, reviews]) as hub:
        online = in_own_python(LOAD_BY_NAME, *revisions, HF_HOME=home, HF_ENDPOINT=hub.url)
    offline = in_own_python(LOAD_BY_NAME, *revisions, HF_HOME=home, HF_HUB_OFFLINE="1")

    here = ModelConfig(backbone=str(model.folder))
    weights = build_model(here, head_seed=1).state_dict()
    table = pd.read_csv(reviews_csv)
    assert online["weights"] == {name: weight.double().sum().item() for name, weight in weights.items()}
    assert online["tokens"] == build_tokenizer(here)("a great film")["input_ids"]
    assert online["encoder"]["sha256"] == describe(here)["sha256"]
    assert online["reviews"]["text"] == table["text"].tolist()
    assert online["reviews"]["label"] == table["label"].tolist()
    assert online["reviews"]["split"] == ["train"] * 300 + ["test"] * 100
    assert offline == online


@pytest.mark.slow
def test_the_laptop_study_runs_on_what_it_finds_on_the_hub(model, reviews, tmp_path):
    """Its names and commits, with the tiny model in the place of the real one, whose name has changed since."""
    small = {"data": {"sizes": {"train": 48, "val": 16, "test": 30}}, "train": {"epochs": 1, "threads": 1}}
    study = shutil.copytree(CONFIGS, tmp_path / "configs") / "studies" / "rehearsal.yaml"
    study.write_text(json.dumps({"extends": "laptop.yaml", "name": "rehearsal", "overrides": small}))
    shipped = load_study(study)[1][0]
    assert shipped.model.backbone == "distilbert-base-uncased" and shipped.model.revision and shipped.data.revision
    real = replace(model, name="distilbert/distilbert-base-uncased", former=shipped.model.backbone)
    real = replace(real, pinned=shipped.model.revision)
    arguments = (str(study), str(tmp_path / "results"))
    with MiniatureHub.serving([real, replace(reviews, pinned=shipped.data.revision)]) as hub:
        runs = in_own_python(RUN_STUDY, *arguments, HF_HOME=str(tmp_path / "home"), HF_ENDPOINT=hub.url)
    rows = ("last_two_layers", "lora_default", "lora_best", "full")
    assert runs == [[name, "completed", shipped.model.revision] for name in rows]


@pytest.mark.parametrize("pinned", [True, False])
def test_model_by_name_is_the_model_of_the_folder(model, connect, pinned):
    config = ModelConfig(backbone="tiny/distilbert", revision=model.commit if pinned else None)
    expected = build_model(ModelConfig(backbone=str(model.folder)), head_seed=1).state_dict()

    def check_all():
        assert list(build_skeleton(config).state_dict()) == list(expected)
        weights = build_model(config, head_seed=1).state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert build_tokenizer(config)("great").keys() == {"input_ids", "attention_mask"}
        assert describe(config)["revision"] == model.commit

    with MiniatureHub.serving([model]) as hub:
        connect(hub)
        check_all()
        fetched = [request for request in hub.requests if request.startswith("GET") and "/api/" not in request]
        names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        assert sorted(request.rsplit("/")[-1] for request in fetched) == names  # each once, and nothing pickled
        before = len(hub.requests)
        check_all()
        again = hub.requests[before:]
        assert not again if pinned else not any("/resolve/" in request for request in again)
    check_all()  # the hub has gone: from the cache
    connect(None)
    check_all()


def test_inspect_asks_no_hub_once_the_encoder_is_here(model, connect, capsys):
    with MiniatureHub.serving([model]) as hub:
        connect(hub)
        build_model(ModelConfig(backbone="tiny/distilbert"), head_seed=1)
        before = len(hub.requests)
        assert main(["inspect", "--model.backbone", "tiny/distilbert"]) == 0
        assert "no review gets a probability" in capsys.readouterr().out
        assert hub.requests[before:] == []


def test_cache_filled_file_by_file_is_used(model, connect):
    config = ModelConfig(backbone="tiny/distilbert")
    with MiniatureHub.serving([model]) as hub:
        connect(hub)
        for path in model.paths():
            hf_hub_download(model.name, path)  # as transformers' from_pretrained does
    connect(None)
    assert build_model(config, head_seed=1).config.dim == 32
    assert build_tokenizer(config).pad_token_id == 0


def test_tokenizer_alone_in_the_cache_does_not_pass_for_the_model(model, connect):
    config = ModelConfig(backbone="tiny/distilbert", revision=model.commit)
    with MiniatureHub.serving([model]) as hub:
        connect(hub)
        build_tokenizer(config)
        connect(None)
        with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
            build_model(config, head_seed=1)
        connect(hub)
        assert build_model(config, head_seed=1).config.dim == 32


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("tiny/other", None, "there is no such public model"),
        ("tiny/distilbert", "0" * 40, "it has no revision '0000"),
        ("tiny/distilbert", "v9", "it has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(model, connect, name, revision, reason):
    with MiniatureHub.serving([model]) as hub:
        connect(hub)
        for build in (build_skeleton, build_tokenizer, lambda config: build_model(config, head_seed=1)):
            with pytest.raises(ConfigError, match=reason) as caught:
                build(ModelConfig(backbone=name, revision=revision))
            assert "\n" not in str(caught.value) and hub.url in str(caught.value)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("pinned", [True, False])
def test_unreachable_hub_is_one_line_and_quick(model, connect, pinned):
    with MiniatureHub.serving([model]) as hub:
        connect(hub)
    with pytest.raises(ConfigError, match="ConnectError") as caught:
        build_model(ModelConfig(backbone="tiny/distilbert", revision=model.commit if pinned else None), head_seed=1)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (hub.url, "HF_ENDPOINT", "HF_HOME", "downloaded folder", "=embedded"))


@pytest.mark.parametrize("pinned", [True, False])
def test_only_the_labelled_reviews_are_fetched_and_the_cache_has_the_same(reviews, reviews_csv, connect, pinned):
    config = DataConfig(source="hub", revision=reviews.commit if pinned else None)
    with MiniatureHub.serving([reviews]) as hub:
        connect(hub)
        first = load_reviews(config)
        assert not [request for request in hub.requests if "unsupervised" in request]
        before = len(hub.requests)
        again = load_reviews(config)
        assert not hub.requests[before:] if pinned else not any("/large/" in line for line in hub.requests[before:])
    assert first["id"].tolist() == [f"train/{row}" for row in range(300)] + [f"test/{row}" for row in range(100)]
    assert first["text"].tolist() == pd.read_csv(reviews_csv)["text"].tolist()
    pd.testing.assert_frame_equal(again, first)
    connect(None)
    pd.testing.assert_frame_equal(load_reviews(config), first)


def test_reviews_that_the_hub_does_not_have_are_one_line(reviews, connect, tmp_path):
    half = replace(reviews, folder=shutil.copytree(reviews.folder, tmp_path / "half"))
    (half.folder / "plain_text/test-00000-of-00001.parquet").unlink()
    config = DataConfig(source="hub", revision=half.commit)
    with MiniatureHub.serving([half]) as hub:
        connect(hub)
        with pytest.raises(ConfigError, match=r"has no plain_text/test-.*\.parquet; name another data.revision"):
            load_reviews(config)
        with pytest.raises(ConfigError, match="it has no revision 'v9'"):
            load_reviews(replace(config, revision="v9"))
    connect(None)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        load_reviews(config)


def test_class_names_of_the_hub_s_file_decide_which_is_positive(reviews, connect, tmp_path):
    other = replace(reviews, folder=shutil.copytree(reviews.folder, tmp_path / "other"))
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    for file in (other.folder / "plain_text").glob("t*.parquet"):
        rows = {"text": ["a fine film", "a dull film", "dull"], "label": [0, 1, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    with MiniatureHub.serving([other]) as hub:
        connect(hub)
        found = load_reviews(DataConfig(source="hub", revision=other.commit))
    assert found["label"].tolist() == [1, 0, 0, 1, 0, 0]
