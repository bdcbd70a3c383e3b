"""Annotation formats other than LLaVA's, record by record into LLaVA's (see `records`).

llava          {"image"|"video", "conversations": [{"from", "value"}]}
messages       {"messages": [{"role", "content": text or [{"type": "image"|"video"|"text", ...}]}]}, of HF and TRL
videochat2     {"image"|"video", "QA": [{"i", "q", "a"}], "start", "end"}, of VideoChat2-IT
video_chatgpt  {"video_id", "q", "a"}, of Video-ChatGPT-100K: the clip of this name in the media folder
vcgbench       {"video_name", "Q", "A"}, of its benchmark: generic_qa.json, temporal_qa.json
vcgbench_consistency  {"video_name", "Q1", "Q2", "A"}, consistency_qa.json: two questions with one answer
qa             {"image"|"video", "question", "answer"}
"""

from collections.abc import Callable, Iterator
from typing import Any

from vlvm_jax.data.sources.records import check_object, short
from vlvm_jax.errors import InputError

# What a record of each format has, in the order in which they are tried.
KEYS = {
    "llava": ("conversations",),
    "messages": ("messages",),
    "videochat2": ("QA",),
    "video_chatgpt": ("video_id", "q", "a"),
    "vcgbench": ("video_name", "Q", "A"),
    "vcgbench_consistency": ("video_name", "Q1", "Q2", "A"),
    "qa": ("question", "answer"),
}
CLIPS_BY_ID = ("video_chatgpt", "vcgbench", "vcgbench_consistency")  # not by a path
KEPT = ("id", "image", "video", "type", "types", "start", "end")
CLIPS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".gif")


def detect(raw: Any, where: str) -> str:
    """The format of a file whose first record this is.

    Raises:
      InputError: it is of none.
    """
    check_object(raw, where)
    for name, keys in KEYS.items():
        if all(key in raw for key in keys):
            return name
    raise InputError(
        f"{where}: no 'conversations' list; this is not the LLaVA format, nor has it 'messages', 'QA', "
        f"'video_id' with 'q' and 'a', 'video_name' with 'Q' and 'A', or 'question' and 'answer'; its keys are "
        f"{short(sorted(raw))}"
    )


def to_llava(raw: Any, name: str, where: str, clip_of: Callable[[str], str]) -> dict[str, Any]:
    """A record of a format as a LLaVA object; that object is checked where it is used.

    Args:
      name: of the format.
      clip_of: name of the clip in the media folder that has this id.

    Raises:
      InputError: it is not of the format.
    """
    check_object(raw, where)
    if name == "llava":
        return raw
    missing = [key for key in KEYS[name] if key not in raw]
    if missing:
        raise InputError(f"{where}: no {missing[0]!r}, which a record of the format {name!r} has")
    kept = {key: raw[key] for key in KEPT if raw.get(key) is not None}
    if name == "messages":
        return kept | _from_messages(raw, where)
    if name == "videochat2":
        return kept | {"conversations": _from_qa(raw["QA"], where)}
    if name == "video_chatgpt":
        return kept | {"video": clip_of(str(raw["video_id"])), "conversations": _exchange(raw["q"], raw["a"])}
    if name in CLIPS_BY_ID:
        asked = [raw[key] for key in KEYS[name] if key.startswith("Q")]
        said = [turn for question in asked for turn in _exchange(question, raw["A"])]
        return kept | {"video": clip_of(str(raw["video_name"])), "conversations": said}
    return kept | {"conversations": _exchange(raw["question"], raw["answer"])}


def clip_finder(names: list[str]) -> Callable[[str], str]:
    """What `to_llava` needs to find clips by id among a folder's names. An unknown one is named as if it were there."""
    known = set(names)

    def find(clip: str) -> str:
        candidates = [clip, *(clip + ending for ending in CLIPS)]
        return next((name for name in candidates if name in known), clip if clip.endswith(CLIPS) else f"{clip}.mp4")

    return find


def _exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _from_qa(pairs: Any, where: str) -> list[dict[str, Any]]:
    """The first exchange's instruction goes before its question; captions have an instruction alone."""
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and {"q", "a"} <= pair.keys() for pair in pairs):
        raise InputError(f"{where}: 'QA' must be a list of {{'i', 'q', 'a'}}, found {short(pairs)}")
    turns = []
    for number, pair in enumerate(pairs):
        instruction, question = pair.get("i") or "", pair["q"] or ""
        if instruction and question and number == 0:
            question = f"{instruction}\n{question}"
        turns += _exchange(question or instruction, pair["a"])
    return turns


def _from_messages(raw: dict, where: str) -> dict[str, Any]:
    messages = raw["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "content" in m for m in messages):
        raise InputError(f"{where}: 'messages' must be a list of {{'role', 'content'}}, found {short(messages)}")
    beside = {kind: iter(_listed(raw.get(f"{kind}s", raw.get(kind)))) for kind in ("image", "video")}
    found: dict[str, list] = {"image": [], "video": []}
    turns = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(_part(part, found, beside, where) for part in content)
        turns.append({"from": message.get("role"), "value": content})
    for kind in ("image", "video"):
        found[kind] += beside[kind]  # those that no part of the content stands for
    return {"conversations": turns, **{kind: names for kind, names in found.items() if names}}


def _listed(value: Any) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _part(part: Any, found: dict[str, list], beside: dict[str, Iterator], where: str) -> str:
    """Text of one part of a message's content; a medium is noted under its kind, its name from here or from beside."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    for medium in ("image", "video"):
        if kind not in (medium, f"{medium}_url"):
            continue
        name = next((part[key] for key in (kind, medium, "path", "url") if part.get(key) is not None), None)
        name = name["url"] if isinstance(name, dict) and "url" in name else name
        name = next(beside[medium], None) if name is None else name
        if name is None:
            raise InputError(f"{where}: a part of type {kind!r} names no file, nor do '{medium}s' beside it")
        found[medium].append(name.removeprefix("file://") if isinstance(name, str) else name)
        return f"<{medium}>\n"
    raise InputError(f"{where}: a part of a message must have the type image, video or text, found {short(part)}")
