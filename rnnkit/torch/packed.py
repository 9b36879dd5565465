"""PackedSequence: from its data to the padded layout of the kernels, and back."""

from __future__ import annotations

import torch

from rnnkit.torch.arrays import Tensor


class Layout:
    """Where the row-steps of a PackedSequence are in its padded form (T, B).

    A PackedSequence holds, for each step in turn, the rows that are longer than that step, sorted by length. B is read
    from the host's `batch_sizes`, unless `rows` gives it: torch.compile cannot read a value.

    Nothing is read from a device. `batch_sizes`, which PyTorch keeps on the host, are sent to the device, and the
    places are computed there.
    """

    def __init__(self, batch_sizes: Tensor, steps: int, rows: int | None, device: Tensor) -> None:
        self.T = batch_sizes.shape[0]
        self.B = int(batch_sizes[0]) if rows is None else rows
        self.steps = steps
        self._batch_sizes = batch_sizes
        self._device = device
        self._index: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(B,) the number of steps of each row, on the host."""
        return (self._batch_sizes[:, None] > torch.arange(self.B, device=self._batch_sizes.device)).sum(0)

    @property
    def index(self) -> Tensor:
        """(N,) the place of each row-step among the T*B of the padded form."""
        if self._index is None:
            # non_blocking: else PyTorch waits for the device. Memory that is not pinned is staged before `to` returns.
            sizes = self._batch_sizes.to(self._device, non_blocking=True)
            ends = sizes.cumsum(0)
            n = torch.arange(self.steps, device=ends.device)
            t = torch.searchsorted(ends, n, right=True)
            first = (ends - sizes).index_select(0, t)
            self._index = t * self.B + n - first
        return self._index

    def padded(self, data: Tensor) -> Tensor:
        """data (N, K) as (T, B, K), zero past each row's length."""
        whole = data.new_zeros((self.T * self.B, data.shape[1]))
        return whole.index_copy(0, self.index, data).view(self.T, self.B, data.shape[1])

    def packed(self, padded: Tensor) -> Tensor:
        """(T, B, K) as (N, K)."""
        return padded.reshape(self.T * self.B, padded.shape[2]).index_select(0, self.index)
