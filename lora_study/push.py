"""Putting an exported adapter or a merged model on a Hugging Face hub: what is sent, what is not, and why it failed.

Nothing leaves the machine before `send`. HF_ENDPOINT, HF_TOKEN, HF_HOME and a login with ``hf auth login`` work as
they do for every tool of Hugging Face; the token goes to the hub and nowhere else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from lora_study.config import ConfigError, check, one_line

WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.onnx")
TEXT = (".json", ".md", ".txt")
SENT = (".safetensors", ".onnx", *TEXT)


@dataclass(frozen=True)
class Upload:
    """What is about to leave the machine, and where to.

    Attributes:
        folder: The folder whose files are sent.
        files: Size in bytes of each, by its path in the folder.
        repo: Repository, OWNER/NAME.
        endpoint: The hub's address.
        private: Whether the repository must be private.
    """

    folder: Path
    files: dict[str, int]
    repo: str
    endpoint: str
    private: bool

    def describe(self) -> str:
        """The same in words, a line per file."""
        seen = "private" if self.private else "public, unless it is private already or by its owner's default"
        return "\n".join(
            [
                f"to    {self.endpoint}/{self.repo} ({seen})",
                f"from  {self.folder}",
                *(f"{size:>15,} bytes  {name}" for name, size in self.files.items()),
                f"{sum(self.files.values()):>15,} bytes in {len(self.files)} files",
            ]
        )


def prepare(folder: Path, repo: str, private: bool = False) -> Upload:
    """Check what would be sent, without asking the hub.

    Args:
        folder: What ``lora-study export`` or ``lora-study merge`` wrote.
        repo: Repository, OWNER/NAME; it is made if there is none.
        private: Whether only its owner may see it.

    Raises:
        ConfigError: the folder holds something else than such files, or no model; the repository's name is not one;
            there is no token, or the hub may not be asked.
    """
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    check(valid, "--repo", repo, "use USER/NAME, of letters, digits, '-', '_' and '.'")
    files = sendable(folder)
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so the hub may not be asked; unset it to push")
    token = get_token()
    if not token:
        raise ConfigError("there is no token for the hub; log in with hf auth login, or set HF_TOKEN")
    # The HTTP library would name the malformed header, token and all.
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("the token for the hub has a character that no token has; set HF_TOKEN again")
    return Upload(folder, files, repo, constants.ENDPOINT.rstrip("/"), private)


def sendable(folder: Path) -> dict[str, int]:
    """Size in bytes of every file of a folder, by its path in it, if all of them may be sent.

    Raises:
        ConfigError: a file is of another kind than export and merge write, or is not what its name says; a link
            leads out of the folder; or there is no model in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"--folder: {str(folder)!r} is not a folder; name what lora-study export or merge wrote")
    if (folder / "record.json").exists():
        raise ConfigError(f"--folder: {folder} is a run's folder; push what lora-study export or merge makes of it")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"--folder: {path} is a link that leads out of the folder; replace it by a copy")
        if path.suffix not in SENT or not path.is_file():
            raise ConfigError(f"--folder: {path} is not sent, only {', '.join(SENT)} are; move it elsewhere")
        _check_content(path)
        files[path.relative_to(folder).as_posix()] = path.stat().st_size
    if not any(name in files for name in WEIGHTS):
        raise ConfigError(f"--folder: {folder} holds no {', '.join(WEIGHTS)}; name what export or merge wrote")
    return files


def send(upload: Upload) -> str:
    """Make the repository if there is none, and send the files in one commit; files there of other names stay.

    Returns:
        The repository's address.

    Raises:
        ConfigError: the hub cannot be reached, refuses the token or the repository, or has the repository open to
            everybody where a private one was asked for; in the last case nothing was sent.
    """
    api = HfApi(endpoint=upload.endpoint)
    try:
        # Without a wish, None: the owner's default decides.
        address = str(api.create_repo(upload.repo, private=upload.private or None, exist_ok=True))
        if upload.private and not api.model_info(upload.repo).private:  # one that existed keeps its visibility
            raise ConfigError(f"--private: {upload.repo} exists and is public; make it private first, or name another")
        api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=[re.sub(r"([*?\[])", r"[\1]", name) for name in upload.files],
            commit_message="Upload a model made by lora_study",
        )
    except ConfigError:
        raise
    except Exception as error:  # the hub's HTTP library changes between its versions, and its errors with it
        raise ConfigError(f"{upload.repo} cannot be sent to {upload.endpoint}: {_reason(error)}") from error
    return address


def _check_content(path: Path) -> None:
    """Refuse a pickle, or anything else, under the name of a file that may be sent."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "np"):
                return
        if path.suffix in TEXT:
            path.read_text(encoding="utf-8")
    except (SafetensorError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"--folder: {path} is not a whole {path.suffix} file ({one_line(error)})") from error


def _reason(error: Exception) -> str:
    """Why the hub took nothing, and what to do, in one line."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return "it does not accept the token; log in again with hf auth login, or set HF_TOKEN to a valid one"
    if status == 403 or isinstance(error, RepositoryNotFoundError):
        return "the token may not write there; check --repo, and give the token write access"
    if status is not None:
        return f"it answered {status} ({one_line(error)[:200]}); check HF_ENDPOINT, or try again later"
    if isinstance(error, ValueError) and "README.md" in str(error):  # the hub's own check, before any file is sent
        return f"{one_line(error)[:200]}; mend the lines between --- at its head"
    return f"{type(error).__name__}: {one_line(error)[:200]}; check the network and HF_ENDPOINT"
