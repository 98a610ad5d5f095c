"""An encoder for a camera that stands still, as CLEVRER's does: what differs from the empty picture is grouped.

Where Push-T has one slot per role, objects of a CLEVRER video are of any number, look alike, and come and go. Hence
three differences to ``SlotEncoder``. The background is known, as the median of the training frames, and taken away;
what is left tells where things are, and is shared by object slots alone. These start at such places, and reach no
farther than a thing does (as the translation of Invariant Slot Attention, Biza et al. 2023, arXiv 2302.04973), so that
things of one colour have a slot each; a slot without a thing is empty, all zeros. And in a video slots remember: they
start where their thing should be by now, looking for what it looked like, and one whose thing is hidden behind another
keeps it in mind. What enters gets a slot that has held nothing yet, or else that whose thing is away longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.encoders.base import (
    POSITION_DIM,
    POSITION_SCALES,
    ColourDecoder,
    SlotOutput,
    VideoEncoder,
    at_points,
    centroid_of,
    fourier,
    grid_coordinates,
    prepare_frames,
)
from cjepa_agent.encoders.slot_attention import FeatureGrid

LEAST_CONTRAST = 0.15  # summed colour difference (0..3) from the background below which nothing is there
SOFTNESS = 0.03  # of that limit
REACH = 0.7  # initial deviation of an object slot's reach, 1 where another thing may be; learned
LIMIT = 1.35  # distance, likewise, beyond which a slot takes nothing
EXTENT_DIM = 2  # numbers of a slot after its place: logarithms of how far what it takes spreads to the sides and up
MARGIN = 2.35  # deviations of what a slot takes, and a pixel, within which no other thing enters
LEAST_CELLS = 1.5  # of the grid that a thing must cover, or its slot is empty: finer frames show smaller things
TALL = 1.5  # how much farther above and below than beside another thing is found
CLOSE = 0.3  # squared distance, 1 where another thing may be, in which a new slot holds the same one as another
OWN = 0.5  # share of a cell from which on it is a slot's own
LEAST_SPREAD = 3e-4  # half frames squared: that of a cell of the grid of frames of 64 px
PRESENT = 1.5  # squared norm of a place; that of a thing's is 2 POSITION_SCALES, of an empty slot's 0
ABSENT = -1e4  # logit of what an empty slot takes
SMOOTH = 0.5  # what is kept of a velocity from one frame to the next
FADE = 0.9  # likewise while the thing is hidden
GONE = 5  # frames after which the slot of a hidden thing may be given to another
APPEARANCE = POSITION_DIM + EXTENT_DIM  # from this number of a slot on
FRAME = 64  # px, side of the frames that ``far``, ``near`` and how things are told apart were chosen on; see there


@dataclass(frozen=True)
class StillCameraConfig:
    """Architecture of an encoder that knows the background, and its decoder.

    Attributes:
        kind: ``still``.
        n_slots: S, the background's and one for each of S - 1 objects.
        slot_dim: D.
        image_size: side of the input frames, px; others are resized, but not in training.
        width: channels of CNN and attention.
        iterations: rounds of slot attention.
        decoder_width: channels of the decoder.
        far: px of a frame of 64 x 64, distance to the right or left at which a second thing may be found, at the top of
            the frame; above and below it is ``TALL`` times as much.
        near: likewise at the bottom of the frame.
    """

    kind: str = "still"
    n_slots: int = 7
    slot_dim: int = 128
    image_size: int = 64
    width: int = 48
    iterations: int = 2
    decoder_width: int = 64
    far: float = 4.5
    near: float = 8.0

    def __post_init__(self) -> None:
        if self.slot_dim <= APPEARANCE:
            raise ValueError(f"encoder.slot_dim must exceed {APPEARANCE}, got {self.slot_dim}")
        if min(self.image_size, self.width, self.iterations, self.decoder_width, self.n_slots - 1) < 1:
            raise ValueError(f"encoder sizes must be positive and n_slots 2 or more, got {self}")
        if self.image_size % 8:
            raise ValueError(f"encoder.image_size must be a multiple of 8, got {self.image_size}")
        if min(self.far, self.near) <= 0:
            raise ValueError(f"encoder.far and encoder.near must be positive, got {self.far} and {self.near}")

    def build(self) -> tuple[StillCameraEncoder, StillCameraDecoder]:
        """Encoder and decoder with random weights and a grey background."""
        return StillCameraEncoder(self), StillCameraDecoder(self)


class Memory(NamedTuple):
    """What is known of things from the frames before.

    Attributes:
        slots: (B, S, D), how they were last seen and where they should be by now, zeros where there is nothing to know.
        velocity: (B, S, 2) of centroids, per frame.
        hidden: (B, S) frames in a row in which they were not seen.
    """

    slots: Tensor
    velocity: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, slots: Tensor) -> Memory:
        """Of slots (B, S, D) that were just seen, and stand still."""
        return cls(slots, torch.zeros_like(slots[..., :2]), torch.zeros_like(slots[..., 0]))

    @property
    def known(self) -> Tensor:
        """(B, S) which slots know a thing; the background's does not count."""
        return F.pad(holding(self.slots)[:, 1:], (1, 0))


