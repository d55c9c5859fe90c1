"""CPU kernels: `catalogue` lists one for each op, the families stand beside those of `ops`.

`compile` makes machine code of them, `blas` is the matrix product they call, `reduction`,
`exponential` and `mask` are what they share inside loops, `operand` how they see their memory.
"""
