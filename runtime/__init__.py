"""Schedule, plan, execute and trace any graph; knows `devices.base` and no concrete device.

- `machine` the devices that a program runs on: graphs in, executors out
- `placement` graph to plan: `policies/` say where nodes run, `expansion` turns a product on the NPU
  into packs, products and unpacks, `schedule` holds who runs what
- `memory` a place for every value; `transfer` on which side it is valid and what must move;
  `hazards` which step must follow which; `plan` all of it together
- `state` which steps may run now, as a pure state machine
- `binding` arrays for values; `states` what lives from run to run, and where it is valid
- `executor` memory, bound kernels and threads of a plan; `worker` the thread of one lane
- `simulate` a plan in virtual time, `step_cost` what its steps cost, `bounds` what no schedule
  undercuts
- `trace` what a run did; `export` graphs and plans as JSON, GraphML and DOT
"""
