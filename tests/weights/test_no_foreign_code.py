"""Code that a checkpoint brings or names never runs, and no copy of the checkpoint brings or names it."""

import builtins
import json

import pytest
from etils import epath
from support import tiny_checkpoints as tiny

from vlvm_jax.data.files import CODE_KEYS
from vlvm_jax.data.prompt.tokenizer_files import checkpoint_tokenizer
from vlvm_jax.errors import InputError
from vlvm_jax.families import read_settings
from vlvm_jax.inference.loading import load
from vlvm_jax.inference.requests import Decoding, Request
from vlvm_jax.weights.export import verify, write
from vlvm_jax.weights.export.export import Options, plan
from vlvm_jax.weights.importing import import_checkpoint
from vlvm_jax.weights.sources import open_source
from vlvm_jax.weights.torch_model import names as own_names

CLASSES = (
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor",
    "AutoImageProcessor", "AutoVideoProcessor",
)  # fmt: skip


@pytest.fixture(autouse=True)
def tripwire(tmp_path, monkeypatch):
    """The text of a module that leaves a file when it runs; the file, and a question, fail the test."""
    sprung = tmp_path / "sprung"

    def asked(*_):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(builtins, "input", asked)
    yield f"open({str(sprung)!r}, 'w').close()\nclass Trap: pass\ndef generate(*a, **k): pass\n"
    assert not sprung.exists(), "code of a checkpoint has run"


def trapped(folder, code, **config):
    """A checkpoint with a trap in every file that can name code."""
    tiny.checkpoint(folder, "llava_onevision")
    (folder / "custom_generate").mkdir()
    for name in ("trap.py", "modeling_vlvm.py", "video_adapter.py", "custom_generate/generate.py"):
        (folder / name).write_text(code)
    traps = {
        "auto_map": dict.fromkeys(CLASSES, f"{folder}--trap.Trap"),
        "custom_generate": str(folder),
        "custom_pipelines": {"trap": {"impl": "trap.Trap", "pt": ["AutoModel"]}},
    }
    kernel = {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        file = folder / name
        values = json.loads(file.read_text()) if file.exists() else {}
        for part in ("text_config", "vision_config"):
            if part in values:
                values[part] |= traps | kernel
        values |= traps | (kernel | config if name == "config.json" else {})
        if name in ("config.json", "generation_config.json", "preprocessor_config.json") or file.exists():
            file.write_text(json.dumps(values))
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"auto_map": {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}}))
    file = folder / "processor_config.json"
    if file.exists():
        file.write_text(json.dumps(json.loads(file.read_text()) | traps))
    return folder


def keys_of(value):
    if isinstance(value, dict):
        return {*value, *(key for item in value.values() for key in keys_of(item))}
    return {key for item in value for key in keys_of(item)} if isinstance(value, list) else set()


def assert_names_no_code(folder, own=()):
    for file in folder.rglob("*.json"):
        if file.name not in ("tokenizer.json", "vocab.json"):
            found = keys_of(json.loads(file.read_text())) & CODE_KEYS
            assert found <= set(own), f"{file}: {found}"
    return {file.name for file in folder.rglob("*.py")}


def test_answers_and_imports(tmp_path, tripwire):
    folder = trapped(tmp_path / "model", tripwire)
    tiny.clip(tmp_path / "clip.mp4")
    assert checkpoint_tokenizer(str(folder)).is_fast
    read_settings(str(folder))
    answering = load(str(folder), frames=2)
    request = Request("one", (("video", str(tmp_path / "clip.mp4")),), "what is it ?")
    assert len(list(answering.answer([request], Decoding(2)))) == 1
    import_checkpoint(str(folder), epath.Path(tmp_path / "imported"))
    assert not assert_names_no_code(tmp_path / "imported")


def test_an_export_as_a_class_of_transformers(tmp_path, tripwire):
    pytest.importorskip("torch")
    folder = trapped(tmp_path / "model", tripwire)
    result = write.export_checkpoint(str(folder), tmp_path / "out", Options())
    assert result.rung.family == "llava_onevision" and result.verified is not None
    assert not assert_names_no_code(tmp_path / "out")
    assert not (tmp_path / "out" / "custom_generate").exists()


def test_an_export_with_our_own_file(tmp_path, tripwire):
    pytest.importorskip("torch")
    folder = trapped(tmp_path / "model", tripwire)
    result = write.export_checkpoint(str(folder), tmp_path / "out", Options(format="vlvm", media="video"))
    assert result.rung.family == "vlvm" and result.verified is not None
    ours = own_names.source_files("frames")
    assert assert_names_no_code(tmp_path / "out", own=["auto_map"]) == ours.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"] == own_names.AUTO_MAP
    assert not CODE_KEYS & (keys_of(config["text_config"]) | keys_of(config["vision_config"]))
    for name, source in ours.items():
        assert (tmp_path / "out" / name).read_bytes() == source.read_bytes()


def test_our_own_file_changed_by_someone_else_does_not_run(tmp_path, tripwire):
    pytest.importorskip("torch")
    folder = trapped(tmp_path / "model", tripwire)
    export = plan(open_source(str(folder), "SRC"), Options(format="vlvm", media="video"))
    (tmp_path / "out").mkdir()
    write.write(export, tmp_path / "out", None)
    (tmp_path / "out" / "video_adapter.py").write_text(tripwire)
    with pytest.raises(InputError, match=r"video_adapter.py: not the file that this version exports"):
        verify.compare(export, tmp_path / "out")


def test_a_checkpoint_that_needs_its_own_code_is_refused(tmp_path, tripwire):
    folder = trapped(tmp_path / "model", tripwire, model_type="trapped")
    for read in (read_settings, lambda path: open_source(path, "SRC"), lambda path: load(path, frames=2)):
        with pytest.raises(InputError, match=r"code of the checkpoint's own \(.*which is never run here"):
            read(str(folder))
