"""The sentence that says when a clip's frames are."""

from collections.abc import Sequence


def write(times: Sequence[float], duration: float | None) -> str:
    """A clip's length and when its frames are, in seconds; the last frame's time stands in for no duration."""
    shown = "1 frame of it is" if len(times) == 1 else f"{len(times)} frames of it are"
    stamps = ",".join(f"{time:.2f}s" for time in times)
    length = times[-1] if duration is None else duration
    return f"This video is {length:.2f} seconds long and {shown} shown, at {stamps}. Answer what is asked about it."
