"""RNN, GRU and LSTM that are instances of both rnnkit.torch's classes and torch.nn's, for code that tests `isinstance`.

They compute what `rnnkit.torch.RNN`, `GRU` and `LSTM` compute, and take the same arguments. Use them only where other
code asks `isinstance(module, torch.nn.LSTM)`. What they cost:

    torch.compile  Dynamo does not trace instances of torch.nn.RNN, GRU and LSTM. It breaks the graph at the layer, and
                   runs the code that calls it without compiling it. With fullgraph=True it raises.
    quantization   torch.ao.quantization goes by the exact class: it leaves these layers as it leaves rnnkit.torch's.

`rnnkit.torch.replace(model, subclasses=True)` puts them into a model. rnnkit.torch's Cells need no such class: they are
instances of torch.nn's anyway, which torch.compile does trace.
"""

from __future__ import annotations

from torch import nn

from rnnkit.torch import layers


class RNN(layers.RNN, nn.RNN):
    """`rnnkit.torch.RNN`, with its arguments, that is an instance of torch.nn.RNN.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.subclasses.RNN(4, 6)
        >>> isinstance(layer, torch.nn.RNN) and isinstance(layer, rnnkit.torch.RNN)
        True
    """


class GRU(layers.GRU, nn.GRU):
    """`rnnkit.torch.GRU`, with its arguments, that is an instance of torch.nn.GRU.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.subclasses.GRU(4, 6)
        >>> isinstance(layer, torch.nn.GRU) and isinstance(layer, rnnkit.torch.GRU)
        True
    """


class LSTM(layers.LSTM, nn.LSTM):
    """`rnnkit.torch.LSTM`, with its arguments, that is an instance of torch.nn.LSTM.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.subclasses.LSTM(4, 6)
        >>> isinstance(layer, torch.nn.LSTM) and isinstance(layer, rnnkit.torch.LSTM)
        True
    """
