"""Philox4x32-10 in one scalar source for both Numba targets, and in CUDA C++."""
