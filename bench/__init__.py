"""Throughput of rnnkit beside its peers, on this machine: parity first, then time. See `python -m bench --help`."""
