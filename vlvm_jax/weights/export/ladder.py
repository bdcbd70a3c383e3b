"""Which class of transformers computes exactly what a model here computes. Inexact ones are refused, with the reason.

The rungs, best first: (1) the class the model came from, or one in which nothing but weights changed; (2, 3) classes
whose pooling of clips may be exactly ours; (4) our own PyTorch file in the exported directory. What each class computes
its file in `families` says; what processors and servers can count: docs/weights.md.
"""

import dataclasses

from vlvm_jax import families
from vlvm_jax.config import AdapterConfig, DecoderConfig, FrameTokens, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families import vlvm
from vlvm_jax.families._vlm import VLM, Media
from vlvm_jax.families.base import StockFamily
from vlvm_jax.models import adapters

OWN_CLASS = vlvm.Family.name


@dataclasses.dataclass(frozen=True)
class Rung:
    """A class that an export can go out as.

    Attributes:
    number: 1 to 4; 0 for a bare tower or decoder, which is its own class.
    family: the family's name, or `vlvm` for rung 4.
    reason: why this one, and why none before it.
    """

    number: int
    family: str
    reason: str

    @property
    def stock(self) -> StockFamily | None:
        """The family whose class goes out; None for our own."""
        return None if self.family == OWN_CLASS else families.stock(self.family)

    @property
    def has_video(self) -> bool:
        """Whether the class has an input for clips and a token that stands for them; elsewhere frames are images."""
        return self.stock is None or self.stock.has_video


def choose(
    vision: VisionConfig | None,
    decoder: DecoderConfig | None,
    adapter: AdapterConfig | None,
    base_family: str | None,
    *,
    trained: bool,
    own_clips: FrameTokens | None = None,
    media: Media = "all",
    asked: str | None = None,
) -> Rung:
    """The highest exact rung.

    Args:
      base_family: the family of the class that the model was imported from, None if it was trained from scratch.
      trained: False for an import as it came, which is its class whatever that class takes.
      own_clips: what an import does with clips, if its config says so instead of its class.
      media: what the exported model will be given; a class need be exact for that only.
      asked: a family to export as; it must be exact.

    Raises:
      InputError: `asked` is not exact, or not known.
    """
    if adapter is None or vision is None or decoder is None:
        assert base_family is not None
        return Rung(0, base_family, "a bare tower or decoder is its own class")
    # The LLaVA repositories know linear connectors, transformers does not.
    has_class = own_clips is None and any(adapter.connector.kind == family.connector for family in _known())
    if not trained and has_class and base_family is not None and asked in (None, base_family):
        return Rung(4 if base_family == OWN_CLASS else 1, base_family, "an import as it came")
    candidates = _candidates(adapter, base_family)
    if asked is not None and asked not in (*(family.name for _, family in candidates), OWN_CLASS):
        known = ", ".join(sorted({family.name for _, family in candidates} | {OWN_CLASS}))
        raise InputError(f"--format={asked}: not a class this model could be; there are {known}")
    refused: dict[str, list[str]] = {}  # fault -> families
    for number, family in candidates:
        fault = inexact(family, vision, adapter, media)
        if asked == family.name and fault:
            raise InputError(f"--format={asked}: would not compute the same: {fault}")
        if fault is None and asked in (None, family.name):
            return Rung(number, family.name, _reason(number, media, refused))
        refused.setdefault(str(fault), []).append(family.name)
    return Rung(4, OWN_CLASS, _why_not(refused) if asked is None else "asked for")


def _candidates(adapter: AdapterConfig, base_family: str | None) -> list[tuple[int, VLM]]:
    """The classes of the ladder, the one that the model came from first."""
    kind = adapter.connector.kind
    alike = [f for f in _known() if f.connector == kind] if adapter.connector.shuffles else _of_the_mlp()
    ladder = sorted(((f.rung, f) for f in alike if f.rung is not None), key=lambda candidate: candidate[0])
    base = next((f for f in _known() if f.name == base_family), None)
    if base is None or (adapter.connector.shuffles and base.connector != kind):
        return ladder
    if adapter.connector.shuffles:
        return [(1, base)]
    return [(1, base), *((number, family) for number, family in ladder if family is not base)]


def _known() -> list[VLM]:
    return [family for family in families.every().values() if isinstance(family, VLM)]


def _of_the_mlp() -> list[VLM]:
    """Those whose refusals a model with any other connector is told."""
    return [family for family in _known() if family.connector == "mlp2x_gelu"]


def inexact(family: VLM, vision: VisionConfig, adapter: AdapterConfig, media: Media) -> str | None:
    """Why the class would not compute the same, or None if it would."""
    frames = adapters.frame_tokens(adapter)
    if frames is None:
        return f"the adapter {adapter.name!r} has no counterpart in it"
    return family.inexact(vision, adapter.connector, frames, media)


def _reason(number: int, media: Media, refused: dict[str, list[str]]) -> str:
    why = "only weights differ from the class" if number == 1 else "its video pooling is exactly this model's"
    only = "" if media == "all" else f" (for {media}s)"
    return "; ".join(filter(None, [f"{why}{only}", _why_not(refused)]))


def _why_not(refused: dict[str, list[str]]) -> str:
    return "; ".join(f"not {', '.join(names)}: {fault}" for fault, names in refused.items())
