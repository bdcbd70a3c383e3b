"""The adapters' PyTorch code against the JAX ones: every reading and option, on random features."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hf, torch_export

from vlvm_jax.config import AdapterConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import _samplers as samplers
from vlvm_jax.models.adapters import available, build_adapter
from vlvm_jax.models.adapters._frame_paths import PathsAdapter
from vlvm_jax.models.adapters.base import FrameLayout
from vlvm_jax.models.vision import VisionFeatures
from vlvm_jax.weights.torch_model import names as own_names
from vlvm_jax.weights.torch_model.names import adapter_tensor_name, config_fields, source_files

D, C = 6, 8
# An image, a clip of two frames, an image, padding; a clip of one frame, a clip of three, an image.
MEDIA = np.array([[1, 2, 2, 3, 0], [1, 2, 2, 2, 3]])
IS_VIDEO = np.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]], bool)
ONE_CLIP_MEDIA = np.array([[1, 2, 2, 3, 0], [1, 1, 1, 1, 2]])
READINGS = [
    "soft_slots", "scored_topk", "encoder_attn", "local_weighted_pool", "mean", "block_average", "stride", "none",
]  # fmt: skip
SAMPLER = [
    *({"reading": reading} for reading in READINGS),
    *({"reading": reading, "placement": "before_connector"} for reading in ("soft_slots", "encoder_attn", "stride")),
    {"num_tokens": 99},
    {"apply_to_images": True, "temporal_embed": "learned", "max_frames": 2},
    {"reading": "none", "apply_to_images": True, "temporal_embed": "learned"},
    {"temporal_embed": "learned", "max_frames": 2, "placement": "before_connector"},
    {"key_net": "linear", "tau": 0.3, "hidden": 3},
    {"value_net": "linear", "prior": "grid", "prior_sigma": 0.7, "num_tokens": 6},
    {"value_net": "linear", "prior": "learned_grid", "tau": 0.5, "placement": "before_connector"},
    {"reading": "scored_topk", "weight": "sigmoid", "gumbel": True},
    {"reading": "scored_topk", "weight": "sigmoid", "merge_rest": True, "score_net": "mlp", "hidden": 3},
    {"reading": "scored_topk", "weight": "ste", "merge_rest": True},
    {"reading": "scored_topk", "weight": "renorm", "merge_rest": True, "score_net": "mlp"},
    {"reading": "encoder_attn", "merge_rest": False},
    {"reading": "encoder_attn", "num_tokens": 1},
    {"reading": "encoder_attn", "merge_rest": True, "apply_to_images": True},
    {"reading": "local_weighted_pool", "score_net": "mlp", "num_tokens": 6},
    {"reading": "stride", "num_tokens": 7},
    {"reading": "mean", "num_tokens": 1},
]
FRAMES = [
    {},
    {"newline": "image"},
    {"newline": "video"},
    {"newline": "all", "newline_place": "frame"},
    {"newline": "video", "newline_place": "row", "pool": "bilinear"},
    {"newline": "all", "newline_place": "row", "pool": "average", "pool_place": "before_connector"},
    {"newline": "image", "newline_place": "row"},
    *(
        {"pool": pool, "pool_stride": stride, "pool_place": place, "newline": newline}
        for pool, stride, place, newline in [
            ("average", 2, "before_connector", "none"),
            ("average", 3, "after_connector", "all"),
            ("max", 2, "before_connector", "video"),
            ("max", 3, "after_connector", "none"),
            ("bilinear", 2, "after_connector", "all"),
            ("bilinear", 3, "before_connector", "none"),
            ("bilinear", 2, "after_connector", "image"),
        ]
    ),
]
SLOW_FAST = [
    {"slow_path": {"num_frames": frames, "pool": pool}, "fast_path": {"num_frames": fast, "grid": (2, 3)}}
    for frames, pool, fast in [
        (2, "concat", "all"),
        (3, "spatial_1d_max_pool", 2),
        (5, "spatial_1d_avg_pool", 0),
        ("all", "vertical_1d_max_pool", "all"),
        (2, "spatial_2d_max_pool", 1),
        ("all", "spatial_2d_avg_pool", 0),
        ("all", "spatial_temporal_pool", 2),
        ("all", "temporal_global_pool", 0),
        (0, "concat", 2),
    ]
]
SLOW_FAST.append(
    {"slow_path": {"num_frames": 2, "pool": "adaptive_2d_pool", "grid": (3, 2)}, "fast_path": {"num_frames": 0}}
)
ONE_CLIP = ("slow_fast",)  # a row
MLP = {"kind": "mlp2x_gelu"}
GRIDS = itertools.cycle((5, 4))
CASES = [
    *(("weighted_sampler", options, next(GRIDS), MLP) for options in SAMPLER),
    *(("frames", options, next(GRIDS), MLP) for options in FRAMES),
    *(("slow_fast", options, next(GRIDS), MLP) for options in SLOW_FAST),
    ("slow_fast", {}, 8, {"kind": "pixel_shuffle"}),
    ("frames", {"pool": "bilinear", "newline": "all"}, 5, MLP),
    ("frames", {"pool": "average", "pool_place": "before_connector"}, 5, MLP),
    ("frames", {}, 4, {"kind": "linear"}),
    ("frames", {}, 4, {"kind": "linear", "bias": False}),
    ("frames", {"newline": "all"}, 6, {"kind": "pixel_shuffle"}),
    ("frames", {"pool": "average"}, 6, {"kind": "pixel_shuffle", "scale_factor": 3}),
    ("weighted_sampler", {}, 6, {"kind": "mlp2x_gelu", "bias": False}),
    ("frames", {"newline": "video"}, 5, {"kind": "resampler", "num_queries": 9}),
    ("weighted_sampler", {}, 4, {"kind": "resampler", "num_queries": 16}),
    *(("spatiotemporal", {"join": join}, 4, MLP) for join in ("time_first", "space_first", "space_only", "time_only")),
    *(("spatiotemporal", {"temporal": temporal}, 4, {"kind": "linear"}) for temporal in ("same", "linear", "shared")),
    ("spatiotemporal", {"temporal": "shared", "pad_frames": 4}, 4, {"kind": "linear"}),
    ("spatiotemporal", {"pad_frames": 3, "join": "space_first"}, 5, MLP),
    ("spatiotemporal", {"temporal": "linear"}, 6, {"kind": "pixel_shuffle"}),
    *(
        ("spatiotemporal", options, 5, {"kind": "resampler", "num_queries": 4})
        for options in ({}, {"join": "add"}, {"temporal": "linear", "join": "space_first"}, {"temporal": "shared"})
    ),
    ("weighted_sampler", {}, 6, {"kind": "pixel_shuffle", "bias": False}),
    ("weighted_sampler", {"reading": "local_weighted_pool", "temporal_embed": "learned"}, 6, {"kind": "pixel_shuffle"}),
]


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    return lambda name: [
        torch_export.import_code(name, folder, module)
        for module in ("video_adapter", "connector", "configuration_vlvm")
    ]


def model_config(name: str, options: dict, grid: int, connector: dict, width: int = D) -> ModelConfig:
    if name == "weighted_sampler":
        options = {"num_tokens": 4, "hidden": 5} | options
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=4 * grid,
            patch_size=4, attention_layer=0 if options.get("reading") == "encoder_attn" else None,
        ),
        adapter=AdapterConfig(name=name, options=options, connector=connector),
        decoder=DecoderConfig(
            vocab_size=16, hidden_size=C, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8,
        ),
        dtype="float32",
    )  # fmt: skip


def both(code, config: ModelConfig):
    """The JAX adapter with random parameters, and the PyTorch one with the same."""
    ours = hf.fill(lambda: build_adapter(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=1)
    video_adapter, connector, configuration = code(config.adapter.name)
    settings = configuration.VlvmConfig(**torch_export.config_json(config, "llama"))
    theirs = video_adapter.VideoAdapter(settings, connector.Connector(settings)).eval()
    state = {}
    for path, value in nnx.to_flat_state(nnx.state(ours)):
        name, transpose = adapter_tensor_name("/".join(["adapter", *map(str, path)]))
        value = np.array(value[...])
        state[name.removeprefix("model.adapter.")] = torch.from_numpy(value.T if transpose else value)
    theirs.load_state_dict(state, strict=True)
    return ours, theirs


def features_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(np.float32), rng.random(shape[:3]).astype(np.float32)


def compare(ours, theirs, patches, attention, media, is_video, tolerance=1e-5):
    """Images of all rows, then clips of all rows: each row's valid tokens of that kind, in order.

    Returns the largest difference.
    """

    @nnx.jit
    def run(adapter, patches, attention, media, is_video):
        paths = isinstance(adapter, PathsAdapter)
        features = adapter.path_features(patches) if paths else VisionFeatures(patches, attention)
        return adapter(features, FrameLayout(media, is_video))

    out = run(ours, patches, attention, media, is_video)
    tokens_of: dict[bool, list] = {False: [], True: []}
    lengths: dict[bool, list] = {False: [], True: []}
    for row in range(len(media)):
        tokens = iter(np.asarray(out.tokens)[row][np.asarray(out.valid)[row]])
        for medium in range(1, media[row].max() + 1):
            frames = media[row] == medium
            video, length = bool(is_video[row][frames][0]), int(frames.sum())
            count = ours.num_video_tokens(length) if video else ours.num_image_tokens()
            assert count == (theirs.num_video_tokens(length) if video else theirs.num_image_tokens())
            tokens_of[video] += [next(tokens) for _ in range(count)]
            lengths[video].append(length)
        assert next(tokens, None) is None
    largest = 0.0
    for video in (False, True):
        chosen = (media > 0) & (is_video == video)
        with torch.no_grad():
            found = theirs(
                torch.from_numpy(patches[chosen]), torch.from_numpy(attention[chosen]), lengths[video], video
            )
        expected = np.array(tokens_of[video]).reshape(-1, C)
        np.testing.assert_allclose(found.numpy(), expected, atol=tolerance, rtol=0)
        largest = max(largest, float(np.abs(found.numpy() - expected).max(initial=0)))
    return largest


@pytest.mark.parametrize(("name", "options", "grid", "connector"), CASES)
def test_same_visual_tokens(code, name, options, grid, connector, record_property):
    ours, theirs = both(code, model_config(name, options, grid, connector))
    patches, attention = features_of((*MEDIA.shape, grid * grid, D))
    media = ONE_CLIP_MEDIA if name in ONE_CLIP else MEDIA
    record_property("tokens", float(compare(ours, theirs, patches, attention, media, IS_VIDEO & (media > 0))))


@pytest.mark.parametrize("grid", [4, 9])
def test_random_control_is_the_same_draw(code, grid):
    """Frames are numbered along the row: here from 0 over two rows of clips."""
    ours, theirs = both(code, model_config("weighted_sampler", {"reading": "random"}, grid, MLP))
    patches, attention = features_of((2, 5, grid * grid, D))
    media = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
    compare(ours, theirs, patches, attention, media, media > 0)


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=12, max_size=12),
    weight=st.sampled_from(["none", "renorm", "sigmoid", "ste"]),
    merge_rest=st.booleans(),
)
def test_equal_scores_go_to_the_lower_index(code, scores, weight, merge_rest):
    scores = np.array(scores, np.float32).reshape(2, 6)
    found = code("weighted_sampler")[0].top_k_weights(torch.from_numpy(scores), 3, weight, merge_rest)
    expected = samplers.top_k_weights(scores[None], scores[None], 3, weight, merge_rest)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_weights_are_computed_in_fp32(code):
    """In bfloat16 the weight matrix is exact where the scores are: the attention's are fp32 in both."""
    config = model_config("weighted_sampler", {"reading": "encoder_attn"}, 5, MLP)
    video_adapter = code("weighted_sampler")[0]
    options = config_fields(config, image_token_id=1, video_token_id=2)["adapter"]["options"]
    sampler = video_adapter.make_sampler(options, C, 25)
    _, attention = features_of((1, 3, 25, C))
    x = torch.zeros(3, 25, C, dtype=torch.bfloat16)
    weights = sampler.weights(x, torch.from_numpy(attention[0]))
    assert weights.dtype == torch.float32 and sampler(x, torch.from_numpy(attention[0])).dtype == torch.bfloat16
    ours = hf.fill(lambda: build_adapter(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), seed=1)
    expected = ours.sampler.weights(jnp.zeros((1, 3, 25, C), jnp.bfloat16), attention=attention)
    np.testing.assert_allclose(weights.numpy(), expected[0], atol=1e-6)


