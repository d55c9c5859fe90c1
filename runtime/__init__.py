"""Schedule, plan, execute and trace any graph; knows `devices.base` and no concrete device.

- `machine` the devices that a program runs on: graphs in, executors out
- `placement` graph to plan: `policies/` say where nodes run, `choice` asks those that weigh costs
- `layout` nodes on devices to plan: `expansion` turns a product on the NPU into packs, products and
  unpacks, `ordering` and `lookahead` give nodes their order, `schedule` holds who runs what
- `memory` a place for every value; `transfer` on which side it is valid and what must move;
  `hazards` which step must follow which, `precedence` which nodes surely do; `saving` which states
  are kept aside; `plan` all of it together; `device_memory` whether devices have what it needs
- `state` which steps may run now, as a pure state machine
- `binding` arrays for values; `states` what lives from run to run, and where it is valid
- `executor` memory, bound kernels and threads of a plan; `worker` the thread of one lane
- `simulate` a plan in virtual time, `step_cost` what its steps cost, `bounds` what no schedule
  undercuts (`needs` of each node, `cut` of the graph in phases), `gap` what lies between
- `outline` of a plan and recordings of its runs, which can be sent to another process;
  `lane_states` what lanes did with every moment, `timeline_states` the same of a trace file,
  `account` by op and lane, `outliers` among steps, `what_if` by replay
- `drift` whether runs take other times than before, `observed` what a traced run says of works,
  `replan` another plan beside the running program
- `timeline` runs on one time axis, `timeline_counters` its counters; written as `chrome_trace`,
  `perfetto_trace` (with `protobuf`) and `trace_database`; `trace_difference` compares two
- `trace` what a run did; `export` graphs and plans as JSON, GraphML and DOT
"""
