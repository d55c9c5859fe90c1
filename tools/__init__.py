"""The commands; the only room that prints.

- `cli` the command `aieflow`; one file a command: `train`, `generate`, `plan`, `simulate`,
  `devices`, `bench`
- what they share: `console`, `model_options`, `run_options`, `machine_options`, `progress`,
  `summary`;
  `machines` opens the devices asked for, `emulation` the NPU of a described machine, `device_rates`
- what `bench` measures: `bench_train`, `bench_memory`, `bench_scaling`, `bench_gemm`, `bench_ops`,
  `bench_overhead`, `bench_overlap`, `bench_opencl`; with `bench_node`, `peer`, `resident_memory`
- scripts for developers: `make_vocabulary`, `make_oracle` (with `oracle`), `check_export`,
  `check_resume`, `check_growth`; run by another Python: `peer_training`, `peer_ops`
"""
