"""Compiled programs of an OpenCL device, in memory and in a folder that the caller chooses.

A program is a source with constants. Compiling takes the driver from tenths of a second to seconds,
so the binary is kept in a file named by the hash of all that it depends on: the source's text, the
constants, the device, the driver's version. The file is the SHA-256 of the binary and the binary,
because drivers trust what they are given: a damaged file must not reach them. It is written under
another name and renamed. A file that cannot be used is made again, and noted.
"""

import hashlib
import os
import threading
import warnings
from pathlib import Path
from typing import TypeAlias

from aieflow.devices.opencl_driver import OpenClInfo, cl, naming
from aieflow.ops.opencl.source import read_source

Constants: TypeAlias = tuple[tuple[str, int | float], ...]
DIGEST_NBYTES = 32
STANDARD = "-cl-std=CL1.2"  # what every driver knows


def options_of(constants: Constants) -> list[str]:
    """The compiler's options: the language and one definition for each constant.

    >>> options_of((("D", 64), ("SCALE", 0.125)))
    ['-cl-std=CL1.2', '-DD=64', '-DSCALE=0.125f']
    """
    definitions = [
        f"-D{name}={value!r}f" if isinstance(value, float) else f"-D{name}={value}"
        for name, value in constants
    ]
    return [STANDARD, *definitions]


class Programs:
    """Programs for one device; `cache` is the folder of binaries, `notes` what a user may want."""

    def __init__(
        self, context: cl.Context, info: OpenClInfo, cache: Path | None, notes: list[str]
    ) -> None:
        self._context = context
        self._info = info
        self._cache = cache
        self._notes = notes
        self._built: dict[tuple[str, Constants], cl.Program] = {}
        self._lock = threading.Lock()

    def program(self, source: str, constants: Constants, node: str) -> cl.Program:
        """The compiled program, on behalf of `node`; raises DeviceError with the compiler's log."""
        with self._lock:
            program = self._built.get((source, constants))
            if program is None:
                text = read_source(source)
                program = self._load(text, constants)
                if program is None:
                    with naming(f"node {node}: compiling {source}.cl with {dict(constants)}"):
                        program = self._compile(text, constants)
                    self._store(program, text, constants)
                self._built[source, constants] = program
            return program

    def close(self) -> None:
        """Forget all programs."""
        self._built.clear()

    def _compile(self, text: str, constants: Constants) -> cl.Program:
        program = cl.Program(self._context, text)
        with warnings.catch_warnings():
            # pyopencl warns of a compiler that says anything at all, and of `int_ptr` before
            # `build`, which is how to do without its own cache in the user's home
            warnings.simplefilter("ignore")
            _ = program.int_ptr
            return program.build(options_of(constants), [self._info.device])

    def _file(self, text: str, constants: Constants) -> Path | None:
        if self._cache is None:
            return None
        info = self._info
        parts = (
            text,
            *options_of(constants),
            info.platform,
            info.name,
            info.driver,
            info.version,
        )
        return self._cache / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.bin"

    def _load(self, text: str, constants: Constants) -> cl.Program | None:
        file = self._file(text, constants)
        if file is None:
            return None
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"igpu: the cache file {file.name} cannot be read ({error}): compiled again")
            return None
        digest, binary = content[:DIGEST_NBYTES], content[DIGEST_NBYTES:]
        fault = "is damaged"
        if hashlib.sha256(binary).digest() == digest:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a driver's remarks on a good binary
                    program = cl.Program(self._context, [self._info.device], [binary])
                    return program.build(options_of(constants), [self._info.device])
            except cl.Error as error:
                fault = f"was refused by the driver ({error})"
        self._note(f"igpu: the cache file {file.name} {fault}: compiled again")
        return None

    def _store(self, program: cl.Program, text: str, constants: Constants) -> None:
        file = self._file(text, constants)
        if file is None:
            return
        binaries = program.get_info(cl.program_info.BINARIES)
        assert isinstance(binaries, list)
        binary = bytes(binaries[0])
        hidden = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            hidden.write_bytes(hashlib.sha256(binary).digest() + binary)
            hidden.replace(file)
        except OSError as error:
            self._note(f"igpu: compiled kernels cannot be kept in {file.parent}: {error}")

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
