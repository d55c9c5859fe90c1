"""Where nodes run: memory, lanes and kernels of each kind of device.

- `base` what the runtime knows of a device; `registry` what works on this computer, and why not
- `cpu` the host; `fake` scripted kernels and failures, for tests
"""
