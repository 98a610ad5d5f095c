"""What a descriptive question asks about: when, and which slots or pairs of slots, as its program finds them.

A question such as "How many cubes are moving when the red object enters the scene?" is answered by what its program
counts, or reads an attribute of, and that depends on a moment which it finds before. Both are found here by a read-out
of what was perceived over time, so that they can be learned from programs: an answer alone tells a few bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.vqa.answerer import Asked, Perceived
from cjepa_agent.vqa.causal_past import pair_ends
from cjepa_agent.vqa.grounding import CONCEPTS

ROLES = 2  # as in "*cubes* that move when the *red object* enters"
COURSES = 5  # in view, moving, enters, exits; collides
HAPPENINGS = slice(2, COURSES)  # courses that can be counted
WIDTH = 64


class Referring(nn.Module):
    """Finds what questions ask about.

    Args:
        width: of tokens.
        slots: S.
    """

    first: Tensor
    second: Tensor

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.roles = nn.Linear(width, ROLES)
        who = 2 * ROLES + 1
        self.timeline = _mlp(who * (3 * COURSES - 2 * HAPPENINGS.start) + 2)
        self.node = _mlp(4 * (COURSES + ROLES) + 2 * ROLES + 1)
        self.token, self.asked = nn.Linear(width, WIDTH), nn.Linear(width, 2 * WIDTH)
        self.unlikely = nn.Parameter(torch.tensor(-2.0))
        first, second = pair_ends(slots)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)

    def forward(
        self,
        summary: Tensor,
        text: Tensor,
        said: Tensor,
        objects: Tensor,
        known: Perceived,
        collided: Tensor,
        owner: Tensor,
    ) -> Asked:
        """What D descriptive questions ask about.

        Args:
            summary: (D, width) tokens of [CLS].
            text: (D, L, width) of words.
            said: (D, L, S) probabilities of which slots they name.
            objects: (V, N, width) tokens of slots and of pairs.
            known: what was perceived of V readings.
            collided: (V, C, S, S) probabilities of collisions, 0 of a slot with itself.
            owner: (D,) see ``Batch``.
        """
        named = 1 - (1 - self.roles(text).sigmoid().transpose(1, 2)[..., None] * said[:, None]).prod(2)
        one, other = named[..., self.first], named[..., self.second]
        both = torch.cat([named, one * other], dim=-1)
        either = torch.cat([named, one + other - one * other], dim=-1)
        everyone = torch.ones_like(both[:, :1])
        courses = self._courses(known, collided)[owner]
        ask_moment, ask_node = self.asked(summary).chunk(2, dim=-1)
        happening = torch.einsum("dwn,dcnf->dcwf", torch.cat([both, either, everyone], dim=1), courses)
        moment = _match(self._timeline(happening), ask_moment)
        with_named = torch.einsum("dcsz,drz->dcsr", collided[owner], named)
        courses = torch.cat([courses, F.pad(with_named, (0, 0, 0, len(self.first)))], dim=-1)
        is_pair = F.pad(torch.zeros_like(everyone[..., : named.shape[-1]]), (0, len(self.first)), value=1)
        of_text = torch.cat([both, either, is_pair], dim=1).transpose(1, 2)
        node = self.node(torch.cat([_around(moment.softmax(-1), courses), of_text], dim=-1))
        return Asked(moment, _match(node + self.token(objects)[owner], ask_node) + self.unlikely)

    def _courses(self, known: Perceived, collided: Tensor) -> Tensor:
        """(V, C, N, 5): in view, moving, enters, exits of slots, and collides of pairs, 0 of what cannot be."""
        chances = known.concepts.sigmoid()
        in_view, moving = (chances[..., CONCEPTS.index(name)] for name in ("in view", "moving"))
        change = F.pad(in_view.diff(dim=1), (0, 0, 1, 0))
        slots = torch.stack([in_view, moving, change.clamp(min=0), (-change).clamp(min=0)], dim=-1)
        pairs = collided[:, :, self.first, self.second, None]
        return torch.cat([F.pad(slots, (0, 1)), F.pad(pairs, (COURSES - 1, 0))], dim=2)

    def _timeline(self, courses: Tensor) -> Tensor:
        """What tells the tubelets of videos (D, C, who, 5) from each other: what happens then, before and after."""
        happen = courses[..., HAPPENINGS]
        until = happen.cumsum(1)
        before, after = until - happen, until[:, -1:] - until
        ends = torch.zeros_like(courses[:, :, 0, :2])
        ends[:, 0, 0] = ends[:, -1, 1] = 1
        told: Tensor = self.timeline(torch.cat([*(part.flatten(2) for part in (courses, before, after)), ends], dim=-1))
        return told


def _around(at: Tensor, courses: Tensor) -> Tensor:
    """Courses (D, C, N, K) at a moment, (D, C) probabilities of when, before it, after it and ever, (D, N, 4 K)."""
    until = at.cumsum(-1)
    periods = torch.stack([at, 1 - until, until - at], dim=1)
    seen = torch.cat([torch.einsum("dpc,dcnk->dpnk", periods, courses), courses.amax(1)[:, None]], dim=1)
    return seen.transpose(1, 2).flatten(2)


def _match(keys: Tensor, query: Tensor) -> Tensor:
    """Logits (D, M) of keys (D, M, WIDTH) for queries (D, WIDTH)."""
    logits: Tensor = (keys @ query[..., None]).squeeze(-1) / WIDTH**0.5
    return logits


def _mlp(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
