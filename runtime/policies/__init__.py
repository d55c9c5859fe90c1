"""Functions that decide who runs what.

- `fixed` the device of each node, by a rule; `cpu` the lanes of each node on its device;
  `division` how many they may be; `ways` those of some nodes, chosen one by one
- `tasks` what each node takes on each device, as flat tables (as arrays: `flat`; `once` keeps
  what is reckoned of them); `booking` time on
  resources, promised node by node: machine code, as is `estimate`, what an assignment takes in
  virtual time (`step_layout`, `virtual_run`)
- `heft`, `peft`, `dmda` list schedulers
- `balance` shares of nodes that keep all devices busy, and what it costs to leave them
- `best` the best of many assignments, for an `objective`, improved by `local_search`
  (`machine_code`: `climb`), and with their order by `sequence_search` (`sequence`
  reckons what an order takes, `sequence_moves` changes it)
"""
