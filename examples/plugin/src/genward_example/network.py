"""The torch module of the Gaussian family, apart so that announcing the family does not import torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianNetwork(nn.Module):
    """Mean and Cholesky factor of a normal law over `width` encoded values."""

    def __init__(self, width: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.mean = nn.Parameter(torch.zeros(width))
        self.lower = nn.Parameter(torch.zeros(width, width))
        self.log_diagonal = nn.Parameter(torch.zeros(width))

    def factor(self) -> Tensor:
        """L (width, width), lower triangular with a positive diagonal."""
        return torch.tril(self.lower, -1) + torch.diag(self.floor + torch.exp(self.log_diagonal))

    def surprise(self, x: Tensor) -> Tensor:
        """Negative log-likelihood (B,) in nats, without its constant."""
        factor = self.factor()
        z = torch.linalg.solve_triangular(factor, (x - self.mean).unsqueeze(-1), upper=False).squeeze(-1)
        return 0.5 * (z * z).sum(-1) + torch.log(torch.diagonal(factor)).sum()

    def forward(self, z: Tensor) -> Tensor:
        """Encoded rows (B, width) from noise (B, width)."""
        return self.mean + z @ self.factor().T
