"""A question and its answer, as MSR-VTT-QA and many others have them.

Example:
    {"video": "a.mp4", "question": "What jumps?", "answer": "A dog."}
"""

from vlvm_jax.data.sources.formats._format import Format, exchanges

FORMAT = Format(keys=("question", "answer"), precedence=70, parse=exchanges(("question",), "answer"))
