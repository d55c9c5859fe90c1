"""Schedule, plan, execute and trace any graph; knows `devices.base` and no concrete device.

- `machine` the devices that a program runs on: graphs in, executors out
- `schedule` who runs what; `policies/` functions that decide it; `placement` graph to plan
- `memory` a slot for every value; `hazards` which step must follow which; `plan` all of it together
- `state` which steps may run now, as a pure state machine
- `executor` memory, bound kernels and threads of a plan; `worker` the thread of one lane
- `trace` what a run did; `export` graphs and plans as JSON, GraphML and DOT
"""
