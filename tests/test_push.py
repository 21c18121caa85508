"""Pushing: what is sent arrives byte for byte, and nothing else ever leaves the machine.

The hub is a miniature one on the loopback interface; see `miniature_hub`.
"""

import builtins
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fabricate
import pytest
import torch
from huggingface_hub import constants, snapshot_download
from miniature_hub import MiniatureHub, Repository
from safetensors.torch import save_file

from lora_study.card import write_card
from lora_study.cli import main
from lora_study.config import ConfigError
from lora_study.push import prepare, send
from lora_study.records import write_record

TOKEN = "hf_aliceAliceAlice"
ACCOUNTS = {TOKEN: "alice"}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder as export writes it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"lora_A": torch.arange(6.0)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}\n')
    write_card(fabricate.record(), "adapter", folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniatureHub]:
    """A hub that this process is connected to, and logged in as alice."""
    with MiniatureHub.serving([], ACCOUNTS, tmp_path / "hub") as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(folder: Path, *more: str) -> int:
    return main(["push", "--folder", str(folder), "--repo", "alice/model", *more])


def refused(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line of a refusal."""
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1 and captured.err.startswith("lora-study: error: ")
    assert TOKEN not in captured.err + captured.out
    return captured.err


def test_what_is_pushed_arrives_byte_for_byte(
    adapter: Path, hub: MiniatureHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(adapter, "--yes") == 0
    shown = capsys.readouterr().out
    assert f"{hub.url}/alice/model" in shown and TOKEN not in shown
    assert all(name in shown and f"{len(content):,}" in shown for name, content in files_of(adapter).items())
    downloaded = Path(snapshot_download("alice/model", token=False))
    assert files_of(downloaded) == files_of(adapter)


def test_pushing_again_replaces_files(adapter: Path, hub: MiniatureHub) -> None:
    assert push(adapter, "--yes") == 0
    (adapter / "README.md").write_text("# Another card\n")
    assert push(adapter, "--yes") == 0
    assert files_of(Path(snapshot_download("alice/model"))) == files_of(adapter)
    assert len(hub.repositories) == 1


@pytest.mark.parametrize("private", [True, False])
def test_private_is_asked_for(adapter: Path, hub: MiniatureHub, private: bool) -> None:
    assert push(adapter, "--yes", *(["--private"] if private else [])) == 0
    assert hub.repositories[0].private is private


def test_private_never_goes_to_a_repository_that_is_public(
    adapter: Path, hub: MiniatureHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = tmp_path / "public"
    public.mkdir()
    hub.repositories.append(Repository("models", "alice/model", public))
    assert "exists and is public" in refused(capsys, push(adapter, "--yes", "--private"))
    assert not files_of(public)


def test_only_what_was_shown_is_sent(adapter: Path, hub: MiniatureHub) -> None:
    upload = prepare(adapter, "alice/model")
    (adapter / "later.txt").write_text("written while the user was asked")
    send(upload)
    assert set(files_of(hub.repositories[0].folder)) == set(upload.files)


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("YES", 0), ("", 1), ("n", 1), (None, 1)])
def test_a_terminal_is_asked_and_only_yes_sends(
    adapter: Path, hub: MiniatureHub, monkeypatch: pytest.MonkeyPatch, answer: str | None, status: int
) -> None:
    def typed(question: str) -> str:
        assert "Send" in question and not hub.requests
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert push(adapter) == status
    assert bool(hub.requests) is (status == 0)


def test_without_a_terminal_nothing_is_sent_unless_told_so(
    adapter: Path, hub: MiniatureHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert "--yes" in refused(capsys, push(adapter))
    assert not hub.requests


def a_pickle(folder: Path) -> None:
    (folder / "model.bin").write_bytes(pickle.dumps({}))


def a_pickle_by_another_name(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"lora_A": [0.0] * 9}))


def a_pickle_called_text(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes(pickle.dumps({"lora_A": [0.5] * 9}, protocol=5))


def a_cut_file(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def a_hidden_file(folder: Path) -> None:
    (folder / ".env").write_text("SECRET=1")


def a_script_below(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code/setup.py").write_text("")


def a_link_outside(folder: Path) -> None:
    (folder.parent / "private.txt").write_text("mine")
    (folder / "notes.txt").symlink_to(folder.parent / "private.txt")


def a_linked_folder(folder: Path) -> None:
    (folder.parent / "private").mkdir()
    (folder / "more").symlink_to(folder.parent / "private")


def a_broken_link(folder: Path) -> None:
    (folder / "notes.txt").symlink_to(folder / "nothing.txt")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "notes.txt")


def a_runs_record(folder: Path) -> None:
    write_record(fabricate.record(), folder)


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (a_pickle, "model.bin"),
        (a_pickle_by_another_name, "adapter_model.safetensors"),
        (a_pickle_called_text, "vocab.txt"),
        (a_cut_file, "adapter_model.safetensors"),
        (a_hidden_file, ".env"),
        (a_script_below, "code/setup.py"),
        (a_link_outside, "notes.txt is a link that leads out"),
        (a_linked_folder, "more is a link that leads out"),
        (a_broken_link, "notes.txt"),
        (a_pipe, "notes.txt"),
        (a_runs_record, "is a run's folder; push what lora-study export"),
        (no_weights, "holds no"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_with_anything_else_in_it_is_refused(
    adapter: Path, hub: MiniatureHub, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], named: str
) -> None:
    spoil(adapter)
    assert named in refused(capsys, push(adapter, "--yes"))
    assert not hub.requests


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in refused(capsys, push(tmp_path / "nothing", "--yes"))


@pytest.mark.parametrize(
    "repo", ["model", "a/b/c", "alice/", "alice/mo del", "alice/..", "https://hub/alice/model", ""]
)
def test_a_repository_is_user_and_name(adapter: Path, hub: MiniatureHub, repo: str) -> None:
    with pytest.raises(ConfigError, match="USER/NAME"):
        prepare(adapter, repo)
    assert not hub.requests


@pytest.mark.parametrize(
    ("token", "remedy"),
    [("", "hf auth login"), ("hf_nobody", "does not accept the token"), ("hf_bad token", "HF_TOKEN again")],
)
def test_a_missing_or_wrong_token_is_one_line_and_not_repeated(
    adapter: Path,
    hub: MiniatureHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
    remedy: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    message = refused(capsys, push(adapter, "--yes"))
    assert remedy in message and not (token and token in message)


def test_a_card_that_the_hub_refuses_is_one_line_and_nothing_is_sent(
    adapter: Path, hub: MiniatureHub, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (adapter / "README.md").read_text()
    (adapter / "README.md").write_text(card.replace("license: apache-2.0", "license: mine"))
    message = refused(capsys, push(adapter, "--yes"))
    assert "README.md" in message and '"license" must be one of' in message and "network" not in message
    assert not files_of(hub.repositories[0].folder)


@pytest.mark.parametrize("exists", [True, False])
def test_somebody_elses_name_is_one_line(
    adapter: Path, hub: MiniatureHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if exists:
        hub.repositories.append(Repository("models", "bob/model", theirs))
    status = main(["push", "--folder", str(adapter), "--repo", "bob/model", "--yes"])
    assert "may not write" in refused(capsys, status)
    assert not files_of(theirs)


def test_offline_mode_sends_nothing(
    adapter: Path, hub: MiniatureHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(capsys, push(adapter, "--yes"))
    assert not hub.requests


@pytest.mark.timeout(10)
def test_a_hub_that_is_away_is_one_line_and_quick(
    adapter: Path, hub: MiniatureHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    message = refused(capsys, push(adapter, "--yes"))
    assert "ConnectError" in message and hub.url in message and "HF_ENDPOINT" in message


def test_environment_variables_choose_hub_and_account(adapter: Path, tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with MiniatureHub.serving([], ACCOUNTS, tmp_path / "hub") as hub:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "lora_study",
                "push",
                "--folder",
                adapter,
                "--repo",
                "alice/model",
                "--yes",
                "--debug",
            ],
            env={**inherited, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)},
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{hub.url}/alice/model"
        assert TOKEN not in done.stdout + done.stderr
        assert files_of(hub.repositories[0].folder) == files_of(adapter)
