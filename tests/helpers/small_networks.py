"""Networks of many kinds, small, frozen and always the same, for tests of what is saved and loaded."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from lora_study import inject_lora

TOKENS = torch.arange(2, 18).reshape(2, 8)
DISTILBERT = {"vocab_size": 40, "dim": 16, "n_heads": 2, "n_layers": 3, "hidden_dim": 24, "initializer_range": 0.2}
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.2}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
XLNET = {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
MARKS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
HEADS = ("classifier", "pre_classifier", "qa_outputs", "score", "sequence_summary", "logits_proj")


class Stack(nn.Module):
    """Layers of which one's full name is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"proj": nn.Linear(6, 6)})
        self.proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, input_ids):
        return self.proj(self.norm(self.inner["proj"](input_ids[:, :6].float() / 10)))


class Odd(nn.Module):
    """Parameters in places where modules of transformers have none."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))
        self.body = nn.ModuleDict({"proj": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)})
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 6)
        self.scales = nn.ParameterList([torch.ones(6), torch.ones(6)])
        self.again = self.head
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.output = nn.Linear(6, 6)
        self.output.weight = self.head.weight

    def forward(self, input_ids):
        x = self.norm(input_ids[:, :6].float() / 10 + self.shift)
        x = self.again(self.head(self.body["norm"](self.body["proj"](x)) * self.scales[0]) * self.scales[1])
        return self.output(x + self.attention(x[None], x[None], x[None])[0][0])


class Loop(nn.Module):
    """Runs through one block twice."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"lin": nn.Linear(8, 8)})
        self.blocks = nn.ModuleList([block, block])

    def forward(self, input_ids):
        x = input_ids.float() / 10
        for block in self.blocks:
            x = torch.tanh(block["lin"](x))
        return x


KINDS = {
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)),
    "distilbert tokens": lambda: DistilBertForTokenClassification(DistilBertConfig(**DISTILBERT)),
    "distilbert questions": lambda: DistilBertForQuestionAnswering(DistilBertConfig(**DISTILBERT)),
    "bert": lambda: BertModel(BertConfig(**BERT)),
    "bert classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "bert tokens": lambda: BertForTokenClassification(BertConfig(**BERT)),
    "bert choices": lambda: BertForMultipleChoice(BertConfig(**BERT)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **MARKS)),
    "gpt2 classifier": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, **MARKS)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)),
    "xlnet classifier": lambda: XLNetForSequenceClassification(XLNetConfig(**XLNET, **MARKS)),
    "stack": Stack,
    "odd": Odd,
    "loop": Loop,
}


def base(kind: str, head_seed: int = 0) -> nn.Module:
    """A network of a kind, with the same weights but for those of its head, which a seed draws."""
    torch.manual_seed(0)
    model = KINDS[kind]().eval().requires_grad_(False)
    torch.manual_seed(head_seed)
    for name, parameter in model.named_parameters():
        if name.startswith(HEADS):
            parameter.normal_(std=0.3)
    return model


def train(model: nn.Module) -> nn.Module:
    """Change every parameter that requires gradients, and running means beside them, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.weight.requires_grad:
            module.running_mean += 0.5
    return model


def adapted(kind: str, targets=("query", "value"), trained: str = "", head_seed: int = 0, **settings) -> nn.Module:
    """A trained network with LoRA; parameters whose names hold one of the words in `trained` are trained, too."""
    model = base(kind, head_seed)
    inject_lora(model, list(targets), **{"r": 4, "alpha": 3.0, "scaling": "alpha", **settings})
    for name, parameter in model.named_parameters():
        if any(word in name for word in trained.split()):
            parameter.requires_grad_(True)
    return train(model)


def outputs(model: nn.Module) -> torch.Tensor:
    """What a network, or what wraps it, says of two fixed texts."""
    kind = repr(model)[:200]
    more = {"decoder_input_ids": TOKENS.flip(1)} if "T5" in kind else {}
    with torch.no_grad():
        found = model(input_ids=TOKENS[None] if "MultipleChoice" in kind else TOKENS, **more)
    if isinstance(found, torch.Tensor):
        return found
    return found.last_hidden_state.sum(1) + found.pooler_output if "pooler_output" in found else found[0]
