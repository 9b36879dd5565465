"""The CPU kernels on 64-bit ARM without such a machine: `python -m tests.tools.arm`."""
