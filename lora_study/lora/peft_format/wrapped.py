"""The modules of a network without what wraps them: torch.compile, DistributedDataParallel and the like.

A wrapper holds the network as its child and so prefixes all names below it ("_orig_mod.", "module."). It is recognised
by its type or the child's name, wherever it stands; a network's own child called "module" does not make a wrapper.
"""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lora_study.base.errors import ConfigError

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
# What torch.compile, activation checkpointing and Lightning's Fabric call the module they wrap.
INNER = ("_orig_mod", "_checkpoint_wrapped_module", "_forward_module")


def plain_names(model: nn.Module) -> dict[str, str]:
    """The name in the model, and the name it would have without wrappers, of every module in every place.

    A wrapper and what it wraps have the same plain name; the wrapper comes first.

    Raises:
        ConfigError: the parameters are spread over processes, so that none holds the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if _is_sharded(module):
            raise ConfigError(
                f"{name or type(model).__name__} is spread over processes (FSDP, DTensor or ZeRO); gather its "
                "parameters into the plain model first, as FullyShardedDataParallel.summon_full_params does"
            )
    wrappers = {name for name, module in modules.items() if _is_wrapper(module)}
    return {name: _without(name, wrappers) for name in modules}


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its plain name, in every place; for a wrapper, what it wraps. The network itself is at ""."""
    return {plain: model.get_submodule(name) for name, plain in plain_names(model).items()}


def _without(name: str, wrappers: set[str]) -> str:
    """A name without the parts that belong to wrappers."""
    parts = name.split(".")
    return ".".join(part for i, part in enumerate(parts) if ".".join(parts[:i]) not in wrappers)


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, WRAPPERS) or any(inner in module._modules for inner in INNER)


def _is_sharded(module: nn.Module) -> bool:
    # Known by name, because importing these parts of torch takes long.
    if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
        return True
    return any(type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in module.parameters(recurse=False))
