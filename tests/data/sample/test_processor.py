"""Prompts of a checkpoint: token ids, places of visual tokens and their order, against transformers' processors."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from support.hf_checkpoints import FAMILIES, TOKENIZERS, checkpoint, model_config, pil, processor
from transformers import CLIPVisionConfig
from transformers.video_utils import VideoMetadata

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media.frames import Clip
from vlvm_jax.data.prompt import conversation
from vlvm_jax.data.record import Turn
from vlvm_jax.data.sample.processor import load_processor
from vlvm_jax.errors import InputError

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
SHOW_VIDEOS = ("llava_next_video", "llava_onevision", "smolvlm", "internvl")


def text(words):
    return {"type": "text", "text": words}


def said(role, *parts):
    return {"role": role, "content": list(parts)}


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(50, 70), picture(90, 20), picture(32, 32)]
CONVERSATIONS = {
    "text": [said("user", text("how many dogs ?"))],
    "one image": [said("user", IMAGE, text("what is it ?"))],
    "an image after text": [said("user", text("what is in"), IMAGE)],
    "two images": [said("user", IMAGE, text("is it"), IMAGE, text("a cat ?"))],
    "images in two turns": [
        said("user", IMAGE, text("what is it ?")),
        said("assistant", text("a cat, é 日本")),
        said("user", IMAGE, IMAGE, text("\n\nand  how many ?")),
    ],
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    made = {}

    def load(family, tokenizer, **options):
        key = family, tokenizer
        if key not in made:
            made[key] = checkpoint(tmp_path_factory.mktemp(family), family, tokenizer)
        return load_processor(str(made[key]), **{"image_layout": "anyres", **options})

    return load


@pytest.fixture(scope="module")
def theirs():
    made = {}

    def load(family, tokenizer):
        if family == "smolvlm":
            pytest.importorskip("num2words")
        if (family, tokenizer) not in made:
            made[family, tokenizer] = processor(family, tokenizer)
        return made[family, tokenizer]

    return load


def rendered(hf, messages):
    """The string, and whether transformers' own `apply_chat_template(tokenize=True)` puts special tokens around it."""
    shown = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return shown, not (hf.tokenizer.bos_token and shown.startswith(hf.tokenizer.bos_token))


def count(messages, kind):
    return sum(part["type"] == kind for message in messages for part in message["content"])


# --- against transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversation_name", CONVERSATIONS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_images(ours, theirs, family, tokenizer, conversation_name):
    hf, messages = theirs(family, tokenizer), CONVERSATIONS[conversation_name]
    images = PICTURES[: count(messages, "image")]
    shown, special = rendered(hf, messages)
    expected = hf(text=shown, images=[images] if images else None, add_special_tokens=special)
    ids = np.asarray(expected["input_ids"]).reshape(-1)
    sample = ours(family, tokenizer).sample(messages, images)
    np.testing.assert_array_equal(sample["token_ids"], ids)
    np.testing.assert_array_equal(sample["media_mask"], ids == hf.image_token_id)
    assert sample["token_ids"].dtype == np.int32
    as_string = ours(family, tokenizer).sample(shown, images)
    for key, value in sample.items():
        np.testing.assert_array_equal(as_string[key], value)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("family", SHOW_VIDEOS)
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_clips(ours, theirs, family, tokenizer, frames):
    """Only the number of frames and their times matter to the text; the real processor's words for both."""
    hf = theirs(family, tokenizer)
    messages = [
        said("user", VIDEO, text("what is it ?")),
        said("assistant", text("a cat")),
        said("user", text("why ?")),
    ]
    metadata = VideoMetadata(
        total_num_frames=900, fps=8.0, duration=112.5, frames_indices=[150 * i for i in range(frames)]
    )
    pixels = np.zeros((frames, 3, 32, 32))
    given = {"pixel_values_videos": pixels[None], "pixel_values": pixels[None], "video_metadata": [metadata]}
    shown, special = rendered(hf, messages)
    (whole,), _ = hf.get_text_with_replacements([shown], [], [hf.replace_video_token(given, 0)])
    ids = np.asarray(hf.tokenizer(whole, add_special_tokens=special)["input_ids"])
    clip = Clip(np.zeros((frames, 32, 32, 3), np.uint8), tuple(metadata.timestamps), metadata.duration)
    sample = ours(family, tokenizer).sample(messages, videos=[clip])
    np.testing.assert_array_equal(sample["token_ids"], ids)
    visual = hf.image_token_id if family in ("smolvlm", "internvl") else hf.video_token_id
    np.testing.assert_array_equal(sample["media_mask"], ids == visual)
    assert sample["is_video"].tolist() == [True] * frames and sample["media"].tolist() == [1] * frames


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_reads_what_generation_reads(ours, family, tokenizer):
    """The prompt of the first answer is the start of the conversation, token by token."""
    loaded = ours(family, tokenizer)
    (medium,) = loaded.images(PICTURES[:1])
    turns = [Turn("<image>\nwhat is it ?", "a cat"), Turn("how many ?", "two")]
    tokens = loaded.encode(turns, [medium.expansion], ["image"])
    sample = loaded.sample([said("user", IMAGE, text("what is it ?"))], PICTURES[:1])
    start = int(np.flatnonzero(tokens.loss_mask)[0])
    np.testing.assert_array_equal(tokens.ids[:start], sample["token_ids"][:start])
    assert len(sample["token_ids"]) - start in (0, 1)  # a space may have joined the answer's first word
    assert "".join(loaded.decode(tokens.ids[tokens.loss_mask]).split()) == "acattwo"


