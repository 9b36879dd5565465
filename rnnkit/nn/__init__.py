"""Layers and modules: torch.nn's names and shapes, on NumPy and CuPy arrays."""
