"""Kernels in OpenCL C: the `.cl` files, and how each op's nodes are launched."""
