"""What can go wrong with an NPU: each fault of XRT, driver or file is told with its remedy."""

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from aieflow.devices.npu import NpuDevice, check_xclbin
from aieflow.devices.xclbin import (
    AIE_PARTITION,
    SRAM_BANK,
    USER_METADATA,
    emulated_xclbin,
    read_xclbin,
    write_xclbin,
)
from aieflow.devices.xrt import load_pyxrt
from aieflow.devices.xrt_emulator import XrtEmulator
from aieflow.devices.xrt_emulator_faults import CallKind, Fault
from aieflow.devices.xrt_errors import REMEDIES, UNKNOWN, remedy, state_error
from aieflow.ops.errors import DeviceError, InputError
from aieflow.ops.graph import Node, Value
from aieflow.ops.kernel import Call
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.design import DESIGNS, GemmDesign
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec

NPU1, NPU2 = DESIGNS["npu1"], DESIGNS["npu2"]


@pytest.fixture
def xrt() -> XrtEmulator:
    return XrtEmulator(NPU1.generation)


@pytest.fixture
def xclbin(tmp_path: Path) -> Path:
    """A file with the design NPU1."""
    file = tmp_path / "gemm.xclbin"
    write_xclbin(file, emulated_xclbin(NPU1))
    return file


@pytest.fixture
def device(xclbin: Path, xrt: XrtEmulator) -> NpuDevice:
    """An open device with it; closed when nothing refers to it any more."""
    return NpuDevice(xrt, xclbin, NPU1, memory_nbytes=1 << 30)


def open_npu(
    path: Path, xrt: XrtEmulator, design: GemmDesign = NPU1, content: GemmDesign | None = None
) -> NpuDevice:
    """A device whose xclbin holds `content` (default: the design)."""
    file = path / "gemm.xclbin"
    write_xclbin(file, emulated_xclbin(content or design))
    return NpuDevice(xrt, file, design, memory_nbytes=1 << 30)


def matmul_node(M: int, K: int, N: int) -> Node:
    a, b = Value("a", Spec((M, K))), Value("b", Spec((K, N)))
    return Node("product", MATMUL, (a, b), (Value("c", Spec((M, N))),), {})


class Ones:
    """The product of two matrices of ones on the device: 64 everywhere."""

    def __init__(self, device: NpuDevice) -> None:
        nodes = expand_matmul(matmul_node(256, 64, 128), NPU1)
        (node,) = [node for node in nodes if node.op.name == "npu_gemm"]
        a, b, self._c = (
            device.allocate(value.spec.nbytes).data.view(value.spec.storage)
            for value in (*node.inputs, *node.outputs)
        )
        a[:] = b[:] = 0x3F80
        call = Call((a, b), (self._c,), node.attrs, np.empty(0, np.uint8))
        self._calls = [
            *(device.bind_transfer(x, "in") for x in (a, b)),
            device.bind(node, call),
            device.bind_transfer(self._c, "out"),
        ]

    def compute(self) -> Array:
        self._c[:] = 0
        for call in self._calls:
            call()
        return self._c


def test_every_remedy_is_reached_by_words_of_its_own() -> None:
    """One text of XRT, its driver or Python for each entry, as users have met them."""
    words = (
        "No module named 'pyxrt'",
        "libxrt_coreutil.so.2: cannot open shared object file: No such file or directory",
        "Python version mismatch: module was compiled for Python 3.10, but the interpreter version "
        "is incompatible: 3.12.3",
        "XILINX_XRT not set",
        "aie2_check_protocol: Incompatible firmware protocol major 7 minor 3",
        "No such device with index '0'",
        "mmap(addr=0x793258000000, len=67108864, prot=3, flags=8209, offset=4362100736) failed "
        "(err=-11): Resource temporarily unavailable",
        "DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-2): No such file or directory",
        "DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-22): Invalid argument",
        "DRM_IOCTL_AMDXDNA_GET_INFO IOCTL failed (err=95): Operation not supported",
        "DRM_IOCTL_AMDXDNA_SYNC_BO IOCTL failed (err=-19): No such device",
        "DRM_IOCTL_AMDXDNA_CONFIG_HWCTX IOCTL failed (err=62): Timer expired",
        "DRM_IOCTL_AMDXDNA_CREATE_BO IOCTL failed (err=-22): Invalid argument",
        "attempting to write past buffer size: Invalid argument",
        "No such kernel 'MLIR_AIE'",
        "failed to open xclbin",
    )
    assert [remedy(text) for text in words] == [text for _, text in REMEDIES]
    assert remedy("something new") == UNKNOWN