def holding(slots: Tensor) -> Tensor:
    """Whether slots (..., S, D) hold a thing, (..., S); those that a predictor made are empty only about."""
    return slots[..., :POSITION_DIM].square().sum(-1) > PRESENT


class StillCameraEncoder(VideoEncoder):
    """Frames to slots: the first is the background's, the others are objects' or zero.

    Args:
        config: architecture.

    Attributes:
        background: (3, H, W) in [0, 1], set before training.
    """

    background: Tensor
    coordinates: Tensor

    def __init__(self, config: StillCameraConfig) -> None:
        super().__init__()
        self.config, self.n_slots, self.slot_dim = config, config.n_slots, config.slot_dim
        width, size = config.width, config.image_size
        self.grid = size // 2
        self.register_buffer("background", torch.full((3, size, size), 0.5))
        self.register_buffer("coordinates", grid_coordinates(self.grid), persistent=False)
        self.features = FeatureGrid(width, standardise=False)
        self.initial = nn.Parameter(torch.randn(2, width))  # of the background and of objects
        self.reach = nn.Parameter(torch.tensor(math.log(REACH)))
        self.norm_keys, self.norm_values = nn.LayerNorm(3 + width // 2), nn.LayerNorm(width)
        self.norm_slots = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(3 + width // 2, width, bias=False)
        self.value = nn.Linear(width, width)
        self.shape = nn.Linear(5, width)
        self.update = nn.GRUCell(width, width)
        self.refine = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        appearance = config.slot_dim - APPEARANCE
        self.appearance = nn.Linear(width, appearance)
        self.recall = nn.Sequential(nn.LayerNorm(appearance), nn.Linear(appearance, width))

    def read(self, frames: Tensor, initial: Tensor | None = None) -> Tensor:
        """See ``VideoEncoder``; empty slots of ``initial`` are taken for such that have held nothing yet."""
        slots: Tensor = self(prepare_frames(frames, self.config.image_size), initial).slots
        return slots

    def track(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Slots (B, T, S, D) of videos (B, T, H, W, 3) uint8; nothing in them is random."""
        prepared = (prepare_frames(now, self.config.image_size) for now in frames.unbind(1))
        return torch.stack([output.slots for output, _ in self.follow(prepared)], dim=1)

    def contrast(self, frames: Tensor) -> Tensor:
        """Summed colour difference (B, 1, H, W) from the background, 0..3, of frames (B, 3, H, W) in [0, 1]."""
        return (frames - self.background).float().abs().sum(1, keepdim=True)

    def forward(self, frames: Tensor, initial: Tensor | None = None) -> SlotOutput:
        """Encode frames (B, 3, H, W) in [0, 1]; ``initial`` are slots (B, S, D) of the frames before them."""
        return self.step(frames, None if initial is None else Memory.of(initial))[0]

    def follow(self, videos: Iterable[Tensor]) -> Iterator[tuple[SlotOutput, Memory | None]]:
        """What is found in one frame (B, 3, H, W) in [0, 1] of B videos after another, and what was known before it."""
        memory = None
        for frames in videos:
            output, later = self.step(frames, memory)
            yield output, memory
            memory = later

    def step(self, frames: Tensor, memory: Memory | None) -> tuple[SlotOutput, Memory]:
        """What is found in frames (B, 3, H, W) in [0, 1], and what is known after them; None where nothing is yet."""
        if memory is None:
            memory = Memory.of(torch.zeros(len(frames), self.n_slots, self.slot_dim, device=frames.device))
        local, wide = self.features(frames - self.background)
        with torch.autocast(frames.device.type, enabled=False):
            keys, values = self.key(self.norm_keys(local.float())), self.value(self.norm_values(wide.float()))
            contrast = F.avg_pool2d(self.contrast(frames), 2).flatten(1)
            centre, there, known = self.places(contrast, memory)
            slots = self.initial[[0] + [1] * (self.n_slots - 1)] + torch.where(
                known.unsqueeze(-1), self.recall(memory.slots[..., APPEARANCE:]), 0
            )
            thing = ((contrast - LEAST_CONTRAST) / SOFTNESS).sigmoid()
            for _ in range(self.config.iterations):
                slots, centre, extent, attention = self._attend(slots, centre, there, thing, keys, values)
                there = self._without_doubles(centre, there, known, attention)
            own = attention[:, 1:] * (attention[:, 1:] > OWN)
            covered = own @ (contrast > LEAST_CONTRAST).float().unsqueeze(-1)
            there = there & F.pad(covered.squeeze(-1) > LEAST_CELLS, (1, 0), value=True)
            vector = torch.cat([fourier(centre, POSITION_SCALES), extent.log(), self.appearance(slots)], dim=-1)
            later = self._remembered(vector, centre, there, known, memory)
        attention = attention.unflatten(-1, (self.grid, self.grid))
        return SlotOutput(vector * there.unsqueeze(-1), centre, attention), later

    def places(self, contrast: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Where slots start; the background's starts at the middle.

        Things are found one after the other, the most striking first, at some distance from those that are known.

        Args:
            contrast: (B, G * G) summed colour difference from the background.
            memory: things that are known stay with their slots, unless others need these.

        Returns:
            Places (B, S, 2), which slots have a thing to hold (B, S), and which of these know theirs.
        """
        known, free = memory.known, memory.hidden.masked_fill(~memory.known, torch.inf)
        centre = centroid_of(memory.slots.detach()) * known.unsqueeze(-1)
        left = contrast.view(-1, 1, self.grid, self.grid)
        rounds = max(1, round(2 * (2 * self.grid / FRAME) ** 2))  # each adds to the variance of the blur
        for _ in range(rounds):  # a thing is most striking in its middle, not at a highlight
            left = F.avg_pool2d(left, 3, 1, 1, count_include_pad=False)
        outside = self._outside(centre, memory.slots[..., POSITION_DIM:APPEARANCE].detach().exp())
        left = left.flatten(1) * torch.where(known.unsqueeze(-1), outside, 1).prod(1)
        free[:, 0] = 0
        there = F.pad(known[:, 1:], (1, 0), value=True)
        for _ in range(1, self.n_slots):
            (most, place), (away, slot) = left.max(1), free.max(1)
            found = (most > LEAST_CONTRAST) & (away > GONE)
            given = F.one_hot(slot, self.n_slots).bool() & found.unsqueeze(1)
            centre = torch.where(given.unsqueeze(-1), self.coordinates[place].unsqueeze(1), centre)
            left = left * torch.where(found.unsqueeze(1), self._apart(self.coordinates[place]), 1)
            there, known, free = there | given, known & ~given, free.masked_fill(given, 0)
        return centre, there, known

    def _remembered(self, vector: Tensor, centre: Tensor, there: Tensor, known: Tensor, before: Memory) -> Memory:
        """What is known after a frame, places as they should be in the next; what has left the picture is forgotten."""
        seen, still = there.unsqueeze(-1), known.unsqueeze(-1)
        last = torch.where(seen, vector, before.slots * still)
        place = torch.where(seen, centre, centroid_of(before.slots)).detach()
        moved = place - (centroid_of(before.slots) - before.velocity)
        velocity = torch.where(seen, SMOOTH * before.velocity + (1 - SMOOTH) * moved, FADE * before.velocity) * still
        place = place + velocity.detach()
        # Of a thing that is half out of the picture the middle of what is seen of it is inside.
        place = torch.where(seen, place.clamp(-1, 1), place)
        inside = (place.abs() <= 1).all(-1, keepdim=True) & (seen | still)
        slots = torch.cat([fourier(place, POSITION_SCALES), last[..., POSITION_DIM:]], dim=-1) * inside
        return Memory(slots, velocity.detach(), (before.hidden + 1).masked_fill(there, 0))

    def _without_doubles(self, centre: Tensor, there: Tensor, known: Tensor, attention: Tensor) -> Tensor:
        """Which slots (B, S) stay where a new one has come to hold the thing of another: that, or the larger if new."""
        near = (self._squared_distance(centre, centre) < CLOSE) & there.unsqueeze(2) & there.unsqueeze(1)
        mass = attention.sum(-1).masked_fill(known, torch.inf)
        doubled = (near & (mass.unsqueeze(2) < mass.unsqueeze(1)))[:, 1:, 1:].any(2)
        return there & ~F.pad(doubled, (1, 0))

    def _squared_distance(self, centre: Tensor, places: Tensor) -> Tensor:
        """Squared distances (B, N, P) of places (..., P, 2) from centres (B, N, 2), 1 where another thing may be."""
        config = self.config
        width = config.far + (config.near - config.far) * (centre[..., 1:] + 1) / 2
        offset = (places.unsqueeze(-3) - centre.unsqueeze(2)) * FRAME / 2 / width.unsqueeze(2)
        return offset[..., 0].square() + (offset[..., 1] / TALL).square()

    def _apart(self, centre: Tensor) -> Tensor:
        """Weights (B, G * G), 0 at places (B, 2) and 1 where another thing may be."""
        return 1 - torch.exp(-self._squared_distance(centre[:, None], self.coordinates)[:, 0].square())

    def _outside(self, centre: Tensor, extent: Tensor) -> Tensor:
        """Weights (B, S, G * G), 0 inside things at places (B, S, 2) that spread as far as ``extent`` (B, S, 2)."""
        radius = MARGIN * extent + 2 / self.config.image_size
        offset = (self.coordinates - centre.unsqueeze(2)) / radius.unsqueeze(2)
        return 1 - torch.exp(-offset.square().sum(-1).square())

    def _attend(
        self, slots: Tensor, centre: Tensor, there: Tensor, thing: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One round of slot attention.

        Returns:
            New slots (B, S, width), centroids (B, S, 2), deviations from these (B, S, 2), attention (B, S, G * G).
        """
        logits = self.query(self.norm_slots(slots[:, 1:])) @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
        squared = self._squared_distance(centre[:, 1:], self.coordinates)
        beyond = (squared / LIMIT**2).square()
        logits = logits - squared / (2 * (2 * self.reach).exp()) - beyond
        shares = logits.masked_fill(~there[:, 1:].unsqueeze(-1), ABSENT).softmax(dim=1)
        taken = thing.unsqueeze(1) * shares * torch.exp(-beyond)
        attention = torch.cat([1 - taken.sum(1, keepdim=True), taken], dim=1)
        mass = attention.sum(-1, keepdim=True)
        weights = attention / (mass + 1e-6)
        moved = weights @ self.coordinates
        offset = self.coordinates - moved.unsqueeze(2)
        spread = (weights.unsqueeze(-1) * offset.square()).sum(2)
        tilt = (weights * offset.prod(-1)).sum(-1, keepdim=True)
        # How large it looks, and how low, tells how far away it is; the factors bring these numbers near 1.
        cells = (FRAME / (2 * self.grid)) ** 2 * mass
        shape = torch.cat([30 * spread, 30 * tilt, cells / 10, moved[..., 1:]], dim=-1)
        reads = weights @ values + self.shape(shape)
        width = slots.shape[-1]
        slots = self.update(reads.reshape(-1, width), slots.reshape(-1, width)).view_as(slots)
        slots = slots + self.refine(slots)
        moved = torch.cat([torch.zeros_like(moved[:, :1]), moved[:, 1:]], dim=1)
        return slots, moved, (spread + LEAST_SPREAD).sqrt(), attention


class StillCameraDecoder(ColourDecoder):
    """Slots to pixels: objects before the known background, with a colour at each of their places.

    Args:
        config: architecture.

    Attributes:
        background: as the encoder's.
    """

    background: Tensor

    def __init__(self, config: StillCameraConfig, scales: int = 6) -> None:
        super().__init__()
        self.scales, width, appearance = scales, config.decoder_width, config.slot_dim - POSITION_DIM
        self.register_buffer("background", torch.full((3, config.image_size, config.image_size), 0.5))
        self.place, self.shift = nn.Linear(4 * scales + 2, width), nn.Linear(appearance, width)
        self.hidden, self.gate = nn.Linear(width, width), nn.Linear(appearance, width)
        self.mix = nn.Linear(width, width)
        self.outputs = nn.Linear(width, 4)

    def colours_at(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ColourDecoder``."""
        appearance = slots[..., POSITION_DIM:].unsqueeze(2)
        relative = points.unsqueeze(1) - centroid_of(slots).unsqueeze(2)
        hidden = self.place(torch.cat([relative, fourier(relative, self.scales)], dim=-1)) + self.shift(appearance)
        hidden = self.hidden(hidden.relu()) * (1 + self.gate(appearance))
        outputs = self.outputs(self.mix(hidden.relu()).relu()).float()
        opacity = outputs[..., 3].masked_fill(~holding(slots).unsqueeze(-1), ABSENT)
        opacity = torch.cat([torch.zeros_like(opacity[:, :1]), opacity[:, 1:]], dim=1)
        background = at_points(self.background.expand(len(points), -1, -1, -1), points).transpose(1, 2)
        colours = torch.cat([background.unsqueeze(1), outputs[:, 1:, :, :3] + 0.5], dim=1)
        return colours, opacity.softmax(dim=1)

    def forward(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ColourDecoder``; a slot's colour is the mean over its mask at the points."""
        colours, masks = self.colours_at(slots, points)
        shares = masks / masks.sum(-1, keepdim=True).clamp(min=1e-6)
        return (colours * shares.unsqueeze(-1)).sum(2), masks

    def paint(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ColourDecoder``; colours are those at each point, not the means of slots."""
        colours, masks = self.colours_at(slots, points)
        return (colours * masks.unsqueeze(-1)).sum(1), masks
