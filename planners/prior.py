"""Where candidate actions come from: an affine map from whitened coordinates to bounded action blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ActionPrior:
    """``action = clip(mean + basis @ x, low, high)`` with ``x`` standard normal under the prior.

    With K < A the search runs in fewer dimensions than an action block has numbers, e.g. in the leading principal
    components of the data's action blocks. The four tensors are the whole state: ``ActionPrior(**prior.tensors())``
    is an exact copy. They share one floating dtype and one device, which are those of the planner.

    Attributes:
        mean: (A,) action block at ``x = 0``, in environment units.
        basis: (A, K) environment units per whitened unit, linearly independent columns, 1 <= K <= A.
        low: (A,) smallest allowed values, -inf where unbounded.
        high: (A,) largest allowed values, inf where unbounded.

    Raises:
        ValueError: shapes, dtypes or devices disagree, a value is NaN, bounds are empty, or columns of the basis
            are linearly dependent.
    """

    mean: Tensor
    basis: Tensor
    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.numel() == 0:
            raise ValueError(f"mean has shape {tuple(self.mean.shape)}; expected (A,) with A >= 1")
        width = self.mean.shape[0]
        if self.basis.ndim != 2 or self.basis.shape[0] != width or not 1 <= self.basis.shape[1] <= width:
            raise ValueError(
                f"basis has shape {tuple(self.basis.shape)}; expected ({width}, K) with 1 <= K <= {width}: "
                f"one row per number of an action block, one column per component"
            )
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound.shape != (width,):
                raise ValueError(f"{name} has shape {tuple(bound.shape)}; expected ({width},) like mean")
        self._check_kind()
        self._check_values()

    def _check_kind(self) -> None:
        for name, tensor in self.tensors().items():
            if tensor.dtype != self.dtype or tensor.device != self.device:
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device} but mean is {self.dtype} on {self.device}; "
                    f"bring all four tensors to one dtype and device"
                )
        if not self.dtype.is_floating_point:
            raise ValueError(f"the prior's tensors are {self.dtype}; expected a floating dtype such as torch.float32")

    def _check_values(self) -> None:
        for name, tensor in (("mean", self.mean), ("basis", self.basis)):
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinite values; expected finite environment units")
        if not (self.low < self.high).all():
            raise ValueError(
                f"bounds are empty: low {self.low.tolist()} must be below high {self.high.tolist()} everywhere"
            )
        rank = int(torch.linalg.matrix_rank(self.basis.double().cpu()))
        if rank < self.basis.shape[1]:
            raise ValueError(
                f"basis has {self.basis.shape[1]} columns but rank {rank}; drop zero and linearly dependent columns"
            )

    @classmethod
    def standard(
        cls, low: Tensor, high: Tensor, *, mean: Tensor | None = None, std: float | Tensor = 1.0
    ) -> ActionPrior:
        """Independent numbers (K = A) of the given standard deviation.

        Args:
            low: (A,) smallest allowed values, environment units.
            high: (A,) largest allowed values.
            mean: (A,); the middle of the bounds if not given.
            std: environment units, one number or (A,), above 0.

        Raises:
            ValueError: see the class; or bounds without a middle, and no mean.
        """
        if mean is None:
            mean = low + (high - low) / 2
            if not mean.isfinite().all():
                raise ValueError(f"bounds {low.tolist()} to {high.tolist()} have no middle; give mean")
        scale = torch.as_tensor(std, dtype=mean.dtype, device=mean.device).expand_as(mean)
        return cls(mean, torch.diag(scale), low, high)

    @classmethod
    def fit(
        cls,
        blocks: Tensor,
        low: Tensor,
        high: Tensor,
        *,
        components: int | None = None,
        explained_variance: float | None = None,
    ) -> ActionPrior:
        """Mean and leading principal components, scaled by their standard deviations, of recorded action blocks.

        Args:
            blocks: (M, A) action blocks in environment units, M >= 2.
            low: (A,) smallest allowed values.
            high: (A,) largest allowed values.
            components: K; or
            explained_variance: smallest K whose components hold this share of the variance, in (0, 1].
                With neither, all components that vary are kept.

        Raises:
            ValueError: both or an unfit number of components asked for, or blocks that are not finite (M, A).
        """
        if blocks.ndim != 2 or blocks.shape[0] < 2 or not blocks.isfinite().all():
            raise ValueError(f"blocks has shape {tuple(blocks.shape)}; expected finite (M, A) with M >= 2")
        exact = blocks.double()
        variance, direction = torch.linalg.eigh(exact.T.cov().reshape(blocks.shape[1], blocks.shape[1]))
        variance, direction = variance.flip(0), direction.flip(1)
        kept = _n_components(variance, components, explained_variance)
        direction = direction[:, :kept]
        # Eigenvectors come with an arbitrary sign; fixing it makes the fitted prior the same on every machine.
        largest = direction.gather(0, direction.abs().argmax(0, keepdim=True))
        basis = direction * largest.sign() * variance[:kept].sqrt()
        return cls(exact.mean(0).to(low.dtype), basis.to(low.dtype), low, high)

    @property
    def device(self) -> torch.device:
        """Where the search runs."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the search runs."""
        return self.mean.dtype

    @property
    def action_dim(self) -> int:
        """A, numbers per action block."""
        return self.basis.shape[0]

    @property
    def latent_dim(self) -> int:
        """K, whitened coordinates per action block."""
        return self.basis.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, for saving; ``ActionPrior(**tensors)`` restores it exactly."""
        return {"mean": self.mean, "basis": self.basis, "low": self.low, "high": self.high}

    def to(self, device: torch.device | str) -> ActionPrior:
        """A copy on ``device``."""
        return ActionPrior(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def decode(self, x: Tensor) -> Tensor:
        """Whitened coordinates (..., K) to action blocks (..., A) within the bounds."""
        return (self.mean + _apply(self.basis, x)).clamp(self.low, self.high)

    def encode(self, actions: Tensor) -> Tensor:
        """Action blocks (..., A) to the whitened coordinates (..., K) that come closest (least squares)."""
        return _apply(self._inverse, actions - self.mean)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Gradient in action blocks (..., A) to that in whitened coordinates (..., K), as if nothing were clipped."""
        return _apply(self.basis.T, gradient)

    def whitened_bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest allowed whitened coordinates, (K,) each.

        Raises:
            ValueError: a coordinate moves several numbers of an action block, or several move one (as principal
                components do): then what is allowed for one coordinate depends on the others.
        """
        moves = self.basis != 0
        if (moves.sum(0) > 1).any() or (moves.sum(1) > 1).any():
            raise ValueError(
                "bounds='truncate' needs a prior whose coordinates are the numbers of an action block "
                "(ActionPrior.standard); in a mixed basis, such as principal components, use bounds='clip'"
            )
        number = moves.int().argmax(0)
        scale = self.basis.gather(0, number[None])[0]
        edges = [(bound - self.mean)[number] / scale for bound in (self.low, self.high)]
        return torch.minimum(*edges), torch.maximum(*edges)

    @cached_property
    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.basis.double().cpu())
        return inverse.to(self.basis)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for (R, C) and (..., C), summed column by column.

    A matrix product may round differently for another batch shape; elementwise products and sums do not.
    """
    total = x[..., :1] * matrix[:, 0]
    for column in range(1, matrix.shape[1]):
        total = total + x[..., column : column + 1] * matrix[:, column]
    return total


def _n_components(variance: Tensor, components: int | None, explained_variance: float | None) -> int:
    """How many of the descending ``variance`` to keep."""
    varying = int((variance > variance[0] * variance.numel() * torch.finfo(variance.dtype).eps).sum())
    if components is not None and explained_variance is not None:
        raise ValueError("got both components and explained_variance; give at most one of them")
    if varying == 0:
        raise ValueError("all action blocks are equal; expected blocks that vary, to fit components to")
    if components is not None:
        if not 1 <= components <= varying:
            raise ValueError(f"components is {components}; expected 1 to {varying}, the directions that vary")
        return components
    if explained_variance is not None:
        if not 0 < explained_variance <= 1:
            raise ValueError(f"explained_variance is {explained_variance}; expected a share in (0, 1]")
        share = variance[:varying].cumsum(0) / variance[:varying].sum()
        return min(int((share < explained_variance).sum()) + 1, varying)
    return varying