FAULTS: list[tuple[CallKind, Fault, str | None, str, str]] = [
    # where, how, the driver's words (None: the usual), what the error quotes, the remedy
    ("device", "refused", None, "No such device with index '0'", "xrt-smi examine"),
    ("device", "refused", "XILINX_XRT not set", "XILINX_XRT", "setup.sh"),
    ("register", "refused", None, "Operation not supported", "driver is older than XRT"),
    ("hw_context", "refused", None, "Invalid argument", "build it for this NPU's generation"),
    (
        "hw_context",
        "refused",
        "Incompatible firmware protocol major 7 minor 3",
        "protocol major 7",
        "firmware and driver do not match",
    ),
    ("hw_context", "lost", None, "err=-19", "the NPU is gone"),
    ("bo", "refused", None, "CREATE_BO", "memlock"),
    ("set_arg", "refused", None, "GET_BO_INFO", "dmesg"),
    ("sync.in", "refused", None, "SYNC_BO", "report it"),
    ("sync.out", "refused", None, "SYNC_BO", "report it"),
    ("sync.in", "lost", None, "err=-19", "the NPU is gone"),
    ("start", "refused", None, "EXEC_CMD", "bad state"),
    ("start", "lost", None, "err=-19", "the NPU is gone"),
    ("execution", "lost", None, "ABORT", "reload"),
    ("execution", "error", None, "ERROR", "dmesg"),
    ("execution", "abort", None, "ABORT", "firmware and driver may not match"),
    ("execution", "timeout", None, "TIMEOUT", "watchdog"),
    ("execution", "flip", None, "instead of 64", "aieflow npu build --anew"),
]


@pytest.mark.parametrize(
    ("kind", "how", "words", "quoted", "advice"),
    FAULTS,
    ids=[f"{kind}-{how}-{place}" for place, (kind, how, *_) in enumerate(FAULTS)],
)
def test_each_fault_while_opening_is_told_with_its_remedy(
    tmp_path: Path,
    xrt: XrtEmulator,
    kind: CallKind,
    how: Fault,
    words: str | None,
    quoted: str,
    advice: str,
) -> None:
    threads = threading.active_count()
    xrt.fail(kind, 1, how, words)
    words_found = f"^npu: .*{re.escape(quoted)}.*{re.escape(advice)}"
    with pytest.raises(DeviceError, match=words_found) as error:
        open_npu(tmp_path, xrt)
    assert error.tb is not None  # its frames live, and hold nothing of the device
    assert (xrt.open_contexts, xrt.memory.live_buffers) == (0, 0)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("kind", "how", "words", "quoted", "advice"),
    [fault for fault in FAULTS if fault[0] in ("sync.in", "sync.out", "start", "execution")],
)
def test_each_fault_while_running_is_told_with_its_place(
    device: NpuDevice,
    xrt: XrtEmulator,
    kind: CallKind,
    how: Fault,
    words: str | None,
    quoted: str,
    advice: str,
) -> None:
    product = Ones(device)
    assert np.all(product.compute() == 64)
    xrt.fail(kind, 1, how, words)
    if how == "flip":  # nobody can tell
        assert not np.all(product.compute() == 64)
        return
    place = "sync of" if kind.startswith("sync") else "node product:gemm"
    with pytest.raises(DeviceError, match=f"^npu: {place}.*{re.escape(quoted)}.*{advice}"):
        product.compute()
    if how == "lost":
        with pytest.raises(DeviceError, match="the NPU is gone"):
            product.compute()
    else:
        assert np.all(product.compute() == 64)


