"""The commands; the only room that prints.

- `cli` the command `aieflow`; one file a command: `train`, `generate`, `plan`, `simulate`,
  `devices`, `calibrate`, `profile`, `npu`, `bench`
- what they share: `console`, `folding`, `model_options`, `run_options`, `machine_options`,
  `progress`, `summary`, `step_options`, `machine_conflicts`; `entry` is where the process begins;
  `machines` opens the devices asked for, `emulation` the NPU of a described machine, `device_rates`
- what foretelling is made of: `forecast`, `search`, `sweep`, `sweep_report`
- what `calibrate` is made of: `calibration` and `calibration_grid`, `_visit`, `_links`, `_report`;
  `fingerprint` and `computer_profile` of this computer
- what `npu` is made of: `npu_doctor`, `npu_log`, `npu_here`, `npu_smoke`, `npu_builds`,
  `npu_compile`, `npu_check`
- what `profile` is made of: `profile_run`, `profile_subject`, `profile_report`, `profile_tables`;
  `live` shows a run: `live_feed` in the run's process, `live_link`, `live_view`, `live_help` in the
  watcher's
- what sensors say beside a run: `sensor_log` reads them, `sensor_text` puts them into words;
  `energy_meter` measures each training step of `train --energy`
- `trace_files` the kinds of trace files, `profile_diff` compares two; `report` one HTML file on a
  run: `report_content` its data, `report_page` the page, with `report.css` and `report.js`
- what `bench` measures: `bench_train`, `bench_memory`, `bench_scaling`, `bench_gemm`, `bench_ops`,
  `bench_overhead`, `bench_overlap`, `bench_opencl`; with `bench_node`, `peer`, `resident_memory`
- scripts for developers: `make_vocabulary`, `make_pictures`, `make_oracle` (with `oracle`),
  `check_export`, `check_resume`, `check_growth`, `check_prediction`, `check_schedulers`,
  `check_watching`; run by another Python: `peer_training`, `peer_ops`, `peer_schedulers`
"""
