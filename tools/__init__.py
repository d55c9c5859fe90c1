"""The commands; the only room that prints.

- `cli` the command `aieflow`; one file a command: `train`, `generate`, `plan`, `devices`, `bench`
- what they share: `console`, `model_options`, `run_options`, `progress`, `summary`
- what `bench` measures: `bench_train`, `bench_memory`, `bench_scaling`, `bench_gemm`, `bench_ops`,
  `bench_overhead`; with `bench_node`, `peer`, `resident_memory`
- scripts for developers: `make_vocabulary`, `make_oracle` (with `oracle`), `check_export`,
  `check_resume`; run by another Python: `peer_training`, `peer_ops`
"""
