"""The commands; the only room that prints.

- `cli` the command `aieflow`; one file a command: `train`, `generate`, `plan`, `devices`, `bench`
- what they share: `console`, `model_options`, `run_options`, `progress`, `summary`
- scripts for developers: `make_vocabulary`, `make_oracle` (with `oracle`), `check_export`,
  `check_resume`
"""
