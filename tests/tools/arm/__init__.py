"""Runs the CPU kernels as 64-bit ARM code on another machine, in QEMU: `python -m tests.tools.arm`."""
