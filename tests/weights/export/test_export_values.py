"""What leaves in which dtype, what it is compared with, and what a card says: on runs made by hand."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_dtypes  # noqa: F401 (numpy learns bfloat16 from it)
import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.families import VLMS, read_tensors
from support.recipes import small
from tokenizers import Tokenizer, models

from vlvm_jax.config import LoraConfig, ModelConfig, to_json
from vlvm_jax.errors import InputError
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.weights.export import card, lora, verify, write
from vlvm_jax.weights.export.export import Export, Options, plan
from vlvm_jax.weights.hf.safetensors_files import INDEX, SafetensorsReader
from vlvm_jax.weights.sources import HFDirectory, Stored, open_source

LORA = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))


class Run(Stored):
    """A run's parameters in memory: those of a checkpoint, LoRA added to them."""

    def __init__(self, base: HFDirectory, dtype: str, config: Any = None, adapters: LoraConfig | None = LORA):
        assert base.vision is not None and base.decoder is not None and base.adapter is not None
        self.name, self.root = "runs/one/teach/checkpoints/40", epath.Path("runs/one")
        self.vision, self.decoder, self.adapter, self.connector = (
            base.vision,
            base.decoder,
            base.adapter,
            base.connector,
        )
        self.lora, self.stages, self.config, self.hf_files = adapters, ("teach",), config, base.hf_files
        model = ModelConfig(
            vision=base.vision, decoder=base.decoder, adapter=base.adapter, lora=adapters, dtype="float32"
        )
        abstract = jax.eval_shape(params_lib.join, Model(model).abstract())
        rng, self.values = np.random.default_rng(0), {}
        for path, a in abstract.items():
            if lora.is_lora(path):
                self.values[path] = (0.2 * rng.standard_normal(a.shape)).astype(np.float32)
            else:
                self.values[path] = base.read(path).astype(dtype)
        self.shapes = {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in self.values.items()}

    def read(self, path: str) -> np.ndarray:
        return self.values[path]


def run_of(checkpoints, dtype="bfloat16", name="llava clip llama", **changes) -> Run:
    base = open_source(str(checkpoints(name, dtype="float32")), "SRC")
    assert isinstance(base, HFDirectory)
    return Run(base, dtype, **changes)


def merged_by_hand(run: Run, path: str) -> np.ndarray:
    layer = path.removesuffix("/kernel")
    a, b = (run.values[f"{layer}/lora_{which}"].astype(np.float64) for which in "ab")
    return run.values[path].astype(np.float64) + LORA.scale * a @ b


def written(folder: Path, export: Export) -> np.ndarray:
    write.write(export, folder, None)
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    return read_tensors(folder)[name].T


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lora_is_merged_in_fp32_and_rounded_once(checkpoints, tmp_path, stored, dtype):
    run = run_of(checkpoints, stored)
    found = written(tmp_path, plan(run, Options(dtype=dtype)))
    exact = merged_by_hand(run, "decoder/layers/self_attn/q_proj/kernel")[1]
    assert str(found.dtype) == dtype
    if dtype == "float32":
        np.testing.assert_allclose(found, exact, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, exact.astype(np.float32).astype(dtype))


@pytest.mark.parametrize(("dtype", "rounds"), [("float32", False), ("bfloat16", True)])
def test_it_is_compared_with_the_model_as_trained(checkpoints, tmp_path, dtype, rounds):
    """In fp32 with LoRA beside its kernels; in bf16 with the rounded weights, and the rounding is told."""
    export = plan(run_of(checkpoints), Options(dtype=dtype))
    write.write(export, tmp_path, None)
    report = verify.compare(export, tmp_path)
    assert report is not None and report.difference < 1e-5 and report.same_answer
    assert (report.rounding is not None) == rounds == export.rounds
    if rounds:
        assert report.rounding is not None and 1e-4 < report.rounding[0] < 0.1
        assert f"rounded to bfloat16, they differ from the trained model's by {report.rounding[0]:.1e}" in str(report)


def test_a_merge_that_was_rounded_is_noticed(checkpoints, tmp_path, monkeypatch):
    """The fault that was: fp32 tensors with bf16 values. The comparison takes LoRA unmerged, so it sees it."""
    export = plan(run_of(checkpoints), Options(dtype="float32"))
    exact = Export._merged
    monkeypatch.setattr(Export, "_merged", lambda self, path: exact(self, path).astype("bfloat16").astype(np.float32))
    write.write(export, tmp_path, None)
    with pytest.raises(InputError, match="does not say the same in PyTorch"):
        verify.compare(export, tmp_path)


