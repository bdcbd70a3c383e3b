"""Video-ChatGPT's benchmark of consistency (consistency_qa.json): two questions with one answer about a clip.

Example:
    {"video_name": "v_1", "Q1": "What jumps?", "Q2": "Which animal jumps?", "A": "A dog."}
"""

from vlvm_jax.data.sources.formats._format import Format, exchanges

FORMAT = Format(
    keys=("video_name", "Q1", "Q2", "A"), precedence=60, parse=exchanges(("Q1", "Q2"), "A"), clip_by_id=True
)
