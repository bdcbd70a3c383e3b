"""Readers of the LLaVA conversation format: JSON lists and JSONL, with images, clips, lists of them, or text alone."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlvm_jax.config import MixtureEntry
from vlvm_jax.errors import InputError

MediaKind = Literal["image", "video"]
PLACEHOLDERS = ("<image>", "<video>")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One exchange. `type` names the kind of question where the annotation gives it, for evaluation."""

    question: str
    answer: str
    type: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation over its media.

    Attributes:
      id: the record's own id, or its index.
      source: `file:index`, for messages.
      media: (kind, path) in the order of their placeholders; empty for text alone.
      turns: question and answer, with `<image>`/`<video>` placeholders still in the questions, one per medium.
    """

    id: str
    source: str
    media: tuple[tuple[MediaKind, str], ...]
    turns: tuple[Turn, ...]

    @property
    def kind(self) -> str:
        if not self.media:
            return "text"
        return "video" if any(kind == "video" for kind, _ in self.media) else "image"


def read_mixture(entries: Sequence[MixtureEntry], seed: int) -> list[Record]:
    """All records of a stage. A `fraction` is drawn without replacement by `seed` and the entry's place.

    Raises:
      InputError: a file is missing or not in the LLaVA format; nothing is left.
    """
    records: list[Record] = []
    for number, entry in enumerate(entries):
        found = [r for r in read_llava(entry.path, entry.media_root) if r.kind in entry.media]
        if entry.fraction < 1:
            keep = max(1, round(entry.fraction * len(found))) if found else 0
            chosen = np.random.default_rng([seed, number]).choice(len(found), keep, replace=False)
            found = [found[i] for i in sorted(chosen)]
        records += found * entry.repeat
    if not records:
        raise InputError(f"{', '.join(entry.path for entry in entries)}: no record is left after filtering by media")
    return records


def read_llava(path: str, media_root: str | None = None) -> list[Record]:
    """Reads one annotation file; media paths are relative to `media_root`, by default the file's own folder."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{path}: no such annotation file; give a JSON list or JSONL in the LLaVA format")
    root = Path(media_root).expanduser() if media_root else file.parent
    return [_parse(raw, f"{path}: record {index}", index, root) for index, raw in _objects(file)]


def _objects(file: Path) -> Iterator[tuple[int, Any]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".jsonl":
        for index, line in enumerate(line for line in text.split("\n") if line.strip()):
            try:
                yield index, json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{file}: record {index}: not JSON ({error})") from None
        return
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: not JSON ({error}); one object per line needs the ending .jsonl") from None
    if not isinstance(parsed, list):
        raise InputError(f"{file}: expected a JSON list of records, found {type(parsed).__name__}")
    yield from enumerate(parsed)


def _parse(raw: Any, where: str, index: int, root: Path) -> Record:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected an object, found {type(raw).__name__}")
    kinds: tuple[MediaKind, ...] = ("image", "video")
    media: tuple[tuple[MediaKind, str], ...] = tuple(
        (kind, str(_inside(root, name, where))) for kind in kinds for name in _names(raw, kind, where)
    )
    turns = _turns(raw, where)
    return Record(str(raw.get("id", index)), where, media, _place(turns, media, where))


def _names(raw: dict, kind: str, where: str) -> list[str]:
    value = raw.get(kind)
    if value is None:
        return []
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{where}: {kind!r} must be a path or a list of paths, found {value!r}")
    return names


def _inside(root: Path, name: str, where: str) -> Path:
    """The path of a medium; one that leaves the media folder is refused."""
    path = root / name
    if ".." in Path(name).parts or not path.is_relative_to(root):
        raise InputError(f"{where}: media path {name!r} leaves the media folder; give it relative to the folder")
    return path


def _turns(raw: dict, where: str) -> list[Turn]:
    said = raw.get("conversations")
    if not isinstance(said, list) or not said:
        raise InputError(f"{where}: no 'conversations' list; this is not the LLaVA format")
    messages = []
    for message in said:
        role = ROLES.get(str(message.get("from", message.get("role")))) if isinstance(message, dict) else None
        text = message.get("value", message.get("content")) if role else None
        if role is None or not isinstance(text, str):
            raise InputError(f"{where}: a turn must be {{'from': 'human'|'gpt', 'value': text}}, found {message!r}")
        messages.append((role, text))
    if messages[0][0] == "assistant":  # the format's readers drop a leading answer
        messages = messages[1:]
    roles = [role for role, _ in messages]
    if len(roles) < 2 or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(
            f"{where}: turns must alternate human, gpt and end with gpt; found {', '.join(roles) or 'none'}"
        )
    types = raw.get("types") or [raw.get("type", "")] * (len(messages) // 2)
    if len(types) != len(messages) // 2:
        raise InputError(f"{where}: {len(types)} 'types' for {len(messages) // 2} questions; give one each")
    return [Turn(messages[2 * i][1], messages[2 * i + 1][1], str(types[i])) for i in range(len(types))]


def _place(turns: list[Turn], media: tuple, where: str) -> tuple[Turn, ...]:
    """One placeholder per medium. Missing ones go before the first question; a single one moves to its front.

    `<image>` and `<video>` are both accepted for either kind: which one stands there follows the media.
    """
    count = sum(turn.question.count(p) for turn in turns for p in PLACEHOLDERS)
    if any("<image>" in turn.answer for turn in turns):
        raise InputError(f"{where}: an answer holds the placeholder <image>; only questions may")
    if count and not media:
        raise InputError(
            f"{where}: a placeholder but neither 'image' nor 'video'; name the file or drop the placeholder"
        )
    if count not in (0, len(media)):
        raise InputError(f"{where}: {count} placeholders for {len(media)} media; give one each, or none")
    if count == 0 or len(media) == 1:
        stripped = [
            dataclasses.replace(t, question=t.question.replace("<image>", "").replace("<video>", "").strip())
            for t in turns
        ]
        lead = "".join("<image>\n" for _ in media)
        stripped[0] = dataclasses.replace(stripped[0], question=lead + stripped[0].question)
        return tuple(stripped)
    return tuple(dataclasses.replace(t, question=t.question.replace("<video>", "<image>")) for t in turns)
