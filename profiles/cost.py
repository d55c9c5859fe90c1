"""Predicts how long a node takes on a device.

The model is the roofline (Williams et al. 2009): launch + the longer of FLOPs at the compute rate
and bytes at the memory bandwidth.

>>> RooflineCost(flops_per_s=50e9, bytes_per_s=10e9, launch_s=5e-6).seconds(flops=1e9, nbytes=1e6)
0.020005
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RooflineCost:
    """Rates of one lane of a device."""

    flops_per_s: float
    bytes_per_s: float
    launch_s: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """Predicted seconds of a node with that many FLOPs and bytes on one lane."""
        return self.launch_s + max(flops / self.flops_per_s, nbytes / self.bytes_per_s)


# Of one core of today's processors, not of this computer: enough to tell large nodes from small.
TYPICAL_CORE = RooflineCost(flops_per_s=60e9, bytes_per_s=10e9, launch_s=5e-6)
