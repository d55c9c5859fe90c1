"""What a computation is, apart from where and when it runs. Imports nothing of ours.

- `errors` the one tree of exceptions; `spec` shape and dtype; `op` an entry of the catalogue
- `graph` values and nodes in program order; `builder` writes one; `grad` appends the backward pass
- `interpret` runs a graph by the ops' reference kernels
- the families, forward beside backward: `matmul`, `norm`, `attention`, `pointwise`, `embedding`,
  `loss`, `optim`, `batch`; `random` the bits of dropout; `catalogue` all ops by name
- `check` holds another device's product against the host's
- `kernel` what a kernel of a device must say of itself; `cpu/`, `opencl/`, `npu/` the kernels
"""
