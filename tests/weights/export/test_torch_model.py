"""A whole export with our PyTorch code: loaded without JAX in a fresh process, equal to the JAX model."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from support import hf, torch_export
from support.torch_export import EXPORTS, SIZE, Export
from tokenizers import Tokenizer, models, pre_tokenizers

from vlvm_jax.data.prompt import conversation
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.data.record import Turn
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.video_llm import VideoLLM

FRAMES, LENGTH, NEW = 6, 80, 4
TEMPLATE = TEMPLATES["bare"]
RNG = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt with `<image>` and `<video>` in it, and the frames of each medium in order."""

    name: str
    question: str
    media: tuple[np.ndarray, ...]

    @property
    def prompt(self) -> str:
        return TEMPLATE.conversation([Turn(self.question, "")], ()).text

    def of_kind(self, placeholder: str) -> list[int]:
        words = [word for word in self.question.split() if word in ("<image>", "<video>")]
        return [index for index, word in enumerate(words) if word == placeholder]


def frames(count):
    return RNG.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


CASES = [
    Case("text", "w1 w2 w3", ()),
    Case("image", "<image> w4 w5", (frames(1),)),
    Case("two images", "w6 <image> w7 <image>", (frames(1), frames(1))),
    Case("video", "<video> w8 w9", (frames(3),)),
    Case("all", "<video> w8 <image> w1 <video> w9", (frames(3), frames(1), frames(2))),
]


