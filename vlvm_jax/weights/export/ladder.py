"""Which class of transformers computes exactly what a model here computes. Inexact ones are refused, with the reason.

The rungs, best first: (1) the class the model came from, or a plain `llava`/`smolvlm`: nothing but weights changed;
(2) `llava_next_video`; (3) `llava_onevision`, whose video pooling may be exactly ours; (4) our own PyTorch file in the
exported directory. What each class computes: transformers' modeling files; what processors and servers can count:
docs/weights.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vlvm_jax.config import AdapterConfig, DecoderConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families import read
from vlvm_jax.models.adapters.frames import Adapter as FramesAdapter

Media = Literal["all", "image", "video"]
OWN_CLASS = "vlvm"
_WITH_VIDEO = ("llava_next_video", "llava_onevision", OWN_CLASS)


@dataclasses.dataclass(frozen=True)
class Rung:
    """Attributes:
    number: 1 to 4; 0 for a bare tower or decoder, which is its own class.
    family: the transformers model_type, or `vlvm` for rung 4.
    reason: why this one, and why none before it.
    """

    number: int
    family: str
    reason: str

    @property
    def has_video(self) -> bool:
        """Whether the class has an input for clips and a token that stands for them; elsewhere frames are images."""
        return self.family in _WITH_VIDEO


def choose(
    vision: VisionConfig | None,
    decoder: DecoderConfig | None,
    adapter: AdapterConfig | None,
    base_family: str | None,
    *,
    trained: bool,
    own_clips: Mapping[str, Any] | None = None,
    media: Media = "all",
    asked: str | None = None,
) -> Rung:
    """The highest exact rung.

    Args:
      base_family: the transformers class the model was imported from, None if it was trained from scratch.
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
    # The LLaVA repositories know linear ones, transformers does not.
    has_class = adapter.connector.kind in ("mlp2x_gelu", "pixel_shuffle") and own_clips is None
    if not trained and has_class and base_family is not None and asked in (None, base_family):
        return Rung(1, base_family, "an import as it came")
    candidates = _candidates(adapter, base_family)
    if asked is not None and asked not in (*(family for _, family in candidates), OWN_CLASS):
        known = ", ".join(sorted({family for _, family in candidates} | {OWN_CLASS}))
        raise InputError(f"--format={asked}: not a class this model could be; there are {known}")
    refused: dict[str, list[str]] = {}  # fault -> families
    for number, family in candidates:
        fault = inexact(family, vision, adapter, media)
        if asked == family and fault:
            raise InputError(f"--format={asked}: would not compute the same: {fault}")
        if fault is None and asked in (None, family):
            return Rung(number, family, _reason(number, media, refused))
        refused.setdefault(str(fault), []).append(family)
    return Rung(4, OWN_CLASS, _why_not(refused) if asked is None else "asked for")


def _candidates(adapter: AdapterConfig, base_family: str | None) -> list[tuple[int, str]]:
    if adapter.connector.kind == "pixel_shuffle":
        return [(1, base_family if base_family in ("smolvlm", "idefics3") else "smolvlm")]
    ladder = [(1, "llava"), (2, "llava_next_video"), (3, "llava_onevision")]
    if base_family is None:
        return ladder
    return [(1, base_family), *(rung for rung in ladder if rung[1] != base_family)]


def inexact(family: str, vision: VisionConfig, adapter: AdapterConfig, media: Media) -> str | None:
    """Why the class would not compute the same, or None if it would."""
    if adapter.name != "frames":
        return f"the adapter {adapter.name!r} has no counterpart in it"
    if family in ("smolvlm", "idefics3"):
        return _inexact_idefics3(vision, adapter)
    if adapter.connector.kind != "mlp2x_gelu":
        return f"it has a two-layer connector, this model a {adapter.connector.kind} one"
    if vision.kind not in ("clip", "siglip"):
        return f"it has no {vision.kind} tower"
    if vision.post_norm:
        return "it reads the tower before its last layer norm"
    have = FramesAdapter.Options(**adapter.options)
    want = FramesAdapter.Options(**read.frames_options(family))
    if family == "llava_next_video" and have.pool == "max":
        want = want.model_copy(update={"pool": "max"})
    if media != "image":
        if family == "llava_next":
            return "it cuts every image into tiles, so the frames of a clip, sent as images, would be cut too"
        if fault := _inexact_pool(family, vision, have, want):
            return fault
    return _inexact_newline(family, have, want, media)


def _inexact_idefics3(vision: VisionConfig, adapter: AdapterConfig) -> str | None:
    if vision.kind != "idefics3" or not vision.post_norm or vision.feature_layer != -1:
        return "it reads an Idefics3 tower after its last layer norm"
    options = FramesAdapter.Options(**adapter.options)
    if options.pool != "none" or options.newline != "none":
        return "it neither pools frames nor adds newlines"
    return None


def _inexact_pool(family: str, vision: VisionConfig, have: Any, want: Any) -> str | None:
    if have.pool != want.pool:
        return f"it pools frames by {want.pool!r}, this model by {have.pool!r}"
    if have.pool == "none":
        return None
    if have.pool_stride != want.pool_stride:
        return f"its processor counts a stride of {want.pool_stride}, this model has {have.pool_stride}"
    if have.pool_place != want.pool_place:
        return f"it pools {want.pool_place.replace('_', ' the ')}, this model {have.pool_place.replace('_', ' the ')}"
    if family == "llava_next_video" and vision.grid % 2:
        return f"processors and servers miscount odd grids ({vision.grid} x {vision.grid} patches) of it"
    return None


def _inexact_newline(family: str, have: Any, want: Any, media: Media) -> str | None:
    kinds = ("image", "video") if media == "all" else (media,)
    for kind in kinds:
        mine, theirs = (options.newline in (kind, "all") for options in (have, want))
        if mine != theirs:
            which = "adds" if theirs else "adds no"
            only = " (with --media=video, images do not count)" if kind == "image" and media == "all" else ""
            return f"it {which} newline embedding after {kind}s, this model does{'' if mine else ' not'}{only}"
        if kind == "video" and mine and have.newline_place != want.newline_place:
            return f"it adds one newline embedding at a clip's end, this model one after every {have.newline_place}"
    return None


def _reason(number: int, media: Media, refused: dict[str, list[str]]) -> str:
    why = {
        1: "only weights differ from the class",
        2: "its video pooling is exactly this model's",
        3: "its video pooling is exactly this model's",
    }[number]
    only = "" if media == "all" else f" (for {media}s)"
    return "; ".join(filter(None, [f"{why}{only}", _why_not(refused)]))


def _why_not(refused: dict[str, list[str]]) -> str:
    return "; ".join(f"not {', '.join(families)}: {fault}" for fault, families in refused.items())
