"""A video LLM trained with vlvm_jax, in PyTorch: tower, video adapter and decoder.

    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY, trust_remote_code=True)
    answer = model.chat(tokenizer, prompt, videos=[frames])  # prompt: in the model's chat format, with `<video>` in it

Where a question picks what is seen of a clip (`needs_prompt`), `chat` takes it as `question=`.

Letters of shapes: F frames, N patches, D tower width, V visual tokens, C decoder width, B rows, L sequence length.
"""

import re

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_vlvm import VlvmConfig
from .connector import Connector, side_of
from .video_adapter import VideoAdapter  # pyright: ignore[reportMissingImports]  the export names it so

INTERNVIT = "internvl_vision"
VISUAL_INPUTS = ("pixel_values", "pixel_values_videos")
GUIDE_FOLDER = "clip"  # of the tokenizer of a CLIP that picks frames by a question
# What transformers calls the keys and values of past tokens: `cache` from 5.24 on, `past_key_values` before.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class Guide:
    """What guides an adapter: frames as the tower gets them, a question for each clip, the tower and its last layer.

    Args:
      pixel_values: [F, 3, H, W] of all clips, normalised by the model's statistics.
      prompt_ids: [clips, P].
      tower: the model's.
      final: [F, M, D] of its last layer, before its last layer norm; of use where an adapter shares the tower.
    """

    def __init__(self, pixel_values, prompt_ids, tower=None, final=None):
        self.pixel_values, self.prompt_ids, self.tower, self.final = pixel_values, prompt_ids, tower, final


