"""Files: parameters as safetensors, checkpoints of a training run, and weights of Keras models."""

from rnnkit.io.files import from_keras, load, save

__all__ = ["from_keras", "load", "save"]
