"""What all tests share: no network, no user's cache, one thread, a tiny encoder and a few real reviews."""

import os
import signal
import tempfile
from functools import partial
from pathlib import Path

import miniature
import pandas as pd
import pytest
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before a test module imports a library that reads it when imported.

    Tests of the network run in a subprocess with an environment of their own; see `miniature_hub`.
    """
    # On a busy machine an example takes as long as it takes.
    settings.register_profile("tests", deadline=None)
    settings.load_profile("tests")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE"):
        os.environ.pop(name, None)
    home = tempfile.TemporaryDirectory(prefix="hf-home-")
    config.add_cleanup(home.cleanup)
    os.environ |= {
        "HF_HOME": home.name,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MPLBACKEND": "Agg",
        "NO_PROXY": "127.0.0.1",  # the miniature hub
        "OMP_NUM_THREADS": "1",  # the models are tiny: more threads only fight one another
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="session")
def imdb_reviews() -> pd.DataFrame:
    """The 25,000 reviews of IMDb's official training split: columns text and label."""
    return miniature.imdb_reviews()


@pytest.fixture(scope="session")
def reviews_csv(imdb_reviews: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv (text, label) with the openings of 400 reviews, which a tiny model can learn."""
    return miniature.write_reviews(imdb_reviews, tmp_path_factory.mktemp("reviews") / "reviews.csv")


@pytest.fixture(scope="session")
def tiny_backbone(reviews_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as distilbert-base-uncased's, but random and tiny (dim 32, 2 layers)."""
    return miniature.write_backbone(reviews_csv, tmp_path_factory.mktemp("tiny") / "distilbert")


@pytest.fixture(scope="session")
def tiny(tiny_backbone: Path, reviews_csv: Path, tmp_path_factory: pytest.TempPathFactory):
    """Builds configs of experiments that take about a second: a mode of `tiny_experiments` and changes to it."""
    from tiny_experiments import tiny_experiment

    return partial(tiny_experiment, tiny_backbone, reviews_csv, tmp_path_factory.mktemp("cache"))
