"""Commands given hostile files, names and settings: no traceback, none beyond 30 s, no control character.

The cases are fixed: hypothesis draws the same each time. `FUZZ_EXAMPLES=140 pytest -m slow tests/fuzz` draws that many
for each command, and `FUZZ_RANDOM=1` other ones each time. Keep what fails as an explicit example here.
"""

import json
import os
import shutil

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from support.recipes import ROOT

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "14"))
fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_RANDOM" not in os.environ,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
pytestmark = [] if EXAMPLES <= 14 else [pytest.mark.slow]

ODD = (
    "", " ", "[/x]", "[red]", "\x1b[2J\x1b]0;owned\x07", "a\nb", "\r", "\x9b2J", "\u202e", "..", "../x", "/",
    "/dev/null",
    "/proc/self/mem", "folder", "file", "clip.mp4", "notes.jsonl", "~", "$HOME", "%s%n", "{a,b}", "{", "*", "a@b", "--",
    "gs://", "s3://b/x", "http://127.0.0.1:1/x", "file:///etc/passwd", "x" * 300, "é视频", "<image>", "<video>", "None",
    "nan", "inf", "-1", "0", "1e30", "9" * 400, "2147483648", "true", "[]", "{}", "((((",
)  # fmt: skip
odd = st.sampled_from(ODD) | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
scalars = (
    odd | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([-1, 0, 1, 10**400])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd, inner, max_size=3), max_leaves=6
)
KEYS = (
    "id", "video", "image", "videos", "images", "conversations", "messages", "question", "answer", "options",
    "candidates", "a0", "a1", "query", "response", "history", "instruction", "input", "output", "system", "type",
    "types", "start", "end", "from", "value", "role", "content", "QA", "question_id", "video_name", "GT", "Q",
)  # fmt: skip
turns = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system"]) | odd, "value": odd | values}),
    max_size=3,
)
records = st.dictionaries(st.sampled_from(KEYS), values, max_size=5) | st.fixed_dictionaries(
    {}, optional={"video": odd | values, "image": odd | values, "conversations": turns, "question": odd, "answer": odd}
)
deep = st.sampled_from(
    ["[" * 100_000, '{"a":' * 5000, "[" * 500 + "]" * 500, '[{"video": ' + "[" * 900 + "]" * 900 + "}]"]
)
listed = (
    st.lists(records | values, max_size=3).map(lambda found: json.dumps(found).encode())
    | st.lists(records, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)).encode())
    | deep.map(str.encode)
    | st.binary(max_size=40)
)
FILE = st.sampled_from(["odd.json", "odd.jsonl", "odd.csv", "odd", "odd [x].json"])
mixtures = st.fixed_dictionaries(
    {"datasets": st.lists(st.fixed_dictionaries({"json_path": odd, "sampling_strategy": odd}) | values, max_size=3)}
).map(lambda found: yaml.safe_dump(found, allow_unicode=True).encode()) | st.binary(max_size=40)


def flags(*names: str) -> st.SearchStrategy[list[str]]:
    """One odd flag, or none."""
    return st.lists(st.tuples(st.sampled_from(names), odd).map(lambda pair: f"--{pair[0]}={pair[1]}"), max_size=1)


@pytest.fixture
def holds(command, place):
    """Runs a command with a file of its own in the folder, and fails for what it must not do."""

    def run(module, arguments, name="odd", data=b"", allowed=(0, 2)):
        file = place / name
        file.write_bytes(data)
        try:
            result = command(f"vlvm_jax.{module}", arguments, place, 60 if "CI" in os.environ else 30)
        finally:
            file.unlink()
            for left in ("out", "run", "imported"):
                shutil.rmtree(place / left, ignore_errors=True)
        assert not result.fault(allowed), f"{module} {arguments} {data!r}: {result.fault(allowed)}"

    return run


@fuzzed
@given(name=FILE, data=listed, more=flags("format", "limit", "media_root", "max_bad_share", "json"))
@example(name="odd.json", data=b"[" * 100_000, more=[])
def test_data_check(holds, name, data, more):
    holds("data", ["check", name, "--workers=0", *more], name, data)


@fuzzed
@given(data=mixtures)
def test_data_check_of_mixtures(holds, data):
    holds("data", ["check", "odd.yaml", "--workers=0"], "odd.yaml", data)


OWN = f"--config={ROOT}/configs/own.py:llava-1.5-7b,base=model,data="
SETTINGS = (
    "config.seed", "config.name", "config.stages[0].steps", "config.stages[0].batch_size", "config.stages[0].frames",
    "config.stages[0].data[0].path", "config.stages[0].data[0].format", "config.stages[9].steps", "config.mesh.fsdp",
    "config.model.dtype", "config.data.chat_template", "config.data.processor", "config.data.tokenizer",
    "config.data.workers", "config.nothing", "config", "workdir", "profile",
)  # fmt: skip


@fuzzed
@given(name=FILE, data=listed, more=flags(*SETTINGS))
def test_train(holds, name, data, more):
    holds("train", [f"{OWN}{name}", "--workdir=run", *more], name, data, allowed=[2])


@fuzzed
@given(name=FILE, data=listed, more=flags("format", "answers", "media", "limit", "output", "chat_template"))
def test_evaluate(holds, name, data, more):
    holds("evaluate", ["--checkpoint=folder", f"--questions={name}", "--output=out", *more], name, data, allowed=[2])


@fuzzed
@given(name=FILE, data=listed, more=flags("video", "image", "prompt", "show", "frames", "seed", "checkpoint", "config"))
def test_generate(holds, name, data, more):
    arguments = ["--checkpoint=folder", "--video=clip.mp4", f"--questions={name}", *more]
    holds("generate", arguments, name, data, allowed=[2])


PARTS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")


@fuzzed
@given(
    name=st.sampled_from(PARTS),
    change=st.dictionaries(st.sampled_from(["model_type", "vision_config", "text_config", "auto_map", "dtype"]), values)
    | deep
    | st.binary(max_size=30),
)
@example(name="config.json", change={"auto_map": {"AutoConfig": "x--y.Z"}, "model_type": "z"})
def test_convert(holds, place, name, change):
    broken = shutil.copytree(place / "model", place / "broken", dirs_exist_ok=True)
    file = broken / name
    there = json.loads(file.read_text()) if file.exists() else {}
    if isinstance(change, dict):
        file.write_text(json.dumps(there | change))
    else:
        file.write_bytes(change.encode() if isinstance(change, str) else change)
    try:
        holds("convert", ["import", "broken", "imported"])
    finally:
        shutil.rmtree(broken)


@fuzzed
@given(more=flags("topology", "stages", "rows", "json", "config", "config.mesh.fsdp", "config.stages[0].steps"))
def test_compile(holds, more):
    holds("compile", [f"--config={ROOT}/configs/ftfv.py", "--topology=v5e-0", *more], allowed=[2])
