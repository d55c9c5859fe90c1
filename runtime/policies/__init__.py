"""Functions that decide who runs what.

- `fixed` the device of each node, by a rule; `cpu` the lanes of each node on its device
"""
