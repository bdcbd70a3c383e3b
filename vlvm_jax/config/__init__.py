"""What a run is made of: frozen, validated settings, built from the `ConfigDict` that a recipe returns.

Every error names the key by its full path (`stages.1.trainable`), what was found and what was expected.
"""

from vlvm_jax.config.data import (
    AnswerConfig,
    ClipText,
    DataConfig,
    FrameFit,
    FrameRule,
    ImageLayout,
    MixtureEntry,
    ShortVideo,
)
from vlvm_jax.config.model import (
    LORA_MODULES,
    AdapterConfig,
    ClipConfig,
    ConnectorConfig,
    DecoderConfig,
    FrameTokens,
    InitFrom,
    LoraConfig,
    ModelConfig,
    Remat,
    RopeScaling,
    TextConfig,
    VisionConfig,
)
from vlvm_jax.config.run import (
    CheckpointConfig,
    Config,
    EvalConfig,
    MeshConfig,
    StageConfig,
    require_stages,
    require_work,
)
from vlvm_jax.config.settings import DType, FrozenDict, Settings, build, fingerprint, to_json

__all__ = [
    "LORA_MODULES",
    "AdapterConfig",
    "AnswerConfig",
    "CheckpointConfig",
    "ClipConfig",
    "ClipText",
    "Config",
    "ConnectorConfig",
    "DType",
    "DataConfig",
    "DecoderConfig",
    "EvalConfig",
    "FrameFit",
    "FrameRule",
    "FrameTokens",
    "FrozenDict",
    "ImageLayout",
    "InitFrom",
    "LoraConfig",
    "MeshConfig",
    "MixtureEntry",
    "ModelConfig",
    "Remat",
    "RopeScaling",
    "Settings",
    "ShortVideo",
    "StageConfig",
    "TextConfig",
    "VisionConfig",
    "build",
    "fingerprint",
    "require_stages",
    "require_work",
    "to_json",
]