@pytest.mark.parametrize(("kind", "how"), [("bo", "refused"), ("set_arg", "refused")])
def test_a_fault_while_binding_is_told(
    device: NpuDevice, xrt: XrtEmulator, kind: CallKind, how: Fault
) -> None:
    xrt.fail(kind, 1, how)
    with pytest.raises(DeviceError, match="XRT says"):
        Ones(device)
    Ones(device)


def test_a_command_that_never_ends_meets_our_own_deadline(xclbin: Path, xrt: XrtEmulator) -> None:
    expected_s = [60.0, 0.001]  # of the check that opening makes, then; 20 times it is the deadline
    device = NpuDevice(xrt, xclbin, NPU1, expected_s=lambda size: expected_s.pop(0), deadline_s=0.0)
    product = Ones(device)
    xrt.fail("execution", 1, "hang")
    begun = xrt.clock.now()
    with pytest.raises(DeviceError, match=r"product:gemm: still in state 3 after 0\.02 s.*hangs"):
        product.compute()
    assert xrt.clock.now() - begun >= 0.02
    with pytest.raises(DeviceError, match="bad command state"):
        product.compute()
    threads = threading.active_count()
    device.close()
    assert threading.active_count() == threads - 1


def test_a_memlock_limit_is_told(tmp_path: Path) -> None:
    xrt = XrtEmulator(NPU1.generation, memory_nbytes=1 << 20)
    device = open_npu(tmp_path, xrt)
    with pytest.raises(DeviceError, match=r"allocating 1048577 bytes.*mmap.*ulimit -l unlimited"):
        device.allocate((1 << 20) + 1)


def test_exhausted_contexts_are_told(tmp_path: Path) -> None:
    xrt = XrtEmulator(NPU1.generation, contexts=1)
    first = open_npu(tmp_path, xrt)
    with pytest.raises(DeviceError, match=r"0x2000003.*end other programs"):
        open_npu(tmp_path, xrt)
    first.close()
    open_npu(tmp_path, xrt).close()


def test_an_absent_device_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"No such device with index '0'.*/dev/accel/accel0"):
        open_npu(tmp_path, XrtEmulator(NPU1.generation, devices=0))


def test_a_missing_xclbin_is_told(tmp_path: Path, xrt: XrtEmulator) -> None:
    with pytest.raises(InputError, match=r"none\.xclbin: No such file"):
        NpuDevice(xrt, tmp_path / "none.xclbin", NPU1)


@pytest.mark.parametrize(
    ("chip", "design", "content", "words"),
    [
        ("NPU Strix", NPU1, NPU1, "chip 'emulated NPU Strix' is of the generation npu2"),
        ("NPU Phoenix", NPU2, NPU2, "of the generation npu1, the design is of npu2"),
        ("NPU Phoenix", NPU1, NPU2, "is for the generation npu2, not npu1"),
        (
            "NPU Phoenix",
            NPU1,
            replace(NPU1, n=16),
            "'n': 16.*make it again: `aieflow npu build --anew`",
        ),
    ],
)
def test_what_does_not_match_is_told(
    tmp_path: Path, chip: str, design: GemmDesign, content: GemmDesign, words: str
) -> None:
    xrt = XrtEmulator(NPU1.generation, chip=chip)
    with pytest.raises(DeviceError, match=words):
        open_npu(tmp_path, xrt, design, content)
    assert xrt.open_contexts == 0


def test_zeros_of_an_unknown_chip_are_found(tmp_path: Path) -> None:
    """A chip whose name tells nothing, of another generation: only the result shows it."""
    xrt = XrtEmulator(NPU2.generation, chip="of next year")
    with pytest.raises(DeviceError, match=r"gives zeros: .*npu build --generation npu2`"):
        open_npu(tmp_path, xrt)


def test_the_emulators_xclbin_is_not_for_hardware(xclbin: Path) -> None:
    content = read_xclbin(xclbin)
    with pytest.raises(DeviceError, match="is for the emulator and holds no program for RyzenAI"):
        check_xclbin(xclbin, content, NPU1, "RyzenAI-npu1")
    check_xclbin(xclbin, replace(content, is_emulated=False), NPU1, "RyzenAI-npu1")