class VlvmPreTrainedModel(PreTrainedModel):
    config_class = VlvmConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class VlvmModel(VlvmPreTrainedModel):
    """Everything but the head."""

    def __init__(self, config: VlvmConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.adapter = VideoAdapter(config, Connector(config))
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    @property
    def tower(self):
        return getattr(self.vision_tower, "vision_model", self.vision_tower)  # one module deeper in transformers 5.0

    @property
    def needs_prompt(self) -> bool:
        """Whether a question picks what is seen of a clip."""
        return getattr(self.adapter, "needs_prompt", False)

    def get_vision_features(self, pixel_values):
        """Pixels [F, 3, H, W] to patch features [F, N, D], the attention [F, N] that each patch receives if
        `attention_layer` asks for it, and what the layers give [F, M, D].

        Runs the layers up to `vision_feature_layer`; those above keep their weights and do nothing here.
        """
        config, vision, tower = self.config, self.config.vision_config, self.tower
        hidden = embed_patches(tower, vision, pixel_values)
        used = self.num_used_layers
        read_at = None if config.attention_layer is None else range(used)[config.attention_layer]
        received = None
        for index, layer in enumerate(layers_of(tower)[:used]):
            if index == read_at:
                received = attention_received(layer, hidden, vision)
            hidden = layer(hidden) if vision.model_type == INTERNVIT else layer(hidden, attention_mask=None)
        last = hidden
        if config.vision_post_norm:
            hidden = tower.post_layernorm(hidden)
        num_patches = (side_of(vision, "image_size") // side_of(vision, "patch_size")) ** 2
        return hidden[:, -num_patches:], None if received is None else received[:, -num_patches:], last

    @property
    def num_used_layers(self) -> int:
        used = self.config.vision_feature_layer
        return used + (self.config.vision_config.num_hidden_layers + 1 if used < 0 else 0)

    def get_visual_tokens(self, pixel_values, frames_per_medium: list[int], is_video: bool, prompt_ids=None):
        """Tokens [V, C] of images (`is_video` False, a frame each) or of clips, one medium after the other.

        Args:
          pixel_values: [F, 3, H, W], the frames of all media in order.
          frames_per_medium: how many of them belong to each.
          prompt_ids: [clips, P] the question about each clip, for a model that `needs_prompt`.
        """
        patches, attention, last = self.get_vision_features(pixel_values)
        if not (is_video and self.needs_prompt):
            return self.adapter(patches, attention, frames_per_medium, is_video)
        if prompt_ids is None:
            raise ValueError("this model looks at a clip by a question: give `prompt_ids`, as `prepare_inputs` does")
        if self.adapter.shares_tower:
            for layer in layers_of(self.tower)[self.num_used_layers :]:
                last = layer(last, attention_mask=None)
        guide = Guide(pixel_values, prompt_ids, self.tower, last)
        return self.adapter(patches, attention, frames_per_medium, is_video, guide)

    def token_id(self, is_video: bool) -> int:
        """What marks the positions of media of this kind."""
        return self.config.video_token_id if is_video else self.config.image_token_id

    def tokens_per_medium(self, media, is_video: bool) -> list[int]:
        if is_video:
            return [self.adapter.num_video_tokens(len(frames)) for frames in media]
        return [self.adapter.num_image_tokens()] * len(media)

    def marked_tokens(self, input_ids, media, is_video: bool) -> list[int]:
        """Tokens of each medium, once it is sure that as many positions are marked for them."""
        counts = [] if media is None else self.tokens_per_medium(media, is_video)
        marked = int((input_ids == self.token_id(is_video)).sum())
        if sum(counts) != marked:
            kind = "videos" if is_video else "images"
            raise ValueError(
                f"input_ids mark {marked} positions for {kind} (id {self.token_id(is_video)}), but the {len(counts)} "
                f"{kind} given take {sum(counts)}; `prepare_inputs` lays them out"
            )
        return counts

    def merge(self, input_ids, pixel_values=None, pixel_values_videos=None, prompt_ids=None):
        """Text embeddings [B, L, C] with the tokens of images and clips, row by row, at their marked positions.

        Args:
          prompt_ids: [B, P] the question of each row.
        """
        marked = {is_video: input_ids == self.token_id(is_video) for is_video in (False, True)}
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(marked[False] | marked[True], 0))
        for media, is_video in ((pixel_values, False), (pixel_values_videos, True)):
            counts = self.marked_tokens(input_ids, media, is_video)
            if media is None:
                continue
            each = list(media if is_video else media[:, None])
            asked = None
            if is_video and prompt_ids is not None:
                rows = media_of_rows(marked[True].sum(-1).tolist(), counts)
                asked = prompt_ids[[row for row, clips in enumerate(rows) for _ in clips]]
            tokens = self.get_visual_tokens(torch.cat(each), [len(frames) for frames in each], is_video, asked)
            embeddings = embeddings.masked_scatter(marked[is_video][..., None], tokens.to(embeddings))
        return embeddings

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        pixel_values_videos=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        prompt_ids=None,
        **kwargs,
    ):
        """See `VlvmForConditionalGeneration.forward`; gives the decoder's outputs, final hidden states first."""
        has_media = pixel_values is not None or pixel_values_videos is not None
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            decoding = cache is not None and cache.get_seq_length() > 0
            # An id that the model itself has generated is text, whatever it is.
            if decoding and not has_media:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.merge(input_ids, pixel_values, pixel_values_videos, prompt_ids)
        elif has_media:
            raise ValueError("images and clips go with input_ids, which say where they stand, not with inputs_embeds")
        return self.language_model(inputs_embeds=inputs_embeds, return_dict=True, **{CACHE: cache}, **kwargs)


