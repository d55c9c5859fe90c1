"""How long things take: what is known of a machine's speed and power.

- `cost` predicts the seconds of a node; `machine_cost` seconds and watts of a described machine
- `figure` one number with its source, mark and range; `schema` what a described machine holds;
  `machine_file` reads one from disk; `machines/` those that aieflow ships
"""
