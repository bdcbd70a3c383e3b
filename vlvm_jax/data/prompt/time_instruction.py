"""The sentence that says when a clip's frames are."""

from collections.abc import Sequence


def write(times: Sequence[float], duration: float | None) -> str:
    """A clip's length and when its frames are, in seconds; the last frame's time stands in for no duration."""
    shown = "1 frame of it is" if len(times) == 1 else f"{len(times)} frames of it are"
    stamps = ",".join(f"{time:.2f}s" for time in times)
    length = times[-1] if duration is None else duration
    return f"This video is {length:.2f} seconds long and {shown} shown, at {stamps}. Answer what is asked about it."


def write_llava_video(times: Sequence[float], duration: float | None) -> str:
    """The same in the words that LLaVA-Video was trained with (LLaVA-VL/LLaVA-NeXT, `llava/train/train.py`)."""
    length = times[-1] if duration is None else duration
    stamps = ",".join(f"{time:.2f}s" for time in times)
    return (
        f"The video lasts for {length:.2f} seconds, and {len(times)} frames are uniformly sampled from it. "
        f"These frames are located at {stamps}.Please answer the following questions related to this video."
    )
