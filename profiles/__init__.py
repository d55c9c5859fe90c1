"""How long things take: what is known of a machine's speed and power.

- `cost` what a cost model is; `machine_cost` seconds and watts of a described machine
- `measured_cost` seconds on this computer, from `measured` (`samples` of `work`, by `fit` where a
  work was not seen), with the `overhead` of steps; `store` keeps it on disk
- `history` what works took of late, `learned_cost` a cost model that follows it
- `figure` one number with its source, mark and range; `schema` what a described machine holds;
  `machine_file` reads one from disk; `machines/` those that aieflow ships
"""
