"""Functions from a graph to a schedule, one file a family.

- `cpu` everything on the CPU's lanes, large nodes divided over all of them
"""
