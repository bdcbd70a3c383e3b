"""Tiny checkpoints on disk as transformers writes them, without weights, and transformers' own processors for them."""

import copy
import functools
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

CORPUS = [
    "what is in the picture ? it is a cat , a dog and the bird",
    "USER: how many ? ASSISTANT: two or three",
    "You are provided the following series of four frames from a 0:00:05 [H:MM:SS] video.\n\nFrame from 00:01:",
    "User Assistant system\n\n",
] * 20
PINPOINTS = [[64, 32], [32, 64], [64, 64], [96, 32], [32, 96]]
WIDE_PINPOINTS = [[32 * rows, 32 * columns] for rows in range(1, 5) for columns in range(1, 5)]
FAMILIES = ("llava", "llava_next", "llava_next_video", "llava_onevision", "idefics3", "smolvlm", "internvl")

# What the published checkpoints' templates do, each in its own way.
USER_COLON = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ '\n' + c['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UTTERANCES = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
NAMED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif c['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "internvl": NAMED,
    "llava": USER_COLON,
    "llava_next": INST,
    "llava_next_video": USER_COLON,
    "llava_onevision": CHATML,
    "idefics3": UTTERANCES,
    "smolvlm": UTTERANCES,
}
MARKS = ["<image>", "<video>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>"]
INTERNVL_TOKENS = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
MARKS += [*INTERNVL_TOKENS.values()]
MARKS += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))]


@functools.cache
def byte_level(**extra):
    """As of GPT-2 and Qwen: a word carries the space before it; no token is put before a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>", additional_special_tokens=MARKS
    )


@functools.cache
def llama_like():
    """As of Llama and Vicuna: a space is put before the first word only, and `<s>` before the text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    learned = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return LlamaTokenizer(vocab=learned["vocab"], merges=merges, add_bos_token=True, additional_special_tokens=MARKS)


TOKENIZERS = {"byte_level": byte_level, "llama_like": llama_like}


@functools.cache
def tokenizer_of(family: str, name: str):
    """A tokenizer as a family's checkpoints have it: InternVL's names its tokens for media."""
    made = TOKENIZERS[name]()
    if family != "internvl":
        return made
    named = copy.deepcopy(made)
    for key, token in INTERNVL_TOKENS.items():
        named._set_model_specific_special_tokens({key: token})
    return named


def pil(name):
    module = {"SmolVLM": "smolvlm", "LlavaNext": "llava_next", "LlavaOnevision": "llava_onevision"}
    module["GotOcr2"] = "got_ocr2"
    module = module.get(name, name.lower())
    return getattr(
        __import__(f"transformers.models.{module}.image_processing_pil_{module}", fromlist=["*"]),
        f"{name}ImageProcessorPil",
    )


