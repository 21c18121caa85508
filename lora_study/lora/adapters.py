"""Several adapters over one base model, and the two functions that write and read an adapter's folder.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, a few MB for a base model of hundreds. PEFT
and, but for DoRA, transformers load what is written here; LoRA and DoRA adapters written by PEFT load here, over any
network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from lora_study.base.errors import ConfigError, check
from lora_study.base.files import user_path
from lora_study.lora.peft_format.loading import Change, load_adapter, read_adapter
from lora_study.lora.peft_format.saving import save_adapter

__all__ = ["Adapters", "load_adapter", "save_adapter"]


class Adapters:
    """Several adapters over one base model, of which at most one is in use at a time.

    Switching puts other modules in the places of the adapted ones; no tensor is written to, so going back to an
    adapter or to the plain model gives exactly the outputs it gave before. An adapter that was merged into the base
    must be unmerged before switching.

    Args:
        model: Any network without LoRA, or what wraps it (torch.compile, DistributedDataParallel); it is changed in
            place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active: str | None = None
        self._adapters: dict[str, list[Change]] = {}

    @property
    def names(self) -> list[str]:
        """The loaded adapters, in order of loading."""
        return list(self._adapters)

    def load(self, name: str, folder: Path | str) -> None:
        """Read an adapter folder and keep it under a name; the adapter in use does not change.

        Raises:
            ConfigError: the name is taken, the folder is refused as by `load_adapter`, or the adapter in use is merged.
        """
        check(name not in self._adapters, "adapter", name, "there already is one with that name; remove it first")
        with self.disabled():
            self._adapters[name] = read_adapter(self.model, user_path(folder))

    def use(self, name: str | None) -> None:
        """Put an adapter in place of the one in use; None leaves the plain model.

        Raises:
            ConfigError: no adapter has that name, or the adapter in use is merged; nothing is then changed.
        """
        leaving = self._adapters[self.active] if self.active is not None else []
        coming = self._changes(name) if name is not None else []
        for change in leaving:
            if not change.holds(change.adapted):
                raise ConfigError(
                    f"adapter {self.active!r} is no longer in {change.name}, as after merge_lora; give its layers back "
                    "with unmerge_lora before another adapter, or none, is used"
                )
        left = {(change.owner, change.key) for change in leaving}
        for change in coming:
            if (change.owner, change.key) not in left and not change.holds(change.plain):
                raise ConfigError(
                    f"{change.name} is no longer what it was when adapter {name!r} was loaded; put it back, or remove "
                    "the adapter and load it again"
                )
        for change in leaving:
            change.put(change.plain)
        for change in coming:
            change.put(change.adapted)
        self.active = name

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The plain model, while a block runs; the reference of preference training (DPO) is an example.

            with adapters.disabled(), torch.no_grad():
                reference = adapters.model(tokens).logits

        Afterwards, and after an exception, the adapter that was in use is back, its gradients with it. Blocks may be
        nested. (What `inject_lora` put into a model is left out by `lora_disabled`, which knows of no other head.)

        Raises:
            ConfigError: the adapter in use is merged.
        """
        active = self.active
        self.use(None)
        try:
            yield
        finally:
            self.use(active)

    def remove(self, name: str) -> None:
        """Forget an adapter; if it was in use, the plain model remains.

        Raises:
            ConfigError: no adapter has that name, or it is merged.
        """
        self._changes(name)
        if self.active == name:
            self.use(None)
        del self._adapters[name]

    def _changes(self, name: str) -> list[Change]:
        check(name in self._adapters, "adapter", name, f"the loaded ones are: {', '.join(self.names) or 'none'}")
        return self._adapters[name]
