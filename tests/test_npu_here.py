"""The design that is built for this computer is the one that its commands take."""

from pathlib import Path

import pytest
from conftest import Command
from npu_computers import computer

from aieflow.ops.npu.design import DESIGNS
from aieflow.tools import npu_here
from aieflow.tools.npu_builds import Build


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer with an NPU2, whose build has lost its xclbin, so opening it names the file."""
    around = computer(tmp_path / "root").around
    build = Build(tmp_path / "npu2-0", "npu2", DESIGNS["npu2"], {}, 1.0, {})

    def find(root: Path, generation: str) -> Build | None:
        return build if generation == "npu2" else None

    monkeypatch.setattr(npu_here, "here", lambda: around)
    monkeypatch.setattr(npu_here, "find_build", find)
    return build.xclbin


@pytest.mark.parametrize(
    "words", [("calibrate", "--device", "npu"), ("plan", "gpt2", "--devices", "cpu,npu")]
)
def test_commands_take_the_built_design(words: list[str], built: Path, aieflow: Command) -> None:
    assert npu_here.built_xclbin() == built
    result = aieflow(*words)
    assert result.code == 2
    assert f"{built}: No such file" in result.err


def test_no_npu_or_no_build_is_no_design(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del built
    monkeypatch.setattr(npu_here, "find_build", lambda root, generation: None)
    assert npu_here.built_xclbin() is None
    nothing = computer(tmp_path / "none", {"sys/bus/pci/devices/0000:67:00.1/device": "0x1508"})
    monkeypatch.setattr(npu_here, "here", lambda: nothing.around)
    monkeypatch.setattr(npu_here, "find_build", lambda root, generation: pytest.fail("asked"))
    assert npu_here.built_xclbin() is None
