"""The shape of a model: what all families have alike. `config.family` is what is its family's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jvr1.model.family import Family
    from jvr1.model.media import FrameRules


class Vision(ABC):
    """What everything asks of a tower's config, a frozen dataclass of its family: patches of patch x patch pixels,
    tokens of merge x merge patches."""

    patch: int
    merge: int

    @property
    @abstractmethod
    def slots(self) -> int:
        """Patches of one window, the unit in which a frame is padded: L of `inputs.Visual`."""

    @property
    def units(self) -> int:
        """Merged tokens of one window."""
        return self.slots // self.merge**2

    @property
    def patch_values(self) -> int:
        """Values of one patch of one frame."""
        return 3 * self.patch**2

    @property
    def factor(self) -> int:
        """Pixels on a side of one merged token: frame sizes are multiples of it."""
        return self.patch * self.merge


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 1e6
    eps: float = 1e-6
    max_position: int = 128000

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """A whole model, of the family that `model_type` names; `extra` keeps the fields of config.json that do not shape
    it, for the export."""

    model_type: str
    text: TextConfig
    vision: Vision
    tied: bool
    image_token: int = 151655
    video_token: int = 151656
    vision_start_token: int = 151652
    vision_end_token: int = 151653
    initializer_range: float = 0.02
    extra: tuple[tuple[str, Any], ...] = field(default=(), compare=False)

    @property
    def family(self) -> Family:
        from jvr1.model.families import family_of  # which has the families' readers of this class

        return family_of(self.model_type)

    @property
    def frames(self) -> FrameRules:
        """Which frames of a medium are read, and to what size they are brought."""
        return self.family.frames(self.vision.factor)

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """Placeholder ids that stand for merged visual tokens; never to be sampled."""
        return self.image_token, self.video_token
