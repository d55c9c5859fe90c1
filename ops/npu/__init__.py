"""GEMM on the AMD Ryzen AI NPU, as data.

A design is described once and read twice: by an emulator, which moves data by exactly these
patterns, and by a generator of IRON programs. `generation` has the hardware's limits, `design` what
one xclbin holds and how a product of any size flows through it, `program` what an instruction
stream says and `instructions` its words, `checker` refuses what breaks a limit. On the host,
`packing` converts between row-major fp32 and the NPU's `layout`; `ops` are pack, multiply and
unpack as ops of a graph, `kernels` how they run, `expansion` replaces a matmul by them, `catalogue`
lists the kernels. `iron_gemm` makes an IRON program of a design, `streaming` describes elementwise
work and `iron_streaming` makes programs of that; `mlp` puts both together, `standard` names what
can be built; `iron_release` and `iron_pin` hold the one release of mlir-aie they are written for.

Nothing here was run on hardware.
"""
