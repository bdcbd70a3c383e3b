"""Configuration of a video LLM trained with vlvm_jax, for transformers."""

from transformers import AutoConfig, PretrainedConfig

# transformers finds a model's class by the class of its configuration, and makes one of that for each directory name
# and text of this file with what it imports. So the adapter counts: two exports of one name may differ only there.
from .video_adapter import VideoAdapter  # noqa: F401  # pyright: ignore  the export names it so


class VlvmConfig(PretrainedConfig):
    """An image tower, a video adapter and a decoder.

    Args:
      vision_config: of the tower: `clip_vision_model`, `siglip_vision_model`, `idefics3_vision`, `smolvlm_vision` or
        `internvl_vision`.
      text_config: of the decoder: `llama`, `mistral`, `qwen2` or `qwen3`.
      adapter: `name`, `connector` and `options` as in the run's configuration, every option written out.
      image_token_id, video_token_id: two ids that mark where the tokens of an image or of a clip go in `input_ids`.
        No text may use them; they need no row in the embedding.
      vision_feature_layer: the layer whose output is used, as hidden states are counted: 0 the embeddings, -1 the last.
      vision_post_norm: whether the tower's `post_layernorm` is applied to it.
      attention_layer: the layer, among those that run, at which the attention that patches receive is read; only for
        adapters that rank by it.
      image_mean, image_std: what the frames were normalised with in training.
    """

    model_type = "vlvm"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        vision_config=None,
        text_config=None,
        adapter=None,
        image_token_id=-200,
        video_token_id=-201,
        vision_feature_layer=-1,
        vision_post_norm=False,
        attention_layer=None,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        **kwargs,
    ):
        self.vision_config = _sub_config(vision_config, "clip_vision_model")
        self.text_config = _sub_config(text_config, "llama")
        self.adapter = adapter or {}
        if image_token_id == video_token_id:
            raise ValueError(f"config.json: image_token_id and video_token_id are both {image_token_id}")
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.vision_feature_layer = vision_feature_layer
        self.vision_post_norm = vision_post_norm
        self.attention_layer = attention_layer
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)


def _sub_config(config, default_type):
    if isinstance(config, PretrainedConfig):
        return config
    config = dict(config or {})
    return AutoConfig.for_model(config.pop("model_type", default_type), **config)
