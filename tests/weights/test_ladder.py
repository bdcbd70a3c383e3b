"""Which class an export becomes, why not another, and whether it then really is one."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from support import families
from support.exports import load_strictly
from support.small import DATA
from support.stage_states import Position

from vlvm_jax.config import AdapterConfig, Config, DecoderConfig, MeshConfig, VisionConfig, build, to_json
from vlvm_jax.data.embedded.words import ROOM
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.weights.export import ladder, write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.initial import Initial
from vlvm_jax.weights.sources import HF_FOLDER, open_source

CLIP = VisionConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
)
SIGLIP = CLIP.model_copy(update={"kind": "siglip", "feature_layer": -1})
IDEFICS3 = SIGLIP.model_copy(update={"kind": "idefics3", "post_norm": True})
ODD = CLIP.model_copy(update={"image_size": 20})
DECODER = DecoderConfig(
    vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
PLAIN: dict[str, Any] = {}
NEXT_VIDEO = {"pool": "average", "pool_place": "before_connector", "newline": "image"}
ONEVISION = {"pool": "bilinear", "newline": "all"}
SHUFFLE = {"kind": "pixel_shuffle", "bias": False}


def frames(options, **connector) -> AdapterConfig:
    return build(AdapterConfig, {"name": "frames", "options": options, "connector": connector})


def choose(options, base, *, vision=CLIP, connector=None, trained=True, **asked) -> ladder.Rung:
    return ladder.choose(vision, DECODER, frames(options, **(connector or {})), base, trained=trained, **asked)


@pytest.mark.parametrize(
    ("options", "base", "changes", "rung", "family"),
    [
        # The class it came from, or a plain one.
        (PLAIN, "llava", {}, 1, "llava"),
        (PLAIN, None, {}, 1, "llava"),
        (PLAIN, "llava", {"vision": SIGLIP}, 1, "llava"),
        (PLAIN, "llava", {"connector": {"bias": False}}, 1, "llava"),
        (PLAIN, "llava_next", {}, 1, "llava"),
        ({"newline": "image"}, "llava_next", {"media": "image"}, 1, "llava_next"),
        (NEXT_VIDEO, "llava_next_video", {}, 1, "llava_next_video"),
        (NEXT_VIDEO | {"pool": "max"}, "llava_next_video", {}, 1, "llava_next_video"),
        (ONEVISION, "llava_onevision", {"vision": SIGLIP}, 1, "llava_onevision"),
        (PLAIN, "smolvlm", {"vision": IDEFICS3, "connector": SHUFFLE}, 1, "smolvlm"),
        (PLAIN, "idefics3", {"vision": IDEFICS3, "connector": SHUFFLE}, 1, "idefics3"),
        (PLAIN, None, {"vision": IDEFICS3, "connector": SHUFFLE}, 1, "smolvlm"),
        # An import as it came is its class, whatever it is given.
        ({"newline": "image"}, "llava_next", {"trained": False}, 1, "llava_next"),
        (NEXT_VIDEO, "llava_next_video", {"trained": False, "vision": ODD}, 1, "llava_next_video"),
        ({"newline": "image"}, "llava_next", {"trained": False, "asked": "llava_next"}, 1, "llava_next"),
        # Another class's pooling.
        (NEXT_VIDEO, "llava", {}, 2, "llava_next_video"),
        (NEXT_VIDEO | {"pool": "max"}, "llava", {}, 2, "llava_next_video"),
        (NEXT_VIDEO | {"newline": "none"}, "llava", {"media": "video"}, 2, "llava_next_video"),
        (NEXT_VIDEO, "llava_next", {}, 2, "llava_next_video"),
        (ONEVISION, "llava", {}, 3, "llava_onevision"),
        (ONEVISION, "llava", {"vision": ODD}, 3, "llava_onevision"),
        (ONEVISION | {"newline": "video"}, "llava", {"media": "video"}, 3, "llava_onevision"),
        # None but our own.
        ({"newline": "image"}, "llava_next", {}, 4, "vlvm"),
        (NEXT_VIDEO, "llava", {"vision": ODD}, 4, "vlvm"),
        (NEXT_VIDEO | {"pool_stride": 4}, "llava", {}, 4, "vlvm"),
        (NEXT_VIDEO | {"pool_place": "after_connector"}, "llava", {}, 4, "vlvm"),
        (NEXT_VIDEO | {"newline": "none"}, "llava", {}, 4, "vlvm"),
        (ONEVISION | {"newline": "video"}, "llava", {}, 4, "vlvm"),
        (ONEVISION | {"newline": "none"}, "llava", {"media": "video"}, 4, "vlvm"),
        (ONEVISION | {"pool_place": "before_connector"}, "llava", {}, 4, "vlvm"),
        ({"newline": "video"}, "llava", {}, 4, "vlvm"),
        (PLAIN, "llava", {"connector": {"kind": "linear"}}, 4, "vlvm"),
        (PLAIN, "llava", {"vision": CLIP.model_copy(update={"post_norm": True})}, 4, "vlvm"),
        (PLAIN, None, {"vision": IDEFICS3}, 4, "vlvm"),
        ({"pool": "average"}, "smolvlm", {"vision": IDEFICS3, "connector": SHUFFLE}, 4, "vlvm"),
        (PLAIN, "smolvlm", {"vision": SIGLIP, "connector": SHUFFLE}, 4, "vlvm"),
        # Asked for.
        (PLAIN, "llava", {"asked": "vlvm"}, 4, "vlvm"),
        (PLAIN, "llava", {"asked": "llava"}, 1, "llava"),
        (NEXT_VIDEO, "llava", {"asked": "llava_next_video"}, 2, "llava_next_video"),
        (PLAIN, "llava_onevision", {"media": "image", "asked": "llava"}, 1, "llava"),
    ],
)
def test_the_highest_exact_rung(options, base, changes, rung, family):
    found = choose(options, base, **changes)
    assert (found.number, found.family) == (rung, family), found
    assert found.reason and "\n" not in found.reason


def test_bare_parts_are_their_own_class():
    for vision, decoder, family in ((CLIP, None, "clip"), (None, DECODER, "mistral")):
        rung = ladder.choose(vision, decoder, None, family, trained=False)
        assert (rung.number, rung.family) == (0, family)


@pytest.mark.parametrize(
    ("options", "base", "changes", "reason"),
    [
        (NEXT_VIDEO, "llava", {"asked": "llava"}, "it pools frames by 'none', this model by 'average'"),
        (PLAIN, "llava", {"asked": "llava_onevision"}, "it pools frames by 'bilinear', this model by 'none'"),
        (NEXT_VIDEO | {"pool_stride": 4}, "llava", {"asked": "llava_next_video"}, "counts a stride of 2.* has 4"),
        (
            NEXT_VIDEO | {"pool_place": "after_connector"}, "llava", {"asked": "llava_next_video"},
            "it pools before the connector, this model after the connector",
        ),
        (NEXT_VIDEO, "llava", {"asked": "llava_next_video", "vision": ODD}, r"miscount odd grids \(5 x 5 patches\)"),
        (
            NEXT_VIDEO | {"newline": "none"}, "llava", {"asked": "llava_next_video"},
            "adds newline embedding after images, this model does not .with --media=video, images do not count.",
        ),
        (
            {"newline": "all"}, "llava", {"asked": "llava", "media": "video"},
            "it adds no newline embedding after videos, this model does$",
        ),
        ({"newline": "image"}, "llava_next", {"asked": "llava_next"}, "it cuts every image into tiles, so the frames"),
        (PLAIN, "llava", {"asked": "llava", "connector": {"kind": "linear"}}, "a two-layer connector, .* a linear one"),
        (PLAIN, "llava", {"asked": "llava", "vision": IDEFICS3}, "it has no idefics3 tower"),
        (PLAIN, "smolvlm", {"asked": "smolvlm", "vision": SIGLIP, "connector": SHUFFLE}, "it reads an Idefics3 tower"),
        (
            {"newline": "all"}, "smolvlm", {"asked": "smolvlm", "vision": IDEFICS3, "connector": SHUFFLE},
            "it neither pools frames nor adds newlines",
        ),
    ],
)  # fmt: skip
def test_an_inexact_class_is_refused_with_the_reason(options, base, changes, reason):
    with pytest.raises(InputError, match=f"^--format={changes['asked']}: would not compute the same: .*{reason}"):
        choose(options, base, **changes)


def test_another_adapter_has_no_class():
    adapter = AdapterConfig(name="weighted_sampler")
    rung = ladder.choose(CLIP, DECODER, adapter, "llava", trained=True)
    assert rung.number == 4 and rung.reason == (
        "not llava, llava_next_video, llava_onevision: the adapter 'weighted_sampler' has no counterpart in it"
    )
    with pytest.raises(InputError, match=r"--format=llava: .*'weighted_sampler' has no counterpart"):
        ladder.choose(CLIP, DECODER, adapter, "llava", trained=True, asked="llava")


@pytest.mark.parametrize("asked", ["qwen2_vl", "clip", "smolvlm", "LLaVA"])
def test_an_unknown_class_is_refused_with_those_there_are(asked):
    with pytest.raises(InputError, match=f"--format={asked}: .*llava, llava_next_video, llava_onevision, vlvm$"):
        choose(PLAIN, "llava", asked=asked)


def test_every_reason_before_the_chosen_rung_is_given():
    rung = choose(ONEVISION, "llava")
    assert rung.reason == (
        "its video pooling is exactly this model's; not llava: it pools frames by 'none', this model by 'bilinear'; "
        "not llava_next_video: it pools frames by 'average', this model by 'bilinear'"
    )


# --- real exports: a LLaVA base, trained for a step with another pooling


@pytest.fixture(scope="module")
def bases(tmp_path_factory, checkpoints):
    """Directories with a vocabulary for the embedded data's words, and room for the placeholders."""
    size = ROOM + 6

    def make(family: str, vision, **changes):
        model = families.vlm(family, vision, families.llama(vocab_size=size), **changes)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        return folder

    return {
        "llava": make("llava", families.clip(), image_token_index=size - 1),
        "llava odd": make("llava", families.clip(20), image_token_index=size - 1),
        "smolvlm": make("smolvlm", families.idefics_tower("SmolVLM", 8), image_token_id=size - 1),
    }


