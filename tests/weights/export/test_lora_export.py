"""LoRA parameters merged into their kernels, and handed to the real PEFT on transformers' own classes."""

import json
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import hf

from vlvm_jax.config import AdapterConfig, DecoderConfig, LoraConfig, MeshConfig, ModelConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoder import Decoder
from vlvm_jax.models.lora import attach
from vlvm_jax.models.params import Model, Params
from vlvm_jax.models.video_llm import VideoLLM
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.weights.export import lora

LENGTH, IMAGE_TOKEN, PATCHES, LAYERS = 10, 39, 4, 2
VISION = VisionConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
)
DECODER = DecoderConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4,
)  # fmt: skip
CONFIG = ModelConfig(vision=VISION, adapter=AdapterConfig(name="frames"), decoder=DECODER, dtype="float32")
BOTH = LoraConfig(rank=3, alpha=4.5, parts=("decoder", "encoder"))
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, IMAGE_TOKEN, (2, LENGTH))
IMAGES = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def batch() -> Batch:
    """An image from the third token of each row on."""
    ones = np.ones((2, LENGTH), np.int32)
    marks = (np.arange(LENGTH) >= 2) & (np.arange(LENGTH) < 2 + PATCHES) & (ones > 0)
    return Batch(
        frames=jnp.asarray(IMAGES[:, None]),
        media=jnp.ones((2, 1), int),
        is_video=jnp.zeros((2, 1), bool),
        token_ids=jnp.asarray(np.where(marks, IMAGE_TOKEN, TOKENS)),
        media_mask=jnp.asarray(marks),
        positions=jnp.asarray(np.arange(LENGTH) * ones),
        segment_ids=jnp.asarray(ones),
        loss_mask=jnp.asarray(~marks),
    )


@nnx.jit
def logits(model: VideoLLM, batch: Batch):
    return model.decoder.logits(model(batch)[0])


@nnx.jit
def text_logits(decoder: Decoder, tokens):
    places = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    return decoder.logits(decoder(decoder.embed(tokens), places, jnp.ones_like(tokens))[0])


def params_of(model: nnx.Module, prefix: str = "") -> dict[str, jax.Array]:
    flat = nnx.to_flat_state(nnx.state(model))
    return params_lib.join({prefix + "/".join(map(str, path)): value[...] for path, value in flat})


def adapted(parts: dict[str, nnx.Module], config: LoraConfig) -> None:
    """Gives the parts adapters that change what they compute."""
    attach(parts, config, rngs=nnx.Rngs(3))
    for number, part in enumerate(parts.values()):
        for path, variable in nnx.to_flat_state(nnx.state(part)):
            if path[-1] == "lora_b":
                noise = np.random.default_rng(number).standard_normal(variable[...].shape) * 0.3
                variable[...] = jnp.asarray(noise, jnp.float32)


def random_params(config: LoraConfig) -> dict[str, jax.Array]:
    """Whole parameters, biases random too."""
    model = hf.fill(lambda: VideoLLM(CONFIG, rngs=nnx.Rngs(0)), seed=4)
    adapted({"encoder": model.encoder, "decoder": model.decoder}, config)
    return params_of(model)


# --- merging


def merge(params: Mapping[str, jax.Array], config: LoraConfig) -> Params:
    """All parameters of the model without adapters that computes the same."""
    return {path: lora.merged(path, params.__getitem__, config) for path in params if not lora.is_lora(path)}


@pytest.mark.parametrize("rslora", [False, True])
def test_the_merged_model_computes_the_same(rslora):
    config = BOTH.model_copy(update={"rslora": rslora})
    params = random_params(config)
    merged = merge(params, config)
    plain = Model(CONFIG)
    assert merged.keys() == jax.eval_shape(params_lib.join, plain.abstract()).keys()
    with_adapters = Model(CONFIG.model_copy(update={"lora": config})).bind(params_lib.split(params, {}))
    expected = logits(with_adapters, batch())
    np.testing.assert_allclose(logits(plain.bind(params_lib.split(merged, {})), batch()), expected, atol=1e-5)
    base = {path: value for path, value in params.items() if not lora.is_lora(path)}
    assert np.abs(logits(plain.bind(params_lib.split(base, {})), batch()) - expected).max() > 0.1
    untouched = [path for path in base if np.array_equal(base[path], merged[path])]
    assert {path for path in base if path.endswith("proj/kernel")}.isdisjoint(untouched)
    assert {path for path in base if not path.endswith("/kernel")} <= set(untouched)


