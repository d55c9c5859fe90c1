"""CPU kernels: `catalogue` lists one for each op, the families stand beside those of `ops`.

`compile` makes machine code of them. `gemm` is our own matrix product, by tiles that `vector`
writes in LLVM's instructions, `blas` the one that small products call; `reduction`, `exponential`
and `mask` are what the families share inside loops, `operand` how they see their memory.
"""
