"""LLaVA and LLaMA-Factory's ShareGPT: the format that all others are converted to.

Example:
    {"video": "a.mp4", "conversations": [{"from": "human", "value": "What jumps?"}, {"from": "gpt", "value": "A dog."}]}
"""

from vlvm_jax.data.sources.formats._format import Format

FORMAT = Format(
    keys=("conversations",),
    precedence=10,
    parse=None,
    lists=("conversations",),
    checked_turns=lambda raw: raw["conversations"],
)
