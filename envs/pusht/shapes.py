"""Outlines of the pushable blocks, as unions of convex polygons in the body frame."""

from __future__ import annotations

from dataclasses import dataclass

Vertex = tuple[float, float]


@dataclass(frozen=True)
class BlockShape:
    """A block as a union of convex pieces.

    Attributes:
        pieces: convex polygons, vertices in units of the block scale (body frame, y down).
        symmetry: order of the rotational symmetry; angles are compared modulo ``2 * pi / symmetry``.
    """

    pieces: tuple[tuple[Vertex, ...], ...]
    symmetry: int = 1


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[Vertex, ...]:
    return ((x0, y1), (x1, y1), (x1, y0), (x0, y0))


# The tee keeps gym-pusht's vertex order: the solver visits contacts in that order, so
# trajectories agree to rounding only when it is the same.
BLOCK_SHAPES: dict[str, BlockShape] = {
    "tee": BlockShape(
        (
            ((-2, 1), (2, 1), (2, 0), (-2, 0)),
            ((-0.5, 1), (-0.5, 4), (0.5, 4), (0.5, 1)),
        )
    ),
    "small_tee": BlockShape((_box(-1.5, 0, 1.5, 1), _box(-0.5, 1, 0.5, 2.5))),
    "ell": BlockShape((_box(-1.5, 0, 1.5, 1), _box(-1.5, 1, -0.5, 3))),
    "zee": BlockShape((_box(-1.5, -1, 0.5, 0), _box(-0.5, 0, 1.5, 1)), symmetry=2),
    "square": BlockShape((_box(-1.25, -1.25, 1.25, 1.25),), symmetry=4),
    "bar": BlockShape((_box(-0.5, -2, 0.5, 2),), symmetry=2),
    "plus": BlockShape((_box(-1.5, -0.5, 1.5, 0.5), _box(-0.5, -1.5, 0.5, 1.5)), symmetry=4),
}

SHAPE_ALIASES: dict[str, str] = {
    "T": "tee",
    "L": "ell",
    "Z": "zee",
    "I": "bar",
    "+": "plus",
    "small tee": "small_tee",
}


def shape_name(name: str) -> str:
    """The name in ``BLOCK_SHAPES`` of a shape or alias; raises ValueError with the known names otherwise."""
    known = SHAPE_ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(known, str) or known not in BLOCK_SHAPES:
        expected = sorted({*BLOCK_SHAPES, *SHAPE_ALIASES})
        raise ValueError(f"unknown block shape {name!r}; expected one of {expected}")
    return known
