"""A text tower of the tests: the vector of "image N" is the embedding of the N-th image that it was given."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyTower(nn.Module):
    """One row of a table for each text that ends in a number."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.clone())

    def forward(self, texts: list[str]) -> Tensor:
        rows = [int(text.rpartition(" ")[2]) for text in texts]
        return self.table[torch.tensor(rows)]