# --- the arrays --------------------------------------------------------------------------------------------------


def test_media_follow_the_text_where_a_template_moves_them(ours):
    """LLaVA-NeXT-Video's shows images before clips, whatever the message says; the frames must follow."""
    loaded = ours("llava_next_video", "byte_level", image_layout="single")
    clip = Clip(np.full((2, 32, 32, 3), 7, np.uint8), (0.0, 1.0), 2.0)
    sample = loaded.sample([said("user", VIDEO, text("or"), IMAGE)], PICTURES[2:], [clip])
    assert sample["is_video"].tolist() == [False, True, True] and sample["media"].tolist() == [1, 2, 2]
    assert (sample["frames"][1:] == 7).all() and (sample["frames"][0] != 7).any()
    ids = sample["token_ids"][sample["media_mask"]]
    image, video = (loaded.tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<video>"))
    assert ids.tolist() == [image] * 16 + [video] * 2 * 4


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_a_family_without_clips_shows_them_as_images(ours, family):
    loaded = ours(family, "byte_level", image_layout="single")
    sample = loaded.sample([said("user", VIDEO, text("what ?"))], videos=[[np.zeros((40, 50, 3), np.uint8)] * 3])
    assert sample["is_video"].tolist() == [True] * 3 and sample["frames"].shape == (3, 32, 32, 3)
    assert sample["media_mask"].sum() == 3 * (4 if family == "idefics3" else 16)
    assert "<video>" not in loaded.tokenizer.decode(sample["token_ids"])


@pytest.mark.parametrize("family", ["llava_next", "llava_next_video", "llava_onevision"])
def test_slots_count_through_all_frames_of_a_sample(ours, family):
    loaded = ours(family, "byte_level")
    parts = [IMAGE, *([VIDEO] if family in SHOW_VIDEOS else []), text("what ?")]
    clips = [[np.zeros((40, 50, 3), np.uint8)] * 2] if VIDEO in parts else []
    sample = loaded.sample([said("user", *parts)], PICTURES[:1], clips)
    (image,) = loaded.images(PICTURES[:1])
    assert image.layout is not None and loaded.slots == 17
    index, weight = sample["visual_index"], sample["visual_weight"]
    assert index.shape == weight.shape == (len(sample["token_ids"]), loaded.taps)
    assert not index[~sample["media_mask"]].any() and not weight[~sample["media_mask"]].any()
    visual = index[sample["media_mask"]]
    np.testing.assert_array_equal(visual[: len(image.layout)], image.layout.index)
    if clips:
        per_frame, start = 4, len(image.frames) * 17
        newline = [start + 17 + 16] if family == "llava_onevision" else []
        first = visual[len(image.layout) :, 0].tolist()
        assert first == [start + f * 17 + slot for f in range(2) for slot in range(per_frame)] + newline
    assert visual.max() < len(sample["frames"]) * 17


def test_single_images_need_no_layout(ours):
    sample = ours("llava_next", "byte_level", image_layout="single").sample(CONVERSATIONS["one image"], PICTURES[:1])
    assert "visual_index" not in sample and sample["frames"].shape == (1, 32, 32, 3)
    assert sample["media_mask"].sum() == 16


def test_the_adapter_says_how_many_tokens(ours):
    options = {"image_layout": "single", "image_tokens": 3, "video_tokens": [0, 2, 5, 9]}
    loaded = ours("llava", "byte_level", **options)
    frames = [np.zeros((40, 50, 3), np.uint8)] * 2
    sample = loaded.sample([said("user", IMAGE, VIDEO, text("what ?"))], PICTURES[:1], [frames])
    assert sample["media_mask"].sum() == 3 + 5
    with pytest.raises(InputError, match="a clip of 4 frames; at most 3 are provided for"):
        loaded.sample([said("user", VIDEO)], videos=[frames * 2])


def test_smolvlm_stamps_every_frame_so_frames_must_be_alike(ours):
    loaded = ours("smolvlm", "byte_level", image_tokens=2, video_tokens=[0, 3, 6])
    clip = Clip(np.zeros((2, 32, 32, 3), np.uint8), (0.0, 61.0), 70.0)
    sample = loaded.sample([said("user", VIDEO)], videos=[clip])
    runs = np.flatnonzero(np.diff(sample["media_mask"].astype(int)) == 1)
    assert sample["media_mask"].sum() == 6 and len(runs) == 2
    assert "Frame from 01:01:" in loaded.tokenizer.decode(sample["token_ids"])
    uneven = ours("smolvlm", "byte_level", image_tokens=2, video_tokens=[0, 3, 5])
    with pytest.raises(InputError, match=r"clips take \(0, 3, 5\) tokens .* smolvlm needs the same number"):
        uneven.clip(clip)


@pytest.mark.parametrize(
    ("image_tokens", "video_tokens", "message"),
    [
        (4, [0, 4, 8], "anyres needs all 16 patches of an image and a newline; the adapter gives 4 tokens"),
        (16, [0, 4, 8], "the adapter gives 16 tokens; use the `frames` adapter with a newline"),
        (17, [0, 4, 7], r"clips take \(0, 4, 7\) tokens .* image_layout anyres needs the same number"),
        (17, [0, 20, 40], "20 tokens per frame of 16 patches"),
    ],
)
def test_cut_images_need_an_adapter_that_keeps_all_patches(ours, image_tokens, video_tokens, message):
    with pytest.raises(InputError, match=message):
        ours("llava_next", "byte_level", image_tokens=image_tokens, video_tokens=video_tokens)
    ours("llava_next", "byte_level", image_tokens=17, video_tokens=[0, 4, 8])
    ours("llava_next", "byte_level", image_tokens=16, video_tokens=[1, 5, 9])


# --- from parts, and other templates -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A bare CLIP tower, and a Llama-like tokenizer that knows no image, with its decoder's config and template."""
    tower, decoder = tmp_path_factory.mktemp("tower"), tmp_path_factory.mktemp("decoder")
    CLIPVisionConfig(image_size=32, patch_size=8).save_pretrained(tower)
    pil("CLIP")(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tower)
    model_config("llava", 32, 8).text_config.save_pretrained(decoder)
    words = TOKENIZERS["llama_like"]()
    words.save_pretrained(decoder)
    saved = json.loads((decoder / "tokenizer.json").read_text())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["id"] < 3]
    (decoder / "tokenizer.json").write_text(json.dumps(saved))
    config = json.loads((decoder / "tokenizer_config.json").read_text())
    for key in ("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"):
        config.pop(key, None)
    config["chat_template"] = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    (decoder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(tower), str(decoder)


def test_a_tower_and_a_decoder_of_their_own(parts):
    tower, decoder = parts
    loaded = load_processor(tower, decoder)
    assert loaded.family.name == "clip" and loaded.side == 4
    (medium,) = loaded.images(PICTURES[:1])
    tokens = loaded.encode([Turn("<image>\nwhat ?", "a cat")], [medium.expansion], ["image"])
    assert tokens.media_mask.sum() == 16 and (tokens.ids[tokens.media_mask] == 0).all()
    ids = loaded.tokenizer.convert_ids_to_tokens(tokens.ids[~tokens.media_mask])
    assert ids[0] == "<s>" and "".join(ids[1:]).replace("▁", " ").strip() == "user: \nwhat ?</s>assistant: a cat</s>"
    assert max(tokens.ids) < loaded.tokenizer.vocab_size


def test_one_of_our_templates(parts, ours):
    tower, decoder = parts
    for loaded in (
        load_processor(tower, decoder, chat_template="vicuna_v1"),
        ours("llava", "llama_like", chat_template="vicuna_v1"),
    ):
        tokens = loaded.encode([Turn("<image>\nwhat ?", "a cat")], [5], ["image"])
        assert tokens.media_mask.sum() == 5
        text = loaded.tokenizer.decode(tokens.ids[~tokens.media_mask])
        assert text.startswith("<s>A chat between") and text.endswith("what ? ASSISTANT: a cat</s>")
        assert loaded.tokenizer.decode(tokens.ids[tokens.loss_mask]).strip() == "a cat</s>"
        sample = loaded.sample([said("user", IMAGE, text_part("what ?"))], PICTURES[:1])
        np.testing.assert_array_equal(
            sample["token_ids"][:20],
            loaded.sample([{"role": "user", "content": "<image>\nwhat ?"}], PICTURES[:1])["token_ids"][:20],
        )
        assert loaded.tokenizer.decode(sample["token_ids"]).endswith("what ? ASSISTANT:")


def text_part(words):
    return text(words)


def test_a_bare_tokenizer_file(parts, tmp_path):
    TOKENIZERS["byte_level"]().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_processor(parts[0], str(place), chat_template="chatml")
        assert loaded.encode([Turn("what ?", "a cat")], [], []).loss_mask.any()


# --- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ([said("user", IMAGE, text("what ?"))], 0, r"the prompt shows 1 images and 0 were given; write <image> or"),
        ([said("user", text("what ?"))], 1, "the prompt shows 0 images and 1 were given"),
        ("<image> <image> what ?", 1, "the prompt shows 2 images and 1 were given"),
        ("<video> what ?", 1, "the prompt shows 0 images and 1 were given"),
    ],
)
def test_other_media_than_the_prompt_shows(ours, prompt, images, message):
    with pytest.raises(InputError, match=message):
        ours("llava", "byte_level").sample(prompt, PICTURES[:images])