# --- ids


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(VLMS), words=st.integers(3, 140), known=st.sampled_from([(), ("<image>",), ("<video>",)]),
    adapter=st.sampled_from([None, {"pool": "max", "pool_stride": 2}]),
)  # fmt: skip
def test_every_id_has_a_row(checkpoints, tmp_path_factory, name, words, known, adapter):
    """Media tokens and all that the tokenizer gives, for every class, with a tokenizer smaller or larger than the
    embedding."""
    folder = tmp_path_factory.mktemp("ids")
    run = run_of(checkpoints, "float32", name, adapters=None)
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    made.add_special_tokens(list(known))
    (folder / "files").mkdir()
    made.save(str(folder / "files" / "tokenizer.json"))
    (folder / "files" / "config.json").write_bytes((run.hf_files / "config.json").read_bytes())
    run.hf_files = epath.Path(folder / "files")
    if adapter is not None:
        run.adapter = run.adapter.model_copy(update={"options": adapter})
    export = plan(run, Options())
    (folder / "out").mkdir()
    write.write(export, folder / "out", None)
    config = json.loads((folder / "out" / "config.json").read_text())
    rows = config["text_config"]["vocab_size"]
    tensors = read_tensors(folder / "out")
    (embedding,) = [t for key, t in tensors.items() if key.endswith("embed_tokens.weight")]
    assert embedding.shape[0] == rows
    for key, tensor in tensors.items():  # a greedy choice falls on token 0 first
        if key.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert (tensor[run.decoder.vocab_size :] == tensor[0]).all()
    ids = Tokenizer.from_file(str(folder / "out" / "tokenizer.json")).get_vocab(with_added_tokens=True)
    stated = [value for key, value in config.items() if key.startswith(("image_token_i", "video_token_i"))]
    assert max([*ids.values(), *stated, *export.media_tokens().values()]) < rows
    assert ("<video>" in ids) <= (export.rung.has_video or "<video>" in known)


# --- cards


class Named:
    """A run's config, as far as a card reads it."""

    name = "ftfv-smolvlm"

    data = SimpleNamespace(chat_template="checkpoint")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolvlm remainder tied", "It needs the packages torchvision and num2words"),
        ("idefics3 scale3 gqa1", "The class has no video input"),
        ("llava clip llama", "The class has no video input"),
        ("llava_onevision odd-grid shrink", "Its processor needs the package torchvision."),
    ],
)
def test_the_card_names_the_recipe_and_says_how_clips_go_in(checkpoints, name, said):
    export = plan(run_of(checkpoints, "float32", name, config=Named(), adapters=None), Options())
    text = card.text(export, None)
    assert "\n# ftfv-smolvlm\n" in text and said in text
    assert ("no video input" in text) == (said == "The class has no video input")
    assert ("`<video>` is token" in text) == export.rung.has_video


def test_a_cards_title_is_the_repositorys_from_the_hubs_cache(checkpoints, tmp_path):
    cached = tmp_path / "models--owner--name" / "snapshots" / "0123"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(checkpoints("llava clip llama"))
    export = plan(HFDirectory(epath.Path(cached), "SRC"), Options())
    assert "\n# owner/name\n" in card.text(export, None)


# --- directories


def test_a_run_without_a_finished_stage_names_those_with_checkpoints(tmp_path):
    config = small()
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    with pytest.raises(InputError, match="no stage of this run is finished; none has a checkpoint yet"):
        open_source(str(tmp_path), "SRC")
    first = config.stages[0].name
    (tmp_path / first / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(InputError, match=f"no stage of this run is finished; to use .* one, give {tmp_path}/{first}$"):
        open_source(str(tmp_path), "SRC")


def test_two_checkpoints_in_one_directory_are_refused(checkpoints, tmp_path):
    shutil.copytree(checkpoints("llava clip llama", shards=True), tmp_path / "both")
    shutil.copy(checkpoints("llava clip llama") / "model.safetensors", tmp_path / "both")
    with pytest.raises(InputError, match=f"holds model.safetensors and {INDEX}, which names other files"):
        SafetensorsReader(tmp_path / "both")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_is_read_under_both_names(checkpoints, tmp_path, key):
    source = tmp_path / "source"
    shutil.copytree(checkpoints("llava clip llama"), source)
    config = json.loads((source / "config.json").read_text())
    config.pop("dtype", None)
    (source / "config.json").write_text(json.dumps(config | {key: "bfloat16"}))
    assert plan(open_source(str(source), "SRC"), Options()).dtype == "bfloat16"
