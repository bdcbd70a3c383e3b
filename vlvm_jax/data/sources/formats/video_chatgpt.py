"""Video-ChatGPT-100K: one exchange about the clip that has this name in the media folder.

Example:
    {"video_id": "v_1", "q": "What jumps?", "a": "A dog."}
"""

from vlvm_jax.data.sources.formats._format import Format, exchanges

FORMAT = Format(keys=("video_id", "q", "a"), precedence=40, parse=exchanges(("q",), "a"), clip_by_id=True)