def test_a_narrow_image(tmp_path):
    folder = checkpoint(tmp_path, "llava_onevision", size=24, patch=8)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vision_aspect_ratio": "anyres_max_1"}))
    loaded = load_processor(str(folder), image_layout="anyres")
    with pytest.raises(BadSampleError, match="narrow: an image of 1 x 91 pixels is too narrow"):
        loaded.images([picture(1, 91)])


def test_no_tokenizer_and_no_template(parts, tmp_path):
    tower, decoder = parts
    loaded = load_processor(tower)
    assert loaded.frames(PICTURES[:1]).shape == (1, 32, 32, 3)
    with pytest.raises(InputError, match=r"config\.data\.tokenizer: .* holds no tokenizer\.json"):
        _ = loaded.tokenizer
    TOKENIZERS["byte_level"]().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"'checkpoint', but .* has no chat template .*; choose one of vicuna_v1"):
        _ = load_processor(tower, str(tmp_path)).template
    with pytest.raises(InputError, match="no template 'vicuna'"):
        _ = load_processor(tower, decoder, chat_template="vicuna").template


# --- where templates lie, what ends answers, travelling ----------------------------------------------------------


def test_the_processors_template_comes_before_the_tokenizers(tmp_path):
    folder = checkpoint(tmp_path, "llava", legacy=True)
    assert "USER" in shown_by(folder)
    (folder / "processor_config.json").write_text(json.dumps({"chat_template": "{{ 'P' }}"}))
    assert shown_by(folder) == "P"
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ 'J' }}")
    assert shown_by(folder) == "J"
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "{{ 'no' }}"}, {"name": "default", "template": "{{ 'T' }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert shown_by(folder) == "T"


def shown_by(folder):
    return load_processor(str(folder)).template.prompt([said("user", text("what ?"))]).text


def test_tokens_that_end_an_answer(tmp_path):
    folder = checkpoint(tmp_path, "llava", "llama_like")
    assert load_processor(str(folder)).eos_token_ids == (2,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert load_processor(str(folder)).eos_token_ids == (2, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_travels(ours, family):
    loaded = ours(family, "llama_like", image_tokens=None)
    expected = loaded.sample(CONVERSATIONS["two images"], PICTURES[:2])
    assert len(pickle.dumps(loaded)) < 1000
    arrived = pickle.loads(pickle.dumps(loaded)).sample(CONVERSATIONS["two images"], PICTURES[:2])
    assert arrived.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(arrived[key], value)


def test_image_files(ours, tmp_path):
    loaded = ours("llava", "byte_level")
    PICTURES[0].save(tmp_path / "i.png")
    given = loaded.sample(CONVERSATIONS["one image"], [str(tmp_path / "i.png")])
    np.testing.assert_array_equal(given["frames"], loaded.sample(CONVERSATIONS["one image"], PICTURES[:1])["frames"])
    with pytest.raises(BadSampleError, match="missing"):
        loaded.sample(CONVERSATIONS["one image"], [str(tmp_path / "absent.png")])


def test_an_unknown_tokenizer_of_ours_is_not_asked_for(ours):
    """With a processor, what is tokenised is what transformers tokenises: its class may set up the same file anew."""
    loaded = ours("llava", "llama_like")
    raw = conversation.load_tokenizer(loaded.tokenizer_path)
    assert loaded.tokenizer("a cat").input_ids == raw.encode("a cat").ids