def config_of(base: Path, options: dict[str, Any]) -> Config:
    """One step on clips and images from a base, with some options of the `frames` adapter."""
    source = open_source(str(base), "base")
    assert source.vision and source.decoder and source.connector
    model = {
        "vision": to_json(source.vision), "decoder": to_json(source.decoder), "dtype": "float32",
        "adapter": {"name": "frames", "options": options, "connector": to_json(source.connector)},
        "init_from": str(base),
    }  # fmt: skip
    entries = [{"path": f"{{embedded}}/train_{kind}.json"} for kind in ("clips", "arrangements")]
    stage = {
        "name": "mixed", "data": entries, "steps": 1, "batch_size": 8, "frames": 2, "length": 176,
        "trainable": {"adapter/**": 0.1, "decoder/**": 0.1}, "schedule": "constant",
    }  # fmt: skip
    data = {"embedded": DATA, "tokenizer": "{embedded}/tokenizer.json", "chat_template": "bare", "workers": 0}
    return build(Config, {"name": "frames", "model": model, "data": data, "stages": [stage], "tensorboard": False})


def stored_run(config: Config, workdir: epath.Path) -> None:
    """What a run leaves behind, with parameters as a step might have changed them."""
    initial = Initial(config.model)
    abstract = jax.eval_shape(params_lib.join, Model(config.model).abstract())
    params = initial.params(abstract, make_mesh(MeshConfig(), jax.devices()[:1]), seed=0)
    rng = np.random.default_rng(0)
    moved = {
        path: value
        if path.startswith("encoder/")
        else jnp.asarray(value + rng.normal(0, 0.01, value.shape), jnp.float32)
        for path, value in ((path, np.asarray(value)) for path, value in params.items())
    }
    initial.copy_side_files(workdir / HF_FOLDER, "")
    checkpoints = StageCheckpoints(workdir / "mixed" / "checkpoints", keep=1)
    checkpoints.save(
        1, params=moved, opt_state={"count": jnp.ones(())}, rng=jnp.zeros(2), data=Position(1), config={"steps": 1}
    )
    checkpoints.close()
    (workdir / "mixed" / "result.json").write_text("{}")
    (workdir / "config.json").write_text(json.dumps(to_json(config)))


