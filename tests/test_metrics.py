import errno
import json
import math
from pathlib import Path

import pytest

from aieflow.gpt2 import metrics
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.metrics import MetricsLog, open_metrics
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder, create_run
from aieflow.ops.errors import InputError


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path, RunConfig(model=ModelConfig(64, 16, 2, 2, 8), seq_len=16))


def _lines(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_a_line_is_on_disk_as_soon_as_it_is_appended(run: RunFolder) -> None:
    with open_metrics(run, 0) as log:
        log.append({"training_step": 1, "loss": 0.1 + 0.2})
        assert _lines(run) == [{"training_step": 1, "loss": 0.1 + 0.2}]
        log.append({"training_step": 1, "validation_loss": 2.5})
        assert len(_lines(run)) == 2


def test_what_is_not_finite_becomes_null(run: RunFolder) -> None:
    with open_metrics(run, 0) as log:
        log.append({"training_step": 1, "loss": math.nan, "grad_norm": math.inf})
    assert _lines(run) == [{"training_step": 1, "loss": None, "grad_norm": None}]


def test_resuming_drops_what_will_be_repeated(run: RunFolder) -> None:
    with open_metrics(run, 0) as log:
        for training_step in range(1, 6):
            log.append({"training_step": training_step, "loss": 1.0})
            log.append({"training_step": training_step, "validation_loss": 2.0})
    whole, inode = run.metrics_file.read_bytes(), run.metrics_file.stat().st_ino
    open_metrics(run, 5).close()
    assert run.metrics_file.read_bytes() == whole
    assert run.metrics_file.stat().st_ino == inode  # not even rewritten
    with open_metrics(run, 3) as log:
        assert [line["training_step"] for line in _lines(run)] == [1, 1, 2, 2, 3, 3]
        log.append({"training_step": 4, "loss": 1.0})
    assert whole.startswith(run.metrics_file.read_bytes())
    open_metrics(run, 0).close()
    assert _lines(run) == []


@pytest.mark.parametrize(
    "torn", [b'{"training_step": 2, "lo', b'{"training_step": 2}', b"\0\0\0\n", b"\xff\n", b"[2]\n"]
)
def test_a_torn_line_is_dropped(run: RunFolder, torn: bytes) -> None:
    run.metrics_file.write_bytes(b'{"training_step": 1}\n' + torn)
    with open_metrics(run, 2) as log:
        log.append({"training_step": 2})
    assert _lines(run) == [{"training_step": 1}, {"training_step": 2}]


def test_a_full_disk_is_said_and_loses_no_line(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.metrics_file.write_bytes(b'{"training_step": 1}\n{"training_step": 2}\n')

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "replace_file", refuse)
    with pytest.raises(InputError, match=f"No space left on device: .*--resume {run.path}"):
        open_metrics(run, 1)
    assert len(_lines(run)) == 2


def test_a_device_that_is_full_refuses_a_line() -> None:
    with (
        MetricsLog(Path("/dev/full")) as log,
        pytest.raises(InputError, match=r"^/dev/full: cannot be written: No space left"),
    ):
        log.append({"training_step": 1})
