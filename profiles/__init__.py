"""How long things take: what is known of a machine's speed.

- `cost` predicts the seconds of a node
"""
