"""The emulated XRT against what is known of the real one: buffers, calls, traps, limits."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aieflow.devices.xclbin import emulated_xclbin, write_xclbin
from aieflow.devices.xrt_emulator import EmulatedKernel, EmulatedUuid, XrtEmulator
from aieflow.devices.xrt_emulator_buffers import EmulatedBuffer, SyncDirection
from aieflow.devices.xrt_emulator_clock import Latencies
from aieflow.devices.xrt_emulator_commands import HWCTX_MAX_CMDS, EmulatedRun
from aieflow.ops.npu.design import DESIGNS, GemmDesign, GemmSize
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.instructions import encode

IN = SyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
OUT = SyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE
Floats = npt.NDArray[np.float32]
SIZE = GemmSize(256, 64, 128)  # one granule of npu1
ONE, TWO = 0x3F80, 0x4000  # in bf16


@dataclass
class Bench:
    """An emulated NPU, set up: what a host program would hold."""

    xrt: XrtEmulator
    device: Any
    context: Any
    kernel: EmulatedKernel
    design: GemmDesign

    @property
    def uuid(self) -> EmulatedUuid:
        return EmulatedUuid(self.context.xclbin.uuid)

    def buffer(self, nbytes: int, argument: int = 3) -> EmulatedBuffer:
        flags = self.xrt.bo.cacheable if argument == 1 else self.xrt.bo.host_only
        return self.xrt.bo(self.device, nbytes, flags, self.kernel.group_id(argument))

    def filled(self, data: npt.NDArray[Any], argument: int = 3) -> EmulatedBuffer:
        buffer = self.buffer(data.nbytes, argument)
        buffer.write(data, 0)
        buffer.sync(IN)
        return buffer

    def gemm(self) -> "Gemm":
        """Of matrices of ones: no layout matters, every element of C is K."""
        words = encode(self.design, SIZE)
        buffers = [
            self.filled(words, 1),
            self.filled(np.full(SIZE.M * SIZE.K, ONE, np.uint16), 3),
            self.filled(np.full(SIZE.K * SIZE.N, ONE, np.uint16), 4),
            self.filled(np.zeros(SIZE.M * SIZE.N, np.float32), 5),
        ]
        run = self.xrt.run(self.kernel)
        for index, value in enumerate([3, buffers[0], words.nbytes, *buffers[1:]]):
            run.set_arg(index, value)
        return Gemm(run, buffers)


@dataclass
class Gemm:
    run: EmulatedRun
    buffers: list[EmulatedBuffer]  # instructions, A, B, C

    def compute(self) -> Floats:
        """Start, wait, sync C."""
        self.run.start()
        assert int(self.run.wait()) == 4
        return self.result()

    def result(self) -> Floats:
        self.buffers[3].sync(OUT)
        return np.frombuffer(self.buffers[3].map(), np.float32)


def open_bench(path: Path, xrt: XrtEmulator, design: GemmDesign | None = None) -> Bench:
    design = design or DESIGNS[xrt.generation.name]
    write_xclbin(path / "gemm.xclbin", emulated_xclbin(design))
    device = xrt.device(0)
    xclbin = xrt.xclbin(str(path / "gemm.xclbin"))
    device.register_xclbin(xclbin)
    context = xrt.hw_context(device, xclbin.get_uuid())
    return Bench(xrt, device, context, xrt.kernel(context, "MLIR_AIE"), design)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"]))


# --- memory that does not follow


def test_a_forgotten_sync_to_the_device_leaves_old_operands(bench: Bench) -> None:
    gemm = bench.gemm()
    assert np.all(gemm.compute() == SIZE.K)
    twos = np.full(SIZE.M * SIZE.K, TWO, np.uint16)
    gemm.buffers[1].write(twos, 0)
    assert np.all(gemm.compute() == SIZE.K)  # still ones
    gemm.buffers[1].sync(IN)
    assert np.all(gemm.compute() == 2 * SIZE.K)


def test_a_forgotten_sync_from_the_device_leaves_old_results(bench: Bench) -> None:
    gemm = bench.gemm()
    gemm.run.start()
    gemm.run.wait()
    host = np.frombuffer(gemm.buffers[3].map(), np.float32)
    assert not host.any()
    gemm.buffers[3].sync(OUT)
    assert np.all(host == SIZE.K)


def test_a_forgotten_first_sync_gives_nan(bench: Bench) -> None:
    gemm = bench.gemm()
    fresh = bench.buffer(gemm.buffers[1].size())
    fresh.write(np.full(SIZE.M * SIZE.K, ONE, np.uint16), 0)
    gemm.run.set_arg(3, fresh)
    assert np.isnan(gemm.compute()).all()


def test_instructions_that_were_not_sent_do_not_run(bench: Bench) -> None:
    gemm = bench.gemm()
    words = np.frombuffer(gemm.buffers[0].map(), np.uint32)
    fresh = bench.buffer(words.nbytes, 1)
    fresh.write(words, 0)
    gemm.run.set_arg(1, fresh)
    gemm.run.start()
    assert gemm.run.wait().name == "ERT_CMD_STATE_ERROR"
    assert "instructions" in bench.xrt.messages[-1]


def test_an_operand_may_be_a_sub_buffer(bench: Bench) -> None:
    gemm = bench.gemm()
    nbytes = gemm.buffers[3].size()
    root = bench.buffer(2 * nbytes)
    gemm.run.set_arg(5, bench.xrt.bo(root, nbytes, nbytes))
    gemm.run.start()
    gemm.run.wait()
    root.sync(OUT)
    found = np.frombuffer(root.map(), np.float32)
    assert np.all(found[nbytes // 4 :] == SIZE.K)
    assert np.isnan(found[: nbytes // 4]).all()


# --- calls, their errors and their traps


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda b: b.xrt.device(1), RuntimeError, "No such device with index '1'"),
        (lambda b: b.xrt.device("0"), TypeError, "incompatible"),
        (lambda b: b.xrt.kernel(b.context, "other"), RuntimeError, "No such kernel 'other'"),
        (lambda b: b.xrt.kernel(b.device, "MLIR_AIE"), TypeError, "incompatible"),
        (lambda b: b.xrt.xclbin("/nothing.xclbin"), RuntimeError, "No such file"),
        (lambda b: b.xrt.xclbin(Path("/x")), TypeError, "is no str"),
        (lambda b: b.xrt.run(b.context), TypeError, "incompatible"),
        (lambda b: b.xrt.runlist(b.kernel), TypeError, "incompatible"),
        (lambda b: b.xrt.bo(b.device, 0, b.xrt.bo.normal, 0), RuntimeError, "CREATE_BO"),
        (lambda b: b.xrt.bo(b.device, -1, b.xrt.bo.normal, 0), TypeError, "size_t"),
        (lambda b: b.xrt.bo(b.device, 4, 0, 0), TypeError, "incompatible"),
        (lambda b: b.kernel.group_id(8), IndexError, "declares 8"),
        (lambda b: b.device.get_info("serial"), TypeError, "incompatible"),
    ],
)
def test_a_wrong_call_raises_as_xrt_does(
    bench: Bench, call: Callable[[Bench], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(bench)


def test_a_context_needs_a_registered_xclbin(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"]))
    xclbin = bench.xrt.xclbin(str(tmp_path / "gemm.xclbin"))
    with pytest.raises(RuntimeError, match=f"No xclbin with uuid '{xclbin.get_uuid().to_string()}"):
        bench.xrt.hw_context(bench.xrt.device(0), xclbin.get_uuid())


def test_an_xclbin_tells_of_itself(bench: Bench, tmp_path: Path) -> None:
    xclbin = bench.xrt.xclbin(str(tmp_path / "gemm.xclbin"))
    assert [(k.get_name(), k.get_num_args()) for k in xclbin.get_kernels()] == [("MLIR_AIE", 8)]
    assert [(m.get_tag(), m.get_index()) for m in xclbin.get_mems()] == [("HOST", 0), ("SRAM", 1)]
    assert "emulated" in xclbin.get_xsa_name()
    assert "emulated" in bench.device.get_info(bench.xrt.xrt_info_device.name)
    assert "emulated" in bench.device.get_info(bench.xrt.xrt_info_device.bdf)


def test_group_ids_hold_the_context(bench: Bench) -> None:
    """As XRT 2.20 was seen to pack them: context << 16 | bank, all ones for scalars."""
    second = bench.xrt.kernel(bench.xrt.hw_context(bench.device, bench.uuid), "MLIR_AIE")
    assert [bench.kernel.group_id(i) for i in range(4)] == [131071, 65537, 131071, 65536]
    assert [second.group_id(i) for i in range(4)] == [196607, 131073, 196607, 131072]


@pytest.mark.parametrize(
    "value", [1.0, b"1", "1", None, 1 << 31, -(1 << 31) - 1, np.float32(1), [1]], ids=repr
)
def test_set_arg_takes_int32_and_buffers_only(bench: Bench, value: object) -> None:
    with pytest.raises(TypeError, match="set_arg"):
        bench.xrt.run(bench.kernel).set_arg(0, value)


def test_set_arg_refuses_what_would_crash(bench: Bench) -> None:
    run = bench.xrt.run(bench.kernel)
    with pytest.raises(RuntimeError, match="segmentation fault: argument 8"):
        run.set_arg(8, bench.buffer(4))
    with pytest.raises(RuntimeError, match="takes no buffer"):
        run.set_arg(0, bench.buffer(4))


def test_a_called_kernel_drops_what_it_cannot_convert(bench: Bench) -> None:
    gemm = bench.gemm()
    instructions, *data = gemm.buffers
    good = bench.kernel(3, instructions, instructions.size(), *data)
    assert good.wait().name == "ERT_CMD_STATE_COMPLETED"
    bad = bench.kernel(3.0, instructions, instructions.size(), *data)  # no error here
    assert bad.wait().name == "ERT_CMD_STATE_ERROR"
    assert "opcode None" in bench.xrt.messages[-1]


def test_a_buffer_in_the_wrong_bank_is_copied(bench: Bench) -> None:
    gemm = bench.gemm()
    wrong = bench.xrt.bo(
        bench.device, gemm.buffers[3].size(), bench.xrt.bo.host_only, bench.kernel.group_id(1)
    )
    gemm.run.set_arg(5, wrong)
    gemm.run.start()
    assert gemm.run.wait().name == "ERT_CMD_STATE_COMPLETED"
    wrong.sync(OUT)
    assert np.isnan(np.frombuffer(wrong.map(), np.float32)).all()  # never written
    assert "bank 1 instead of 0" in bench.xrt.messages[-1]


def test_a_freed_argument_fails(bench: Bench) -> None:
    gemm = bench.gemm()
    gemm.buffers.pop()
    gemm.run.start()
    assert gemm.run.wait().name == "ERT_CMD_STATE_ERROR"
    assert "argument 5 was freed" in bench.xrt.messages[0]


def test_a_buffer_that_is_too_small_faults(bench: Bench) -> None:
    gemm = bench.gemm()
    short = bench.buffer(gemm.buffers[3].size() - 4)
    gemm.run.set_arg(5, short)
    gemm.run.start()
    assert gemm.run.wait().name == "ERT_CMD_STATE_ERROR"
    assert "a DMA touches byte" in bench.xrt.messages[-1]


def test_states_follow_a_run(bench: Bench) -> None:
    gemm = bench.gemm()
    bench.xrt.fail("execution", 1, "hang")
    assert gemm.run.state().name == "ERT_CMD_STATE_NEW"
    assert int(gemm.run.state()) == 1
    gemm.run.start()
    assert int(gemm.run.state()) in (2, 3)  # QUEUED, then RUNNING, which has no name
    with pytest.raises(RuntimeError, match="bad command state, can't launch"):
        gemm.run.start()
    second = bench.gemm()
    second.run.start()
    assert second.run.state() is bench.xrt.ert_cmd_state.ERT_CMD_STATE_QUEUED
    bench.context.commands.stop()
    assert gemm.run.wait().name == "ERT_CMD_STATE_ABORT"
    assert second.run.wait().name == "ERT_CMD_STATE_ABORT"
    assert not hasattr(bench.xrt.ert_cmd_state, "ERT_CMD_STATE_RUNNING")


def test_running_has_a_number_and_no_name(bench: Bench) -> None:
    state = bench.xrt.ert_cmd_state(3)
    assert (int(state), state.name) == (3, "???")
    number: object = 3
    assert state != number
    with pytest.raises(ValueError, match="10"):
        bench.xrt.ert_cmd_state(10)


def test_wait_ignores_its_time_out_and_wait2_takes_none(tmp_path: Path) -> None:
    latencies = Latencies(dispatch_s=0.05)
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"], latencies, "paced"))
    gemm = bench.gemm()
    begun = bench.xrt.clock.now()
    gemm.run.start()
    assert int(gemm.run.wait(1)) == 4
    assert bench.xrt.clock.now() - begun >= 0.05
    with pytest.raises(TypeError, match="wait2"):
        gemm.run.wait2(timedelta(milliseconds=1))
    with pytest.raises(TypeError, match="wait"):
        bench.xrt.runlist(bench.context).wait(timedelta(milliseconds=1))


def test_wait_returns_a_bad_state_and_wait2_raises(bench: Bench) -> None:
    gemm = bench.gemm()
    bench.xrt.fail("execution", 1, "timeout")
    gemm.run.start()
    assert gemm.run.wait().name == "ERT_CMD_STATE_TIMEOUT"
    with pytest.raises(RuntimeError, match="ERT_CMD_STATE_TIMEOUT"):
        gemm.run.wait2()
    gemm.run.start()
    gemm.run.wait2()


def test_a_runlist_runs_in_order_as_one_command(tmp_path: Path) -> None:
    latencies = Latencies(dispatch_s=1.0, further_dispatch_s=0.25)
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"], latencies))
    gemms = [bench.gemm() for _ in range(3)]
    runlist = bench.xrt.runlist(bench.context)
    for gemm in gemms:
        runlist.add(gemm.run)
    runlist.execute()
    runlist.wait()
    assert all(np.all(gemm.result() == SIZE.K) for gemm in gemms)
    assert bench.xrt.clock.seconds["dispatch"] == 1.5

    bench.xrt.fail("execution", 2, "error")
    runlist.execute()
    with pytest.raises(RuntimeError, match="run 1 in state 5"):
        runlist.wait()
    assert [int(gemm.run.state()) for gemm in gemms] == [4, 5, 6]


def test_a_runlist_takes_no_runs_of_other_contexts(bench: Bench) -> None:
    other = bench.xrt.hw_context(bench.device, bench.uuid)
    runlist = bench.xrt.runlist(other)
    with pytest.raises(RuntimeError, match="another hw_context"):
        runlist.add(bench.gemm().run)
    with pytest.raises(TypeError, match="add"):
        runlist.add(bench.kernel)
    runlist.execute()  # of nothing
    runlist.wait()


def test_a_runlist_must_be_idle(bench: Bench) -> None:
    runlist = bench.xrt.runlist(bench.context)
    gemm = bench.gemm()
    runlist.add(gemm.run)
    bench.xrt.fail("execution", 1, "hang")
    runlist.execute()
    with pytest.raises(RuntimeError, match="must be idle"):
        runlist.execute()
    with pytest.raises(RuntimeError, match="must be idle"):
        runlist.add(gemm.run)
    bench.context.commands.stop()


# --- limits, and what is left behind


def test_contexts_are_limited_and_given_back(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"]))
    others = [bench.xrt.hw_context(bench.device, bench.uuid) for _ in range(5)]
    assert bench.xrt.open_contexts == 6
    with pytest.raises(RuntimeError, match=r"CREATE_HWCTX.*0x2000003, 6 contexts are in use"):
        bench.xrt.hw_context(bench.device, bench.uuid)
    others.pop()
    assert bench.xrt.open_contexts == 5
    bench.xrt.hw_context(bench.device, bench.uuid)


def test_four_commands_are_in_flight_at_most(bench: Bench) -> None:
    gemms = [bench.gemm() for _ in range(HWCTX_MAX_CMDS + 1)]
    bench.xrt.fail("execution", 1, "hang")
    for gemm in gemms[:-1]:
        gemm.run.start()
    started = threading.Event()

    def start_the_last() -> None:
        gemms[-1].run.start()
        started.set()

    thread = threading.Thread(target=start_the_last)
    thread.start()
    # The others cannot end, so this cannot start; a slow computer can only make that look right.
    assert not started.wait(0.05)
    bench.context.commands.stop()  # ends the first four
    thread.join()
    assert started.is_set()
    assert [int(gemm.run.wait()) for gemm in gemms[:-1]] == [6] * HWCTX_MAX_CMDS


def test_an_array_of_another_generation_gives_zeros_without_an_error(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu2"]), DESIGNS["npu1"])
    gemm = bench.gemm()
    gemm.buffers[3].write(np.ones(SIZE.M * SIZE.N, np.float32), 0)
    gemm.buffers[3].sync(IN)
    assert not gemm.compute().any()
    assert bench.xrt.messages == []


def test_commands_of_another_context_pay_for_a_switch(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"], Latencies(switch_s=1.0)))
    context = bench.xrt.hw_context(bench.device, bench.uuid)
    kernel = bench.xrt.kernel(context, "MLIR_AIE")
    other = Bench(bench.xrt, bench.device, context, kernel, bench.design)
    first, second = bench.gemm(), other.gemm()
    for gemm in (first, first, second, second, first):
        gemm.compute()
    assert bench.xrt.clock.counts["switch"] == 2
    assert bench.xrt.clock.seconds["switch"] == 2.0


def test_time_is_counted_by_kind(tmp_path: Path) -> None:
    latencies = Latencies(
        dispatch_s=1.0, flops_per_s=2.0, bytes_per_s=1e9, sync_s=0.5, sync_bytes_per_s=4.0
    )
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"], latencies))
    gemm = bench.gemm()
    before = bench.xrt.clock.seconds
    gemm.compute()
    gemm.buffers[1].sync(IN, 8, 0)
    spent = {kind: s - before[kind] for kind, s in bench.xrt.clock.seconds.items()}
    assert spent == {
        "dispatch": 1.0,
        "kernel": SIZE.flops / 2.0,
        "sync.out": 0.5 + 4 * SIZE.M * SIZE.N / 4.0,
        "sync.in": 0.5 + 8 / 4.0,
        "switch": 0.0,
        "wake_up": 0.0,
    }


def test_bytes_count_where_they_take_longer(tmp_path: Path) -> None:
    latencies = Latencies(flops_per_s=1e18, bytes_per_s=1.0)
    bench = open_bench(tmp_path, XrtEmulator(GENERATIONS["npu1"], latencies))
    bench.gemm().compute()
    # One block: A, B and C pass the shims once.
    nbytes = 2 * SIZE.M * SIZE.K + 2 * SIZE.K * SIZE.N + 4 * SIZE.M * SIZE.N
    assert bench.xrt.clock.seconds["kernel"] == nbytes


def test_a_flipped_result_is_not_reported(bench: Bench) -> None:
    gemm = bench.gemm()
    bench.xrt.fail("execution", 1, "flip")
    found = gemm.compute()
    assert np.count_nonzero(found != SIZE.K) == 4  # one for each column's task
    assert np.all(gemm.compute() == SIZE.K)


def test_after_a_loss_everything_fails(bench: Bench) -> None:
    gemm = bench.gemm()
    bench.xrt.fail("execution", 1, "lost")
    gemm.run.start()
    assert gemm.run.wait().name == "ERT_CMD_STATE_ABORT"
    calls: tuple[Callable[[], object], ...] = (
        gemm.run.start,
        lambda: gemm.buffers[0].sync(IN),
        lambda: bench.buffer(4),
        lambda: bench.xrt.device(0),
        lambda: gemm.run.set_arg(0, 3),
        lambda: bench.xrt.hw_context(bench.device, bench.uuid),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="No such device"):
            call()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    xrt = XrtEmulator(GENERATIONS["npu1"])
    threads = threading.active_count()
    bench = open_bench(tmp_path, xrt)
    gemms = [bench.gemm() for _ in range(3)]
    xrt.fail("execution", 2, "hang")
    runs = [gemm.run for gemm in gemms]
    while runs:
        runs.pop(0).start()
    assert threading.active_count() == threads + 1
    del gemms, bench  # nothing else: pyxrt has no close
    assert (xrt.open_contexts, xrt.memory.live_buffers) == (0, 0)
    assert threading.active_count() == threads
