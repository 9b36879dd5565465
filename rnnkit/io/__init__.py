"""Files: parameters as safetensors, checkpoints of training runs, and the weights of Keras models."""

from rnnkit.io.files import from_keras, load, save

__all__ = ["from_keras", "load", "save"]