def test_a_bfloat16_kernel_is_rounded_once():
    path = "decoder/layers/mlp/up_proj"
    shapes = {"kernel": (LAYERS, 16, 24), "lora_a": (LAYERS, 16, 3), "lora_b": (LAYERS, 3, 24)}
    params = {f"{path}/{leaf}": RNG.standard_normal(shape).astype(np.float32) for leaf, shape in shapes.items()}
    params[f"{path}/kernel"] = params[f"{path}/kernel"].astype(ml_dtypes.bfloat16)
    found = lora.merged(f"{path}/kernel", params.__getitem__, BOTH)
    kernel, a, b = (params[f"{path}/{leaf}"].astype(np.float64) for leaf in shapes)
    expected = (kernel + 1.5 * a @ b).astype(np.float32).astype(ml_dtypes.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected)


def test_merging_layer_by_layer_gives_the_same():
    params = random_params(BOTH)
    merged = merge(params, BOTH)
    for path in ("decoder/layers/mlp/down_proj/kernel", "encoder/layers/self_attn/q_proj/kernel"):
        for index in range(LAYERS):
            layer = lora.merged(path, lambda name, i=index: np.asarray(params[name][i]), BOTH)
            np.testing.assert_allclose(layer, merged[path][index], atol=1e-6)


def test_a_sharded_kernel_stays_where_it_is():
    grid = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    path = "decoder/layers/mlp/up_proj"
    placed = {"kernel": P(None, "fsdp", "tensor"), "lora_a": P(None, "fsdp"), "lora_b": P(None, None, "tensor")}
    params = {
        f"{path}/{leaf}": jax.device_put(params, NamedSharding(grid, placed[leaf]))
        for leaf, params in (
            ("kernel", jnp.ones((2, 16, 24))), ("lora_a", jnp.ones((2, 16, 3))), ("lora_b", jnp.ones((2, 3, 24))),
        )
    }  # fmt: skip
    config = LoraConfig(rank=3, alpha=3, targets=("up_proj",))
    merged = merge(params, config)[f"{path}/kernel"]
    assert merged.sharding == params[f"{path}/kernel"].sharding
    np.testing.assert_allclose(merged, 4.0)


PATH = "decoder/layers/self_attn/q_proj"
PAIR = {f"{PATH}/lora_a": jnp.ones((2, 16, 3)), f"{PATH}/lora_b": jnp.ones((2, 3, 16))}


@pytest.mark.parametrize(
    ("params", "changes", "message"),
    [
        (PAIR, {"targets": ("k_proj",)}, f"^{PATH}/lora_a: .*asks for none here"),
        (PAIR, {"parts": ("encoder",)}, f"^{PATH}/lora_a: .*asks for none here"),
        (PAIR, {"rank": 4}, f"^{PATH}/lora_a: has rank 3, but config.model.lora.rank is 4"),
        (PAIR, {"targets": ("q_proj", "v_proj")}, r"^decoder/layers/\*\*/v_proj/lora_a: the checkpoint lacks"),
        ({f"{PATH}/lora_a": jnp.ones((2, 16, 3))}, {}, f"^{PATH}/lora_b: the checkpoint lacks"),
        ({}, {}, "the checkpoint lacks"),
    ],
)
def test_parameters_of_another_config_are_refused(params, changes, message, tmp_path):
    config = LoraConfig(rank=3, alpha=3, targets=("q_proj",)).model_copy(update=changes)
    with pytest.raises(InputError, match=message):
        lora.write_peft(tmp_path / "adapter", params, config, {"decoder": "model"})
    assert not (tmp_path / "adapter").exists()


def test_a_part_whose_modules_peft_does_not_know_is_refused(tmp_path):
    config = LoraConfig(rank=3, alpha=3, targets=("q_proj",))
    with pytest.raises(InputError, match="no names for LoRA in this class's decoder; use --lora=merge"):
        lora.write_peft(tmp_path / "adapter", PAIR, config, {"encoder": "model.vision_tower.encoder"})
    assert not (tmp_path / "adapter").exists()


# --- PEFT


def llama(transformers):
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps",
    )  # fmt: skip
    return transformers.LlamaConfig(**{name: getattr(DECODER, name) for name in names})


def our_decoder(torch, language_model, lm_head) -> Decoder:
    whole = torch.nn.ModuleDict({"model": language_model, "lm_head": lm_head})
    return hf.load(lambda: Decoder(DECODER, dtype=jnp.float32, rngs=nnx.Rngs(0)), whole)