def test_an_adapter_has_code_or_is_refused():
    with_code = {file.stem.removeprefix("adapter_") for file in Path(own_names.__file__).parent.glob("adapter_*.py")}
    assert {"frames", "slow_fast", "spatiotemporal", "weighted_sampler"} <= with_code <= {*available()}
    for name in with_code:
        assert source_files(name)["video_adapter.py"].name == f"adapter_{name}.py"
    for name in {*available()} - with_code:
        with pytest.raises(InputError, match=f"'{name}' has no PyTorch code, so it cannot be exported"):
            source_files(name)


def test_an_adapter_without_code_is_refused_by_name():
    with pytest.raises(
        InputError, match=r"'spiral' has no PyTorch code.*adapter_spiral.py .*frames, prompt_guided, slow_fast, "
    ):
        source_files("spiral")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("adapter/connector/linear_1/kernel", ("model.adapter.connector.linear_1.weight", True)),
        ("adapter/connector/linear_2/bias", ("model.adapter.connector.linear_2.bias", False)),
        ("adapter/sampler/score/norm/scale", ("model.adapter.sampler.score.norm.weight", False)),
        ("adapter/sampler/prior", ("model.adapter.sampler.prior", False)),
        ("adapter/temporal_embedding", ("model.adapter.temporal_embedding", False)),
    ],
)
def test_tensor_names(path, expected):
    assert adapter_tensor_name(path) == expected


def test_only_the_adapter_has_such_names():
    with pytest.raises(ValueError, match="decoder/norm/scale is not a parameter of the adapter"):
        adapter_tensor_name("decoder/norm/scale")
