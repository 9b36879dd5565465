"""Errors of a device: its memory is full, it lacks a feature, or a launch failed.

Each is a subclass of the built-in error that NumPy code would catch. The failed call returns nothing, and parameters,
gradients and states of the layer are unchanged. In a Sequential or Bidirectional, layers that had finished keep what
they added to their gradients, so call `zero_grad` before retrying; random numbers that were drawn for dropout are not
drawn again.
"""


class DeviceMemoryError(MemoryError):
    """The arrays of a call do not fit into the free memory of the device.

    Examples:
        >>> import rnnkit.errors
        >>> issubclass(rnnkit.errors.DeviceMemoryError, MemoryError)
        True
    """


class UnsupportedDeviceError(RuntimeError):
    """The device lacks a required feature, such as bfloat16 arithmetic on an older GPU.

    Examples:
        >>> import rnnkit.errors
        >>> issubclass(rnnkit.errors.UnsupportedDeviceError, RuntimeError)
        True
    """


class DeviceError(RuntimeError):
    """A kernel did not compile, a launch was refused, or a CUDA library failed.

    Examples:
        >>> import rnnkit.errors
        >>> issubclass(rnnkit.errors.DeviceError, RuntimeError)
        True
    """
