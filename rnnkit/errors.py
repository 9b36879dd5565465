"""What a device may fail with, by name: out of its memory, of a kind that is not served, or a launch that failed.

Each is a kind of the built-in error that NumPy code would catch. Whatever was under way returns nothing: parameters,
gradients and states of the layer are as they were. In a Sequential or Bidirectional, layers that had finished keep what
they added to their gradients, so call `zero_grad` before trying again; masks that were drawn are drawn.
"""


class DeviceMemoryError(MemoryError):
    """A call does not fit the memory that the device has left."""


class UnsupportedDeviceError(RuntimeError):
    """The device cannot run what was asked for, as bfloat16 on one made before it."""


class DeviceError(RuntimeError):
    """A kernel did not compile, a launch was refused, or a library behind it failed."""
