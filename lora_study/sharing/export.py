"""A run's adapter for other programs: LoRA and the head in PEFT's format, with a model card."""

from pathlib import Path

from lora_study.base.errors import ConfigError
from lora_study.base.files import atomic_folder, user_path
from lora_study.lora import lora_parameters
from lora_study.lora.adapters import save_adapter
from lora_study.sharing.card import base_on_hub, write_card
from lora_study.sharing.trained import completed_record, load_run


def export_run(run: Path | str, output: Path | str, overwrite: bool = False) -> str:
    """Write all of a run's adapter folder or nothing.

    Args:
        run: The run's folder, results/STUDY/EXPERIMENT/seed-N.
        output: Folder to write.
        overwrite: Replace a folder that is not empty.

    Returns:
        One line with the sizes of the adapter and of the base model, weights in fp32.

    Raises:
        ConfigError: the run has no LoRA or cannot be read, or the output may not be written.
    """
    run, output = user_path(run), user_path(output)
    record = completed_record(run)
    if record.mode != "lora":
        raise ConfigError(f"{run} is of mode {record.mode!r}, which has no LoRA to export; use lora-study merge")
    try:
        with atomic_folder(output, overwrite) as folder:
            trained = load_run(run)
            # PEFT loads a base model by its name on the hub; a folder of this machine would mean nothing elsewhere.
            base, revision = base_on_hub(record) or (None, None)
            save_adapter(trained.model, folder, base=base, revision=revision)
            write_card(record, "adapter", folder)
    except FileExistsError as error:
        raise ConfigError(f"--output: {error}") from error
    adapter = sum(path.stat().st_size for path in output.iterdir())
    updates = sum(parameter.numel() for parameter in lora_parameters(trained.model))
    model = 4 * (sum(parameter.numel() for parameter in trained.model.parameters()) - updates)
    return f"adapter {adapter / 1e6:.1f} MB, model {model / 1e6:.1f} MB ({adapter / model:.1%})"