def image_processor(family, size, **changes):
    square = {"height": size, "width": size}
    pinpoints = [[height * size // 32, width * size // 32] for height, width in PINPOINTS]
    wide = [[height * size // 32, width * size // 32] for height, width in WIDE_PINPOINTS]
    edges = {"size": {"shortest_edge": size}, "crop_size": square}
    make = {
        "llava": ("CLIP", edges),
        "llava_next": ("LlavaNext", {**edges, "image_grid_pinpoints": pinpoints}),
        "llava_next_video": ("LlavaNext", {**edges, "image_grid_pinpoints": pinpoints}),
        "llava_onevision": ("LlavaOnevision", {"size": square, "image_grid_pinpoints": wide}),
        "idefics3": ("Idefics3", {"size": {"longest_edge": 4 * size}, "max_image_size": {"longest_edge": size}}),
        "smolvlm": ("SmolVLM", {"size": {"longest_edge": 4 * size}, "max_image_size": {"longest_edge": size}}),
        "internvl": ("GotOcr2", {"size": square, "crop_to_patches": True, "min_patches": 1, "max_patches": 6}),
    }
    name, settings = make[family]
    return pil(name)(**{**settings, **changes})


def model_config(family, size, patch, **changes):
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": size, "patch_size": patch}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 600, "num_key_value_heads": 1}
    clip, siglip = {"model_type": "clip_vision_model", **tower}, {"model_type": "siglip_vision_model", **tower}
    llama, qwen = {"model_type": "llama", **text}, {"model_type": "qwen2", **text}
    pinpoints = image_processor(family, size).image_grid_pinpoints if "next" in family or "one" in family else None
    make = {
        "llava": ("Llava", {"vision_config": clip, "text_config": llama}),
        "llava_next": ("LlavaNext", {"vision_config": clip, "text_config": llama, "image_grid_pinpoints": pinpoints}),
        "llava_next_video": (
            "LlavaNextVideo",
            {"vision_config": clip, "text_config": llama, "image_grid_pinpoints": pinpoints},
        ),
        "llava_onevision": (
            "LlavaOnevision",
            {
                "vision_config": siglip,
                "text_config": qwen,
                "image_grid_pinpoints": pinpoints,
                "vision_aspect_ratio": "anyres_max_4",
                "vision_feature_select_strategy": "full",
                "vision_feature_layer": -1,
            },
        ),
        "idefics3": ("Idefics3", {"vision_config": tower, "text_config": llama, "scale_factor": 2}),
        "smolvlm": ("SmolVLM", {"vision_config": tower, "text_config": llama, "scale_factor": 2}),
        "internvl": (
            "InternVL",
            {"vision_config": {"model_type": "internvl_vision", **tower}, "text_config": qwen, "image_seq_length": 4},
        ),
    }
    name, settings = make[family]
    return getattr(transformers, f"{name}Config")(**{**settings, **changes})


def video_processor(family, size):
    square = {"height": size, "width": size}
    if family == "llava_next_video":
        return LlavaNextVideoVideoProcessor(size={"shortest_edge": size}, crop_size=square)
    if family == "llava_onevision":
        return LlavaOnevisionVideoProcessor(size=square)
    sizes = {"longest_edge": 2 * size}
    return SmolVLMVideoProcessor(
        size=sizes,
        max_image_size={"longest_edge": size},
        video_sampling={"fps": 1, "max_frames": 8, "video_size": sizes},
    )


def unchecked(name):
    """transformers' processor class, which without torchvision cannot name the class its video processor must have."""
    return type(name, (getattr(transformers, name),), {"check_argument_for_proper_class": lambda *_: None})


def processor(family, tokenizer="byte_level", *, size=32, patch=8, **image_changes):
    """transformers' processor of a family. SmolVLM's needs the package num2words."""
    images, words = image_processor(family, size, **image_changes), tokenizer_of(family, tokenizer)
    template, grid = TEMPLATES[family], size // patch
    if family == "llava_onevision":
        return unchecked("LlavaOnevisionProcessor")(
            images, words, video_processor(family, size), num_image_tokens=grid**2, chat_template=template,
            vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_4",
        )  # fmt: skip
    if family == "idefics3":
        return transformers.Idefics3Processor(images, words, image_seq_len=(grid // 2) ** 2, chat_template=template)
    if family == "internvl":
        options = {"image_seq_length": (grid // 2) ** 2, "chat_template": template}
        return unchecked("InternVLProcessor")(images, words, None, **options)
    if family == "smolvlm":
        video = video_processor(family, size)
        return unchecked("SmolVLMProcessor")(images, words, video, (grid // 2) ** 2, chat_template=template)
    name = {"llava": "Llava", "llava_next": "LlavaNext", "llava_next_video": "LlavaNextVideo"}[family]
    options = {"patch_size": patch, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava_next_video":
        options["video_processor"] = video_processor(family, size)
    return unchecked(f"{name}Processor")(image_processor=images, tokenizer=words, chat_template=template, **options)


def checkpoint(folder, family, tokenizer="byte_level", *, size=32, patch=8, legacy=False, **image_changes):
    """A directory with everything but weights. `legacy` writes the files that older releases wrote."""
    folder = Path(folder)
    model_config(family, size, patch).save_pretrained(folder)
    tokenizer_of(family, tokenizer).save_pretrained(folder)
    images = image_processor(family, size, **image_changes)
    has_videos = family in ("llava_next_video", "llava_onevision", "smolvlm")
    if legacy:
        images.save_pretrained(folder)
        if has_videos:
            video_processor(family, size).save_pretrained(folder)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[family]}))
        return folder
    parts = {"image_processor": images.to_dict()}
    if family == "internvl":  # whose video processor cannot be imported without torchvision
        parts["video_processor"] = {"size": {"height": size, "width": size}, "resample": 3, "do_resize": True}
    if has_videos:
        parts["video_processor"] = json.loads(video_processor(family, size).to_json_string())
    (folder / "processor_config.json").write_text(json.dumps(parts))
    (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    return folder