def test_an_xclbin_without_description_is_judged_by_its_result(
    xclbin: Path, xrt: XrtEmulator
) -> None:
    """One that the compiler built: the emulator cannot run it, and the check says so."""
    data = bytearray(xclbin.read_bytes())
    place = next(
        at
        for at in range(456, 456 + 7 * 40, 40)
        if int.from_bytes(data[at : at + 4], "little") == USER_METADATA
    )
    data[place : place + 4] = AIE_PARTITION.to_bytes(4, "little")
    xclbin.write_bytes(data)
    with pytest.raises(DeviceError, match="check: the command ended in ERROR"):
        NpuDevice(xrt, xclbin, NPU1, memory_nbytes=1 << 20)
    assert "holds no description" in xrt.messages[-1]


def test_a_kernel_with_too_few_arguments_is_told(tmp_path: Path, xrt: XrtEmulator) -> None:
    file = tmp_path / "gemm.xclbin"
    write_xclbin(file, emulated_xclbin(NPU1, buffers=2))
    with pytest.raises(DeviceError, match="has 5 arguments, a GEMM needs 6"):
        NpuDevice(xrt, file, NPU1)


@pytest.mark.parametrize(
    ("banks", "words"),
    [
        ({3: 0, 4: SRAM_BANK, 5: 0}, "argument 3 in 0, argument 4 in 1, argument 5 in 0"),
        ({3: 0, 5: 0}, "argument 3 in 0, argument 4 in None"),
        ({}, "argument 3 in None, argument 4 in None, argument 5 in None"),
    ],
)
def test_operands_in_different_banks_are_told(
    tmp_path: Path, xrt: XrtEmulator, banks: dict[int, int], words: str
) -> None:
    """XRT would compute on a copy of such a buffer, and leave the result there."""
    file = tmp_path / "gemm.xclbin"
    write_xclbin(file, replace(emulated_xclbin(NPU1), bank_of={1: SRAM_BANK, **banks}))
    with pytest.raises(DeviceError, match=f"{words}.*npu build"):
        NpuDevice(xrt, file, NPU1)
    assert xrt.open_contexts == 0


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("foreign", slice(0, 64), "lie in no buffer of this device"),
        ("own", slice(32, 96), "byte 32 of a buffer"),
        ("own", slice(0, 64, 2), "must be contiguous"),
    ],
)
def test_a_region_that_cannot_be_synced_is_told(
    device: NpuDevice, name: str, place: slice, words: str
) -> None:
    memory = {"foreign": np.zeros(4096, np.uint8), "own": device.allocate(4096).data}[name]
    with pytest.raises(DeviceError, match=words):
        device.bind_transfer(memory[place], "in")


def test_nodes_that_it_cannot_run_are_told(device: NpuDevice) -> None:
    node = matmul_node(1, 1, 1)
    call = Call((), (), {}, np.empty(0, np.uint8))
    with pytest.raises(DeviceError, match="node product: matmul is several nodes"):
        device.bind(node, call)
    other = Node("other", replace(MATMUL, name="gelu"), node.inputs, node.outputs, {})
    with pytest.raises(DeviceError, match="node other: no kernel for gelu; there are npu_pack"):
        device.bind(other, call)


# --- loading pyxrt


def test_a_missing_pyxrt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    with pytest.raises(DeviceError, match=r"importing pyxrt.*pyxrt"):
        load_pyxrt()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("raise ImportError('undefined symbol: _PyUnicode_Ready')", "built for another Python"),
        ("raise ImportError('libxrt_coreutil.so.2: cannot open shared object file')", "setup.sh"),
        ("raise RuntimeError('XILINX_XRT not set')", "XILINX_XRT is not set"),
        ("import pyxrt_that_is_not_there", "dmesg"),
    ],
)
def test_a_broken_pyxrt_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, advice: str
) -> None:
    (tmp_path / "pyxrt.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyxrt", raising=False)
    with pytest.raises(DeviceError, match=f"importing pyxrt: XRT says .*{advice}"):
        load_pyxrt()


def test_a_pyxrt_that_works_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pyxrt")
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    assert load_pyxrt() is module


def test_states_that_xrt_may_add_are_told() -> None:
    assert "state 10" in str(state_error("node x", 10))
