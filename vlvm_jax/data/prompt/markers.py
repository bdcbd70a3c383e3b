"""Text around visual tokens, in pieces (strings, numbers of tokens): Idefics3's, SmolVLM's, and when frames are."""

import dataclasses
import datetime
from collections.abc import Sequence

Pieces = tuple[str | int, ...]

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """Special tokens of the tokenizer: around each square, and before the whole image."""

    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"


def split_image(tokens: PromptTokens, rows: int, columns: int, count: int) -> Pieces:
    """An image cut into rows and columns of tiles and shown whole after them; (0, 0) for the whole image alone.

    Args:
      count: visual tokens of each square.
    """
    pieces: list[str | int] = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            pieces += [f"{tokens.around}<row_{row}_col_{column}>", count]
        pieces.append("\n")
    return (*pieces, ("\n" if rows else "") + tokens.around + tokens.whole, count, tokens.around)


def stamped_frames(tokens: PromptTokens, times: Sequence[float], duration: float | None, count: int) -> Pieces:
    """SmolVLM's clip: a sentence, then every frame after its time; the last frame's time stands in for no duration."""
    from transformers.models.smolvlm import processing_smolvlm as smolvlm

    seconds = int(duration if duration is not None else times[-1])
    length = str(datetime.timedelta(seconds=seconds))
    intro = smolvlm.DEFAULT_VIDEO_INTRO.format(frame_count=in_words(len(times)), video_duration=length)
    pieces: list[str | int] = [intro]
    for time in times:
        stamp = f"{int(time // 60):02d}:{int(time % 60):02d}"
        pieces += [smolvlm.FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp), *split_image(tokens, 0, 0, count)]
    return (*pieces, smolvlm.DEFAULT_MEDIA_OUTTRO)


def clip_template() -> str:
    """The chat template with which transformers replaces SmolVLM's own where there are clips."""
    from transformers.models.smolvlm import processing_smolvlm

    return processing_smolvlm.DEFAULT_CHAT_TEMPLATE


def time_instruction(times: Sequence[float], duration: float | None) -> str:
    """A clip's length and when its frames are, in seconds; the last frame's time stands in for no duration."""
    shown = "1 frame of it is" if len(times) == 1 else f"{len(times)} frames of it are"
    stamps = ",".join(f"{time:.2f}s" for time in times)
    length = times[-1] if duration is None else duration
    return f"This video is {length:.2f} seconds long and {shown} shown, at {stamps}. Answer what is asked about it."


def in_words(number: int) -> str:
    """An English numeral below a million, as the package num2words writes it."""
    if number < 20:
        return _TO_NINETEEN.split()[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS.split()[tens - 2] + (f"-{in_words(ones)}" if ones else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, unit)
    if not rest:
        return f"{in_words(count)} {name}"
    return f"{in_words(count)} {name}{' and' if rest < 100 else ','} {in_words(rest)}"
