"""What a survey of devices looks at, and what it says of each.

A survey sees the computer through `Surroundings`, so tests can show it another one: a file system
root, an environment, the Python modules, the OpenCL devices. Texts show paths as the user knows
them, without the root.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

JOIN_RENDER = "join the group render (`sudo usermod -aG render $USER`) and log in again"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one device of this computer."""

    device: str  # `cpu`, `igpu` or `npu`
    works: bool
    description: str  # what it is, or why it does not work
    facts: Mapping[str, str]
    is_automatic: bool = False  # `--devices auto` takes it; others are chosen by name alone


class OpenClDescription(Protocol):
    """What a survey reads of an OpenCL device: `devices.opencl_driver.OpenClInfo` has it."""

    @property
    def identity(self) -> str:
        """Device and driver in one line."""
        ...

    @property
    def platform(self) -> str:
        """Who wrote the driver."""
        ...

    @property
    def name(self) -> str:
        """The device's name."""
        ...

    @property
    def driver(self) -> str:
        """The driver's version."""
        ...

    @property
    def version(self) -> str:
        """The version of OpenCL."""
        ...

    @property
    def kind(self) -> str:
        """`GPU`, `CPU` or `other`."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its global memory."""
        ...

    @property
    def is_unified(self) -> bool:
        """Whether its memory is the computer's, as the driver says."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The computer as a survey sees it."""

    root: Path  # of the file system
    environment: Mapping[str, str]
    is_installed: Callable[[str], bool]  # by name of a module
    is_accessible: Callable[[Path], bool]  # to this user, for reading and writing
    # The OpenCL devices, first the one that `open_device` opens; raises DeviceError. It imports
    # pyopencl, so a survey calls it last.
    opencl: Callable[[], Sequence[OpenClDescription]]
    python: tuple[int, int]  # this interpreter's version
    locked_nbytes: int | None  # of memory that may be locked; None: no limit

    def path(self, absolute: str) -> Path:
        """The place of an absolute path below the root."""
        return self.root / absolute.lstrip("/")

    def shown(self, path: Path) -> str:
        """A path below the root as an absolute one."""
        return f"/{path.relative_to(self.root).as_posix()}"


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A file that a driver makes for its hardware."""

    path: str  # absolute
    driver: str | None  # as far as sysfs tells
    is_accessible: bool

    def __str__(self) -> str:
        driver = f" ({self.driver})" if self.driver else ""
        return f"{self.path}{driver}{'' if self.is_accessible else ', not accessible to you'}"


def device_nodes(
    around: Surroundings, folder: str, pattern: str, classes: str
) -> tuple[DeviceNode, ...]:
    """The nodes in a folder of /dev; `classes` is where sysfs describes them."""
    nodes = []
    for file in sorted(around.path(folder).glob(pattern)):
        link = around.path(f"{classes}/{file.name}/device/driver")
        driver = link.readlink().name if link.is_symlink() else None
        nodes.append(DeviceNode(around.shown(file), driver, around.is_accessible(file)))
    return tuple(nodes)


def describe_nodes(nodes: Sequence[DeviceNode]) -> str:
    """The nodes, and what a user does about those that are closed to them."""
    text = "; ".join(map(str, nodes))
    return text if all(node.is_accessible for node in nodes) else f"{text}: {JOIN_RENDER}"


def read_text(file: Path) -> str:
    """The text of a small file; nothing where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def gib(nbytes: int) -> str:
    """A size for people."""
    return f"{nbytes / 2**30:.1f} GiB"