def with_peft(model, directory):
    """The torch model with the adapter directory on it; what PEFT holds is exactly what the file holds."""
    peft = pytest.importorskip("peft")
    from safetensors.numpy import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # missing adapter keys are but a warning to PEFT
        wrapped = peft.PeftModel.from_pretrained(model, directory).eval()
    held = {name: value.numpy() for name, value in peft.get_peft_model_state_dict(wrapped).items()}
    written = load_file(directory / "adapter_model.safetensors")
    assert held.keys() == written.keys()
    for name, value in held.items():
        np.testing.assert_array_equal(value, written[name], err_msg=name)
    return wrapped


def assert_merged_alike(torch_model, merged, prefix_of):
    """PEFT's merged weights are ours, kernel by kernel."""
    state = {name: value.numpy() for name, value in torch_model.state_dict().items()}
    compared = 0
    for path, stack in merged.items():
        part, *within, leaf = path.split("/")
        if leaf != "kernel" or within[:1] != ["layers"] or part not in prefix_of:
            continue
        for index, kernel in enumerate(stack):
            name = ".".join([prefix_of[part], "layers", str(index), *within[1:], "weight"])
            np.testing.assert_allclose(state[name], np.asarray(kernel).T, atol=1e-5, err_msg=name)
            compared += 1
    assert compared


@pytest.mark.parametrize(
    "changes", [{}, {"targets": ("q_proj", "down_proj"), "rslora": True}], ids=["all", "two targets, rslora"]
)
def test_peft_runs_the_adapter_on_llama(changes, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = LoraConfig(rank=3, alpha=4.5).model_copy(update=changes)
    reference = hf.randomize(transformers.LlamaForCausalLM(llama(transformers)))
    decoder = our_decoder(torch, reference.model, reference.lm_head)
    plain = text_logits(decoder, TOKENS)
    adapted({"decoder": decoder}, config)
    params = params_of(decoder, "decoder/")
    lora.write_peft(tmp_path, params, config, {"decoder": "model"}, base_model="tiny/llama")
    ours = text_logits(decoder, TOKENS)
    assert np.abs(ours - plain).max() > 0.1

    wrapped = with_peft(reference, tmp_path)
    assert wrapped.peft_config["default"].base_model_name_or_path == "tiny/llama"
    with torch.no_grad():
        theirs = wrapped(input_ids=torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert_merged_alike(wrapped.merge_and_unload(), merge(params, config), {"decoder": "model"})


LLAVA = {"decoder": "model.language_model", "encoder": "model.vision_tower.encoder"}


@pytest.mark.parametrize("parts", [("decoder",), ("decoder", "encoder")])
def test_peft_runs_the_adapter_on_llava(parts, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = BOTH.model_copy(update={"parts": parts})
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    tower = transformers.CLIPVisionConfig(**{name: getattr(VISION, name) for name in names})
    reference = hf.randomize(
        transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(
                vision_config=tower, text_config=llama(transformers), image_token_id=IMAGE_TOKEN,
                image_seq_length=PATCHES,
            )
        )
    )  # fmt: skip
    inner = reference.model
    model = VideoLLM(CONFIG, rngs=nnx.Rngs(0))
    model.encoder = hf.load(lambda: VisionTower(VISION, dtype=jnp.float32, rngs=nnx.Rngs(0)), inner.vision_tower)
    model.adapter.connector = hf.load(
        lambda: VideoLLM(CONFIG, rngs=nnx.Rngs(0)).adapter.connector, inner.multi_modal_projector
    )
    model.decoder = our_decoder(torch, inner.language_model, reference.lm_head)
    plain = logits(model, batch())
    adapted({"decoder": model.decoder, "encoder": model.encoder}, config)
    params = params_of(model)
    lora.write_peft(tmp_path, params, config, LLAVA)
    ours = logits(model, batch())
    assert np.abs(ours - plain).max() > 0.1

    wrapped = with_peft(reference, tmp_path)
    pixels = (IMAGES / 255 - np.array(VISION.image_mean)) / np.array(VISION.image_std)
    with torch.no_grad():
        theirs = wrapped(
            input_ids=torch.from_numpy(np.asarray(batch().token_ids)).long(),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(),
        ).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert_merged_alike(wrapped.merge_and_unload(), merge(params, config), LLAVA)


def test_the_directory_names_the_trained_layers_and_nothing_else(tmp_path):
    config = LoraConfig(rank=3, alpha=6, targets=("v_proj",))
    lora.write_peft(tmp_path, random_params(config), config, LLAVA)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    modules = [f"model.language_model.layers.{index}.self_attn.v_proj" for index in range(LAYERS)]
    assert settings["target_modules"] == modules
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (3, 6, "LORA")
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
