"""How Hugging Face PEFT names the tensors of an adapter_model.safetensors."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from lora_study.lora import LinearWithLoRA
from lora_study.lora.dora import LinearWithDoRA
from lora_study.lora.peft_format.wrapped import plain_names

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor's name: PEFT has two wrappers around the network

# What classification heads are called; PEFT matches the ends of names, so "classifier" is also "pre_classifier".
HEADS = ("pre_classifier", "classifier", "score", "qa_outputs")
# The ends of the names of transformers' classes of which everything beside the encoder is drawn at random.
CLASSIFIERS = ("Classification", "ForQuestionAnswering", "ForMultipleChoice")


def adapter_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under PEFT's names and in its shapes, as views of the module's own.

    For an adapted layer these are the update's alone; for another module, all it has.
    """
    if not isinstance(module, LinearWithLoRA):
        names = plain_names(module)
        return {_plain(key, names): tensor for key, tensor in module.state_dict().items()}
    tensors = {
        "lora_A.weight": module.lora.lora_A.detach().T,  # (r, in)
        "lora_B.weight": module.lora.lora_B.detach().T,  # (out, r)
    }
    if isinstance(module, LinearWithDoRA):
        tensors["lora_magnitude_vector"] = module.magnitude.detach()  # (out,)
    return tensors


def base_tensor(module: str, parameter: str, adapted: Collection[str]) -> str:
    """What PEFT calls a parameter of the base model.

    Args:
        module: Name of the parameter's module.
        parameter: Its name there.
        adapted: The names of the layers that have an update.
    """
    inside = ".base_layer" if module in adapted else ""
    return f"{module}{inside}.{parameter}" if module else parameter


def saved_modules(names: Iterable[str], ends: Sequence[str]) -> list[str]:
    """The modules to store whole; as in PEFT, the end of a name is enough ("classifier" is also "pre_classifier")."""
    saved: list[str] = []
    for name in names:
        if ends and name.endswith(tuple(ends)) and not within(name, saved):
            saved.append(name)
    return saved


def head_ends(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Ends of the names of a model's heads: in any network `HEADS`, and what else a classifier of transformers has.

    Args:
        modules: All the model's, by plain name.
    """
    encoder = getattr(modules[""], "base_model_prefix", None)
    if encoder not in modules or not type(modules[""]).__name__.endswith(CLASSIFIERS):
        return HEADS
    beside = [
        name
        for name, module in modules.items()
        if name not in ("", encoder) and "." not in name and any(True for _ in module.parameters())
    ]
    return (*HEADS, *(name for name in beside if sum(other.endswith(name) for other in modules) == 1))


def within(name: str, modules: Sequence[str]) -> bool:
    """Whether a module is one of those named, or inside it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _plain(key: str, names: Mapping[str, str]) -> str:
    """The name of a tensor without what wraps the modules it is in."""
    owner, _, own = key.rpartition(".")
    plain = names.get(owner, owner)
    return f"{plain}.{own}" if plain else own