@pytest.fixture(scope="module")
def trained(bases, tmp_path_factory):
    """Folders of runs by base and options, each made once."""

    @functools.cache
    def run(base: str, options: str) -> epath.Path:
        workdir = epath.Path(tmp_path_factory.mktemp("run"))
        stored_run(config_of(bases[base], json.loads(options)), workdir)
        return workdir

    return lambda base, options: run(base, json.dumps(options))


@pytest.mark.slow
def test_a_run_is_exported_as_the_class_its_pooling_is(bases, data_root, monkeypatch, tmp_path):
    """Trained for a step by the library itself; the runs of the tests below are written by hand."""
    monkeypatch.setenv("VLVM_JAX_DATA", str(data_root))
    stages.run(config_of(bases["llava"], NEXT_VIDEO), epath.Path(tmp_path / "run"), StopSignal(), final.evaluate)
    result = write.export_checkpoint(str(tmp_path / "run"), tmp_path / "export", Options())
    assert (result.rung.number, result.rung.family) == (2, "llava_next_video")
    assert result.verified is not None and result.verified.difference < 1e-5 and result.verified.same_answer
    check_trained(load_strictly(tmp_path / "export", "llava_next_video"), bases["llava"])


def check_trained(model, base: Path) -> None:
    """The tower is the base's, the decoder has moved."""
    original = transformers.AutoModelForImageTextToText.from_pretrained(base)
    after, before = (m.get_input_embeddings().weight.detach() for m in (model, original))
    assert not torch.equal(after[: len(before)], before)
    part = "vision_model" if hasattr(model.model, "vision_model") else "vision_tower"
    tower, theirs = (getattr(m.model, part).state_dict() for m in (model, original))
    assert tower.keys() == theirs.keys() and all(torch.equal(tower[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "options", "media", "rung", "family"),
    [
        ("llava", PLAIN, "all", 1, "llava"),
        ("llava", {"newline": "image"}, "video", 1, "llava"),
        ("smolvlm", PLAIN, "all", 1, "smolvlm"),
        ("llava", NEXT_VIDEO, "all", 2, "llava_next_video"),
        ("llava", NEXT_VIDEO | {"pool": "max", "newline": "none"}, "video", 2, "llava_next_video"),
        ("llava odd", ONEVISION, "all", 3, "llava_onevision"),
        ("llava", ONEVISION | {"newline": "none"}, "all", 4, "vlvm"),
    ],
)
def test_a_trained_model_as_its_class(trained, bases, base, options, media, rung, family, tmp_path):
    run = trained(base, options)
    folder = tmp_path / "export"
    result = write.export_checkpoint(str(run), folder, Options(media=media, verify=rung > 1))
    assert (result.rung.number, result.rung.family) == (rung, family)
    if (report := result.verified) is not None:
        assert report.difference < 1e-5 and report.same_answer
    assert (report is not None) == (rung > 1)
    card = (folder / "README.md").read_text()
    assert result.rung.reason in card and "Stages: mixed." in card
    if family == "vlvm":
        return
    model = load_strictly(folder, family)
    check_trained(model, bases[base])
    if family == "smolvlm":
        return
    config = model.config
    assert config.vision_feature_layer == -2 and config.vision_feature_select_strategy == "default"
    if family == "llava_next_video":
        assert (config.spatial_pool_mode, config.spatial_pool_stride) == (options["pool"], 2)
    if family != "llava":
        side = config.vision_config.image_size
        assert all(edge % side == 0 for canvas in config.image_grid_pinpoints for edge in canvas)
        assert config.video_token_id != config.image_token_id
        newline = model.model.image_newline
        assert bool(newline.any()) == (options["newline"] != "none")


@pytest.mark.slow
def test_what_the_class_answers_to_a_clip_is_what_it_was_compared_on(trained, tmp_path):
    """The tokens of the exported config, counted by hand: frames x (grid / 2)^2, and OneVision's newline."""
    folder = tmp_path / "export"
    write.export_checkpoint(str(trained("llava odd", ONEVISION)), folder, Options(verify=False))
    model = load_strictly(folder, "llava_onevision")
    clip = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 3, 20, 20)).astype(np.float32))
    count = 2 * 3**2 + 1
    ids = torch.tensor([[3, *[model.config.video_token_id] * count, 4]])
    with torch.no_grad():
        assert model(input_ids=ids, pixel_values_videos=clip).logits.shape[:2] == (1, count + 2)