def make_tokenizer(folder: Path) -> Tokenizer:
    words = ["<unk>", "</s>", "USER", "ASSISTANT", ":", "/", "s", "<", ">", *(f"w{i}" for i in range(51))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def make_batch(model: VideoLLM, tokenizer: Tokenizer) -> tuple[Batch, list[int]]:
    """All cases as rows, and the length of each."""
    rows = len(CASES)
    batch = Batch(
        frames=np.zeros((rows, FRAMES, SIZE, SIZE, 3), np.uint8),
        media=np.zeros((rows, FRAMES), np.int32),
        is_video=np.zeros((rows, FRAMES), bool),
        token_ids=np.zeros((rows, LENGTH), np.int32),
        media_mask=np.zeros((rows, LENGTH), bool),
        positions=np.tile(np.arange(LENGTH), (rows, 1)),
        segment_ids=np.zeros((rows, LENGTH), np.int32),
        loss_mask=np.zeros((rows, LENGTH), bool),
    )
    lengths = []
    for row, case in enumerate(CASES):
        videos = case.of_kind("<video>")
        counts = [
            model.adapter.num_video_tokens(len(medium)) if index in videos else model.adapter.num_image_tokens()
            for index, medium in enumerate(case.media)
        ]
        turn = Turn(case.question.replace("<video>", "<image>"), "")
        tokens = conversation.encode([turn], counts, tokenizer, TEMPLATE)
        at = 0
        for index, medium in enumerate(case.media):
            span = slice(at, at := at + len(medium))
            batch.frames[row, span], batch.media[row, span] = medium, index + 1
            batch.is_video[row, span] = index in videos
        length = len(tokens.ids)
        batch.token_ids[row, :length], batch.media_mask[row, :length] = tokens.ids, tokens.media_mask
        batch.segment_ids[row, : length + NEW] = 1
        lengths.append(length)
    return batch, lengths


@nnx.jit
def logits_of(model, batch):
    return model.decoder.logits(model(batch)[0])


def expected_of(model: VideoLLM, batch: Batch, lengths: list[int]) -> dict[str, np.ndarray]:
    """Logits of the prompts, and the ids that greedy decoding adds."""
    rows = np.arange(len(CASES))
    ends = np.array(lengths)
    logits, greedy = None, []
    for step in range(NEW):
        found = np.asarray(logits_of(model, batch))
        logits = found if logits is None else logits
        greedy.append(found[rows, ends + step - 1].argmax(-1))
        batch.token_ids[rows, ends + step] = greedy[-1]
    assert logits is not None
    out = {f"{case.name}/logits": logits[row, : lengths[row]] for row, case in enumerate(CASES)}
    return out | {f"{case.name}/greedy": np.array(greedy)[:, row] for row, case in enumerate(CASES)}


def write_export(folder: Path, export: Export) -> dict[str, np.ndarray]:
    """An export directory with the cases to run; returns what must come out."""
    config = export.config
    with jax.default_matmul_precision("highest"):
        model = hf.fill(lambda: VideoLLM(config, rngs=nnx.Rngs(0)), seed=3)
        torch_export.write_model(folder, export, model)
        batch, lengths = make_batch(model, make_tokenizer(folder))
        expected = expected_of(model, batch, lengths)
    cases, arrays = [], {}
    for case in CASES:
        arrays |= {f"{case.name}/{i}": medium for i, medium in enumerate(case.media)}
        images, videos = ([f"{case.name}/{i}" for i in case.of_kind(kind)] for kind in ("<image>", "<video>"))
        cases.append({"name": case.name, "prompt": case.prompt, "images": images, "videos": videos})
        arrays |= {key: arrays[key][0] for key in images}
    np.savez(folder / "media.npz", **arrays)
    (folder / "cases.json").write_text(json.dumps(cases))
    return expected


def run_fresh(folder: Path, directories: list[Path]) -> None:
    """Runs exports in a process of its own that knows neither this package nor the network, and says nothing."""
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([str(directory) for directory in directories]))
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and not has_package(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(others)}
    environment |= {"HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # so small that threads only cost
    script = Path(__file__).parent / "run_torch_export.py"
    done = subprocess.run(
        [sys.executable, str(script), str(jobs)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stderr, done.stderr  # what transformers warns of


def has_package(path: str) -> bool:
    return (Path(path) / "vlvm_jax").is_dir()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    # All of one name, as runs' exports often are: transformers must still give each the code of its own adapter.
    exports = {name: folder / name / "export" for name in EXPORTS}
    expected = {name: write_export(exports[name], export) for name, export in EXPORTS.items()}
    run_fresh(folder, list(exports.values()))
    return {name: (expected[name], dict(np.load(exports[name] / "results.npz"))) for name in EXPORTS}


@pytest.mark.parametrize("case", [case.name for case in CASES])
@pytest.mark.parametrize("export", EXPORTS)
def test_logits_and_greedy_answers_are_those_of_jax(results, export, case, record_property):
    expected, found = results[export]
    np.testing.assert_allclose(found[f"{case}/logits"], expected[f"{case}/logits"], atol=1e-4, rtol=0)
    record_property("logits", float(np.abs(found[f"{case}/logits"] - expected[f"{case}/logits"]).max()))
    assert found[f"{case}/greedy"].tolist() == expected[f"{case}/greedy"].tolist()


@pytest.mark.parametrize("export", EXPORTS)
def test_what_is_seen_matters(results, export):
    """Both would agree on a model that ignores its frames; this one does not."""
    expected, _ = results[export]
    image, video = expected["image/logits"][-1], expected["video/logits"][-1]
    assert np.abs(image - video).max() > 0.05 and np.abs(image - expected["text/logits"][-1]).max() > 0.05


# --- in this process


@pytest.fixture(scope="module")
def modeling(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_process")
    return torch_export.import_code("weighted_sampler", folder, "modeling_vlvm")


@pytest.fixture(scope="module")
def model(modeling):
    config = torch_export.config_json(EXPORTS["clip-llama-soft_slots"].config, "llama")
    return modeling.VlvmForConditionalGeneration(modeling.VlvmConfig(**config)).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_layers_above_the_feature_layer_do_not_run(model):
    ran = []
    tower = model.model.vision_tower
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in tower.named_modules()
        if (name.startswith("encoder.layers.") and name.count(".") == 2) or name == "post_layernorm"
    ]
    model.get_visual_tokens(torch.zeros(2, 3, SIZE, SIZE), [2], True)
    for hook in hooks:
        hook.remove()
    assert ran == ["encoder.layers.0", "encoder.layers.1"] and len(hooks) == 4


def test_media_go_in_once(model, tokenizer):
    calls = []
    hook = model.model.adapter.register_forward_hook(lambda *_: calls.append(1))
    inputs = model.prepare_inputs(tokenizer, "w1 <video>", videos=[CASES[3].media[0]])
    for use_cache in (True, False):
        calls.clear()
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=use_cache)
        assert len(calls) == (1 if use_cache else 3)
    hook.remove()


def test_rows_of_a_batch_do_not_see_each_other(model, tokenizer):
    """A batch padded on the left, with its media in the order of the rows, gives what each row gives alone."""
    alone = [
        model.prepare_inputs(tokenizer, prompt, images=images)
        for prompt, images in (("w1 <image>", frames(1)), ("<image> w2 <image> w3 w4", frames(2)))
    ]
    ids = [inputs["input_ids"][0] for inputs in alone]
    longest = max(map(len, ids))
    batch = {
        "input_ids": torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in ids]),
        "attention_mask": torch.stack([torch.arange(longest) >= longest - len(row) for row in ids]).long(),
        "pixel_values": torch.cat([inputs["pixel_values"] for inputs in alone]),
    }
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(**batch, do_sample=False, **options).logits
    beams = model.generate(**batch, do_sample=True, top_k=1, num_return_sequences=2, **options).logits
    for row, inputs in enumerate(alone):
        single = model.generate(**inputs, do_sample=False, **options).logits
        for step in range(3):
            torch.testing.assert_close(together[step][row], single[step][0], atol=1e-4, rtol=0)
            for copy in (0, 1):
                torch.testing.assert_close(beams[step][2 * row + copy], single[step][0], atol=1e-4, rtol=0)


