"""Where nodes run: memory, lanes and kernels of each kind of device.

- `base` what the runtime knows of a device
- `registry` opens the devices of this computer, and says what works and why the rest does not:
  `surroundings` what it looks at, `igpu_survey`, `npu_survey`
- `sensors` what this computer's sensors say, without root: `cpu_sensors` with `rapl`,
  `gpu_sensors`, `npu_sensors` with the driver's ioctl `amdxdna`, `drm_usage` of one process,
  `power_supply`; `readings` is a value with its source, or the reason why there is none
- `cpu` the host
- `opencl` the iGPU: `opencl_driver` which device, `opencl_memory` adopted memory and transfers,
  `opencl_program` compiled kernels, `opencl_tuning` which GEMM is fastest here,
  `opencl_folders` folders that must be writable
- `npu` the NPU over XRT: `xrt` what of pyxrt is used, `xrt_errors` its errors and their remedies,
  `npu_memory` buffer objects, `xclbin` the container of a design
- `xrt_emulator` pyxrt without hardware; with `_buffers` incoherent memory, `_commands` queues and
  execution, `_array` a product's dataflow, `_stream` an elementwise function's, `_moves` what DMA
  tasks move, `_clock` latencies, `_faults` failures on order
- `described` devices to plan for, that run nothing
- `fake` scripted kernels and failures, `fake_remote` the same with a memory side of its own: tests
"""
