"""Files of long texts for tests."""

import json
from pathlib import Path

TEXTS = {file.stem: file.read_text() for file in sorted((Path(__file__).parents[1] / "data" / "texts").glob("*.txt"))}
WORDS = (TEXTS["genesis"] + TEXTS["sonnets"]).split()


def write(path: Path, count: int, words: int = 90) -> str:
    """A file of triplets; the i-th has `words * (i % 4 + 1)` words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        first = number * 17 % 300
        context = " ".join(WORDS[first : first + words * (number % 4 + 1)])
        record = {"context": context, "question": f"what is {number} ?", "answer": f"it is {number}"}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines))
    return str(path)