def test_image_processor_and_plain_frames_agree(model, tokenizer):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, crop_size=SIZE, image_mean=model.config.image_mean,
        image_std=model.config.image_std,
    )  # fmt: skip
    clip = CASES[3].media[0]
    plain, processed = model.preprocess(clip), model.preprocess(clip, processor)
    torch.testing.assert_close(plain, processed, atol=1e-5, rtol=0)
    larger = np.repeat(np.repeat(clip, 2, axis=1), 2, axis=2)
    assert model.preprocess(larger, processor).shape == plain.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: m.prepare_inputs(t, "w1 <image>"), "the prompt holds 1 <image>, 0 were given"),
        (lambda m, t: m.prepare_inputs(t, "w1", videos=[frames(2)]), "the prompt holds 0 <video>, 1 were given"),
        (lambda m, t: m.preprocess(frames(2)[:, :8]), r"2 frames became pixels of shape \[2, 3, 8, 16\].*16 x 16"),
        (lambda m, t: m.preprocess(frames(2) / 255), r"frames are uint8 \[H, W, 3\], not float64"),
        (
            lambda m, t: m(input_ids=torch.full((1, 5), torch_export.IMAGE_ID)),
            "mark 5 positions for images .*0 images given take 0",
        ),
        (
            lambda m, t: m(input_ids=torch.full((1, 5), torch_export.VIDEO_ID), pixel_values_videos=[torch.ones(2, 3)]),
            "mark 5 positions for videos .*1 videos given take 8",
        ),
        (
            lambda m, t: m(inputs_embeds=torch.zeros(1, 2, 16), pixel_values=torch.zeros(1, 3, 16, 16)),
            "go with input_ids",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, tokenizer)


def test_placeholders_of_both_kinds_must_differ(modeling):
    with pytest.raises(ValueError, match="image_token_id and video_token_id are both 7"):
        modeling.VlvmConfig(image_token_id=7, video_token_id=7)


def test_configuration_survives_a_round_trip(modeling, model, tmp_path):
    model.config.save_pretrained(tmp_path)
    again = modeling.VlvmConfig.from_pretrained(tmp_path)
    assert again.to_dict() == model.config.to_dict()
    assert again.adapter["options"]["reading"] == "soft_slots" and again.vision_config.image_size == SIZE
