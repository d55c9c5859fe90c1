"""The one tree of exceptions.

```
AieflowError
 ├─ GraphError        a graph breaks a rule; prints the node and its neighbours
 ├─ PlanError         a graph cannot be placed (no device has a kernel, no memory left)
 ├─ DeviceError       a device refused or failed; names device, node, the driver's own words
 ├─ InputError        a file or an argument is not usable; says which, where, and what would be
 │   └─ ProfileError  a calibration is missing, stale or unreadable; says which command makes it
 └─ TrainingError     a training run cannot go on (its loss is not finite); names the training step
```

A message holds the offending value, where it was, and the remedy. `InputError` is the user's
mistake (exit code 2); the others end a command with exit code 1.
"""


class AieflowError(Exception):
    """The root: every error that aieflow raises on purpose."""


class GraphError(AieflowError):
    """A graph breaks a rule of `ops.graph` or of an op's shape rule."""


class PlanError(AieflowError):
    """A graph cannot be placed: no device has a kernel for a node, or memory is short."""


class DeviceError(AieflowError):
    """A device refused or failed; names the device, the node and the driver's own words."""

    def __init__(self, message: str, device: str | None = None) -> None:
        super().__init__(message)
        self.device = device  # its name, where it is known


class InputError(AieflowError):
    """A file or an argument is not usable; says which, where, and what would be."""


class ProfileError(InputError):
    """A calibration is missing, stale or unreadable; says which command makes it."""


class TrainingError(AieflowError):
    """A training run cannot go on; names the training step and what was kept."""
