"""Tensors in a safetensors file, written and read without a second copy in memory.

The format: 8 bytes that hold the header's length N (little-endian), N bytes of JSON (name ->
dtype, shape, offsets; padded with spaces), then the tensors' bytes, row-major, without gaps.

The safetensors library judges every file that is read here (header, coverage, overlaps). Bytes are
moved by hand for three reasons: before its version 0.8 the library copied all tensors before it
wrote the first; it hides the error number of a full disk; and numpy has no bfloat16, which half of
the published models hold. Here float16 and bfloat16 become float32, a chunk at a time.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from aieflow.ops.errors import InputError

READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16: the upper half of a float32
CHUNK = 1 << 18  # elements moved at a time, 1 MiB of float32
_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies on disk, and in which form."""

    path: Path
    name: str  # as in the file
    dtype: str  # the format's code: F32, F16, BF16, …
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


def write_tensors(
    path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], metadata: Mapping[str, str]
) -> None:
    """Write contiguous float32 tensors as a safetensors file; raises OSError as the disk does."""
    with path.open("wb") as file:
        file.write(_header(tensors, metadata))
        for tensor in tensors.values():
            file.write(tensor.astype("<f4", copy=False).data.cast("B"))


def file_nbytes(tensors: Mapping[str, npt.NDArray[np.float32]], metadata: Mapping[str, str]) -> int:
    """Size of the file that `write_tensors` would write."""
    return len(_header(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors.values())


def _header(tensors: Mapping[str, npt.NDArray[np.float32]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; raises InputError where the file is no whole safetensors.

    Nothing but the header is read.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except SafetensorError as error:
        raise InputError(_not_safetensors(path, str(error))) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            path,
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def _not_safetensors(path: Path, reason: str) -> str:
    with path.open("rb") as file:
        start = file.read(len(_GIT_LFS))
    if start == _GIT_LFS:
        return f"{path}: a git-lfs pointer, not the weights: run `git lfs pull` in {path.parent}"
    return (
        f"{path}: {path.stat().st_size} bytes that are no whole safetensors file ({reason}): "
        "copy or download it again"
    )


def read_tensor(stored: StoredTensor, into: npt.NDArray[np.float32]) -> None:
    """Fill `into`, of the stored shape and contiguous, with the tensor's values as float32.

    Raises InputError where the file ends early or a value is not finite.
    """
    flat = _flat_view(stored, into)
    for start, chunk in _chunks(stored, flat.size):
        if not np.isfinite(chunk).all():
            index = start + int(np.argmin(np.isfinite(chunk)))
            raise InputError(
                f"{stored.path}: {stored.name} holds {chunk[index - start]} at element {index}: "
                "the weights are damaged; take another copy or an earlier checkpoint"
            )
        flat[start : start + chunk.size] = chunk


def is_equal(stored: StoredTensor, values: npt.NDArray[np.float32]) -> bool:
    """Whether the stored tensor holds the same shape and values as `values`, contiguous."""
    if stored.shape != values.shape or stored.dtype not in READABLE:
        return False
    flat = _flat_view(stored, values)
    return all(
        np.array_equal(chunk, flat[start : start + chunk.size])
        for start, chunk in _chunks(stored, flat.size)
    )


def _flat_view(stored: StoredTensor, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if values.shape != stored.shape or not values.flags.c_contiguous:
        raise ValueError(f"{stored.name}: {stored.shape} on disk, {values.shape} in memory")
    return values.reshape(-1)


def _chunks(stored: StoredTensor, size: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for start in range(0, size, CHUNK):
            count = min(CHUNK, size - start)
            raw = np.fromfile(file, READABLE[stored.dtype], count)
            if raw.size != count:
                raise InputError(f"{stored.path}: ends within {stored.name}: copy it again")
            if stored.dtype == "BF16":
                yield start, (raw.astype(np.uint32) << 16).view(np.float32)
            else:
                yield start, raw.astype(np.float32, copy=False)
