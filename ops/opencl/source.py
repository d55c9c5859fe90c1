"""The text of the `.cl` files of this folder.

A line `#include "name.cl"` is replaced by that file here, not by the driver: a program's text is
then all that its compiled form depends on, so it can be kept by its content.
"""

import re
from pathlib import Path

from aieflow.ops.errors import DeviceError

FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "(\w+)\.cl"$', re.MULTILINE)


def read_source(name: str) -> str:
    """The text of `name`.cl with what it includes; raises DeviceError where there is none."""
    file = FOLDER / f"{name}.cl"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DeviceError(f"no OpenCL source {name!r}: {error}") from error
    return _INCLUDE.sub(lambda include: read_source(include[1]), text)