@pytest.mark.slow
def test_a_refused_export_leaves_nothing(trained, tmp_path):
    run = trained("llava", NEXT_VIDEO)
    for asked, reason in (("llava", "pools frames"), ("llava_onevision", "pools frames"), ("bert", "not a class")):
        with pytest.raises(InputError, match=f"--format={asked}: .*{reason}"):
            write.export_checkpoint(str(run), tmp_path / "export", Options(format=asked))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "dtype"), [("merge", None), ("merge", "bfloat16"), ("peft", None)])
def test_lora_goes_out_merged_or_as_an_adapter(asked, dtype, bases, tmp_path):
    """Both are compared with PyTorch as they are written, bf16 after its rounding."""
    values = to_json(config_of(bases["llava"], {}))
    values["model"]["lora"] = {"rank": 2, "alpha": 4.0, "parts": ["decoder", "encoder"]}
    stored_run(build(Config, values), epath.Path(tmp_path) / "run")
    options = Options(lora=asked, dtype=dtype)
    result = write.export_checkpoint(str(tmp_path / "run"), tmp_path / "out", options)
    assert result.rung.number == 1 and result.verified is not None and result.verified.same_answer
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists() == (asked == "peft")
    plain = write.export_checkpoint(str(bases["llava"]), tmp_path / "base", Options(verify=False))
    assert result.parameters == plain.parameters


@pytest.mark.slow
def test_an_adapter_that_is_not_there_is_not_written(trained, tmp_path):
    with pytest.raises(InputError, match=r"--lora=peft: .* has no LoRA parameters"):
        write.export_checkpoint(str(trained("llava", {})), tmp_path / "out", Options(lora="peft"))
    assert not (tmp_path / "out").exists()