class VlvmForConditionalGeneration(VlvmPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: VlvmConfig):
        super().__init__(config)
        self.model = VlvmModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def get_visual_tokens(self, pixel_values, frames_per_medium: list[int], is_video: bool, prompt_ids=None):
        """See `VlvmModel.get_visual_tokens`."""
        return self.model.get_visual_tokens(pixel_values, frames_per_medium, is_video, prompt_ids)

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        pixel_values_videos=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        prompt_ids=None,
        **kwargs,
    ):
        """Logits [B, L, vocabulary].

        Args:
          input_ids: [B, L], with `image_token_id` or `video_token_id` at each position of a visual token.
          pixel_values: [images, 3, H, W], all images of all rows in order.
          pixel_values_videos: [clips, T, 3, H, W], or a list of [T, 3, H, W] where lengths differ.
          prompt_ids: [B, P] what is asked of each row's clip, for a model that `needs_prompt`.
          cache, past_key_values: keys and values of past tokens, under either of transformers' names.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            prompt_ids=prompt_ids,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        vocabulary = self.config.text_config.vocab_size
        return CausalLMOutputWithPast(
            loss=None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE)},
        )

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, use_cache=True, **kwargs):
        """Images and clips go in once; after that they are in the cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )
        if use_cache and not is_first_iteration:
            for name in (*VISUAL_INPUTS, "prompt_ids"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """For beams and several samples: each row repeated, and with it all of its media in their order."""
        visual = {name: kwargs.pop(name) for name in VISUAL_INPUTS if kwargs.get(name) is not None}
        ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        for name, media in visual.items():
            is_video = name == "pixel_values_videos"
            counts = self.model.marked_tokens(input_ids, media, is_video)
            rows = media_of_rows((input_ids == self.model.token_id(is_video)).sum(-1).tolist(), counts)
            order = [index for row in rows for _ in range(expand_size) for index in row]
            kwargs[name] = media[order] if isinstance(media, torch.Tensor) else [media[index] for index in order]
        return ids, kwargs

    @torch.no_grad()
    def chat(
        self,
        tokenizer,
        prompt,
        *,
        images=(),
        videos=(),
        image_processor=None,
        question=None,
        max_new_tokens=256,
        **generate_kwargs,
    ) -> str:
        """The answer to one prompt, greedy unless `generate_kwargs` say otherwise; see `prepare_inputs`."""
        inputs = self.prepare_inputs(
            tokenizer, prompt, images=images, videos=videos, image_processor=image_processor, question=question
        )
        generate_kwargs.setdefault("do_sample", False)
        if self.generation_config.eos_token_id is None:
            generate_kwargs.setdefault("eos_token_id", tokenizer.eos_token_id)
        ids = self.generate(**inputs, max_new_tokens=max_new_tokens, **generate_kwargs)
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def prepare_inputs(
        self, tokenizer, prompt: str, *, images=(), videos=(), image_processor=None, question: str | None = None
    ) -> dict:
        """What `generate` and `forward` take, for one prompt.

        Args:
          prompt: the whole text in the model's chat format, with `<image>` or `<video>` where a medium goes, in the
            order of `images` and of `videos`. Nothing is added to it.
          images: uint8 [H, W, 3] arrays or PIL images.
          videos: uint8 [T, H, W, 3] arrays: the frames to look at.
          image_processor: the Hugging Face one of the tower; without it, frames must have the tower's size.
          question: what is asked about the clip, without anything around it, for a model that `needs_prompt`.

        Raises:
          ValueError: placeholders and media do not agree, a frame has another size, or the question is missing.
        """
        pixels = {
            "<image>": [self.preprocess([image], image_processor) for image in images],
            "<video>": [self.preprocess(frames, image_processor) for frames in videos],
        }
        marks = {
            placeholder: (self.model.token_id(is_video), self.model.tokens_per_medium(pixels[placeholder], is_video))
            for placeholder, is_video in (("<image>", False), ("<video>", True))
        }
        for placeholder, media in pixels.items():
            if prompt.count(placeholder) != len(media):
                raise ValueError(f"the prompt holds {prompt.count(placeholder)} {placeholder}, {len(media)} were given")
        ids = []
        for piece in re.split(f"({'|'.join(marks)})", prompt):
            if piece in marks:
                token_id, counts = marks[piece]
                ids += [token_id] * counts.pop(0)
            elif piece:
                ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        inputs: dict = {"input_ids": torch.tensor([ids], device=self.device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if pixels["<image>"]:
            inputs["pixel_values"] = torch.cat(pixels["<image>"])
        if clips := pixels["<video>"]:
            same_length = len({len(clip) for clip in clips}) == 1
            inputs["pixel_values_videos"] = torch.stack(clips) if same_length else clips
            if self.model.needs_prompt:
                inputs["prompt_ids"] = self.guide_ids(question)
        return inputs

    def guide_ids(self, question: str | None):
        """Token ids [1, P] of a question for the CLIP that picks frames by it.

        Raises:
          ValueError: there is none, or the model has no folder with that CLIP's tokenizer.
        """
        if question is None:
            raise ValueError("this model looks at a clip by a question: give question='...'")
        if not hasattr(self, "_guide_tokenizer"):
            self._guide_tokenizer = AutoTokenizer.from_pretrained(self.config._name_or_path, subfolder=GUIDE_FOLDER)
        length = self.config.adapter["options"]["clip"]["text"]["max_position_embeddings"]
        encoded = self._guide_tokenizer(question, truncation=True, max_length=length)
        return torch.tensor([encoded["input_ids"]], device=self.device)

    def preprocess(self, frames, image_processor=None):
        """uint8 frames [F, H, W, 3] (or a list of images) to normalised pixels [F, 3, size, size]."""
        size = side_of(self.config.vision_config, "image_size")
        if image_processor is not None:
            pixels = image_processor(images=list(frames), return_tensors="pt")["pixel_values"]
            pixels = pixels.reshape(-1, *pixels.shape[-3:])
        else:
            array = np.stack([np.asarray(frame) for frame in frames])
            if array.dtype != np.uint8 or array.shape[-1] != 3:
                raise ValueError(f"frames are uint8 [H, W, 3], not {array.dtype} {list(array.shape[1:])}")
            mean, std = (torch.tensor(values) for values in (self.config.image_mean, self.config.image_std))
            pixels = ((torch.from_numpy(array).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        if len(pixels) != len(frames) or pixels.shape[-2:] != (size, size):
            raise ValueError(
                f"{len(frames)} frames became pixels of shape {list(pixels.shape)}, the tower reads {size} x {size}: "
                "pass its image_processor, one that does not cut images into tiles"
            )
        return pixels.to(self.device)


def layers_of(tower):
    """The tower's layers, which InternViT has under another name."""
    return tower.encoder.layer if hasattr(tower.encoder, "layer") else tower.encoder.layers


def embed_patches(tower, vision, pixel_values):
    """The tower's input [F, M, D]: patches, after a class token for CLIP and InternViT."""
    embeddings = tower.embeddings
    if vision.model_type == INTERNVIT:
        return embeddings(pixel_values)
    pixel_values = pixel_values.to(embeddings.patch_embedding.weight)
    if vision.model_type in ("idefics3_vision", "smolvlm_vision"):
        side = vision.image_size // vision.patch_size
        everywhere = torch.ones(len(pixel_values), side, side, dtype=torch.bool, device=pixel_values.device)
        return embeddings(pixel_values=pixel_values, patch_attention_mask=everywhere)
    hidden = embeddings(pixel_values)
    return tower.pre_layrnorm(hidden) if vision.model_type == "clip_vision_model" else hidden


def attention_received(layer, hidden, vision):
    """Attention [F, M] that each token receives in a layer, mean over heads: from the class token where there is one,
    else from all tokens on average. fp32."""
    own = vision.model_type == INTERNVIT
    x = layer.layernorm_before(hidden) if own else layer.layer_norm1(hidden)
    attention = layer.attention if own else layer.self_attn
    heads = (*x.shape[:2], vision.num_attention_heads, -1)
    query = attention.q_proj(x).reshape(heads).transpose(1, 2).float()
    key = attention.k_proj(x).reshape(heads).transpose(1, 2).float()
    if vision.model_type in ("clip_vision_model", INTERNVIT):
        query = query[:, :, :1]
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return logits.softmax(-1).mean((1, 2))


def media_of_rows(wanted: list[int], counts: list[int]) -> list[list[int]]:
    """Which media stand in each row, from the marked positions of the rows and the tokens of each medium."""
    rows, index = [], 0
    for left in wanted:
        rows.append([])
        while left > 0:
            rows[-1].append(index)
            left -= counts[index]
            index += 1
    return rows
