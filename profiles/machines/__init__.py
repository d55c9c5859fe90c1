"""Described machines, one TOML file each; `profiles.machine_file` reads them.

- `phoenix` AMD Ryzen 9 7940HS: Zen 4, Radeon 780M, XDNA1
- `phoenix-paper` the same chip with the slow CPU kernels of Rösti & Franz (arXiv:2504.03083)
- `strix` AMD Ryzen AI 9 HX 370: Zen 5, Radeon 890M, XDNA2

Nothing in them was measured by this project: every figure names its source and how far to trust it.
"""
