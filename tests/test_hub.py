import os
import subprocess
import sys
from pathlib import Path

import pytest

from aieflow.gpt2.hub import PUBLISHED, resolve_init
from aieflow.ops.errors import InputError


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_init(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_is_fetched_even_beside_a_folder_of_that_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    asked: list[str] = []

    def download(repository: str) -> Path:
        asked.append(repository)
        return tmp_path

    assert resolve_init(name, download) == tmp_path
    assert asked == [f"openai-community/{name}"]
    assert resolve_init(f"./{name}", download) == Path(name)


def test_what_is_neither_lists_what_would_be(tmp_path: Path) -> None:
    missing = tmp_path / "gtp2"
    with pytest.raises(InputError, match=f"^--init {missing}: does not exist: .*gpt2, gpt2-medium"):
        resolve_init(str(missing))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="is not a folder"):
        resolve_init(str(tmp_path / "model.bin"))


def test_without_the_package_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'aieflow\[hub\]', or give a folder"):
        resolve_init("gpt2")


def test_a_failing_network_is_said() -> None:
    def download(repository: str) -> Path:
        raise ConnectionError("no route to host\nand much more")

    with pytest.raises(
        InputError, match=r"gpt2-xl could not be fetched \(no route to host\): down"
    ):
        resolve_init("gpt2-xl", download)


def test_the_real_package_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    program = "from aieflow.gpt2.hub import resolve_init; resolve_init('gpt2')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    last_line = done.stderr.strip().splitlines()[-1]
    assert "InputError: --init gpt2: openai-community/gpt2 could not be fetched" in last_line
