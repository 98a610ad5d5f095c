"""A bounded number of environments and candidates per call of the cost function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from planners.protocol import CostFunction, Goal, Z

Tree = TypeVar("Tree")


def in_chunks(
    cost: CostFunction[Z, Goal], envs_per_call: int = 1, candidates_per_call: int | None = None
) -> CostFunction[Z, Goal]:
    """The same cost function, called for a part of the environments and of their candidates at a time.

    A matrix product may round differently for another batch shape. With one environment per call the shapes never
    depend on the batch, so on the CPU an environment's costs, and with them its plan, are the same to the last
    bit alone and in any batch, for each ``candidates_per_call``. More environments per call bound memory without that
    promise.

    Where a GPU's memory does not suffice for a call, it is repeated in halves, and all later ones are as small.

    Args:
        cost: the cost function; ``z0`` and ``goal`` must be what ``take_environments`` understands.
        envs_per_call: most environments per call.
        candidates_per_call: most candidates of each environment per call; None for all of them.

    Raises:
        ValueError: a number per call is below 1.
    """
    if envs_per_call < 1:
        raise ValueError(f"envs_per_call is {envs_per_call}; expected at least 1 environment")
    if candidates_per_call is not None and candidates_per_call < 1:
        raise ValueError(f"candidates_per_call is {candidates_per_call}; expected at least 1, or None for all")
    return _Chunks(cost, envs_per_call, candidates_per_call)


class _Chunks(Generic[Z, Goal]):
    """See ``in_chunks``."""

    def __init__(self, cost: CostFunction[Z, Goal], envs_per_call: int, candidates_per_call: int | None) -> None:
        self._cost, self._envs, self._candidates = cost, envs_per_call, candidates_per_call

    def __call__(self, z0: Z, goal: Goal, actions: Tensor) -> Tensor:
        n_envs = len(actions)
        parts = []
        for start in range(0, n_envs, self._envs):
            chosen = slice(start, start + self._envs)
            part_z0 = take_environments(z0, chosen, n_envs)
            part_goal = take_environments(goal, chosen, n_envs)
            parts.append(self._score(part_z0, part_goal, take_environments(actions, chosen, n_envs)))
        return torch.cat(parts)

    def _score(self, z0: Z, goal: Goal, actions: Tensor) -> Tensor:
        n_candidates = actions.shape[1]
        size = min(self._candidates or n_candidates, n_candidates)
        try:
            # What is not divided is not joined either: a wrong answer is for the planner to find.
            if size == n_candidates:
                return self._cost(z0, goal, actions)
            return torch.cat([self._cost(z0, goal, part) for part in actions.split(size, dim=1)], dim=1)
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            self._candidates = (size + 1) // 2
        # Outside of the handler, which still holds the tensors of the failed call.
        return self._score(z0, goal, actions)


def take_environments(tree: Tree, chosen: slice, n_envs: int) -> Tree:
    """Copy the chosen environments out of a structure of tensors whose first axis is the environment.

    Understood are tensors, and tuples, named tuples, lists, mappings and dataclasses of what is understood; ``None``,
    numbers and strings pass unchanged.

    Raises:
        ValueError: a tensor's first axis is not ``n_envs`` long.
        TypeError: something else is found, which might hold environments that would not be taken apart.
    """
    taken: Tree = _take(tree, chosen, n_envs)
    return taken


def _take(tree: Any, chosen: slice, n_envs: int) -> Any:
    if isinstance(tree, Tensor):
        if tree.ndim == 0 or len(tree) != n_envs:
            raise ValueError(
                f"z0 or goal holds a tensor of shape {tuple(tree.shape)}; expected a first axis of "
                f"{n_envs} environments"
            )
        # A fresh contiguous copy: strides and memory alignment, too, can decide how a product is rounded.
        return tree[chosen].clone(memory_format=torch.contiguous_format)
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_take(item, chosen, n_envs) for item in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(_take(item, chosen, n_envs) for item in tree)
    if isinstance(tree, Mapping):
        return {key: _take(item, chosen, n_envs) for key, item in tree.items()}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = (field.name for field in dataclasses.fields(tree) if field.init)
        return dataclasses.replace(tree, **{name: _take(getattr(tree, name), chosen, n_envs) for name in fields})
    raise TypeError(
        f"z0 or goal holds a {type(tree).__name__}; expected tensors in tuples, lists, mappings or dataclasses: "
        f"convert it to a tensor whose first axis is the environment"
    )
