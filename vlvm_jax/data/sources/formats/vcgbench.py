"""Video-ChatGPT's benchmark (generic_qa.json, temporal_qa.json): one exchange about a clip by its name.

Example:
    {"video_name": "v_1", "Q": "What jumps?", "A": "A dog."}
"""

from vlvm_jax.data.sources.formats._format import Format, exchanges

FORMAT = Format(keys=("video_name", "Q", "A"), precedence=50, parse=exchanges(("Q",), "A"), clip_by_id=True)
