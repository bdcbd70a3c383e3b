"""The recipe of `mean_over_time`: the tiny stages over the embedded data."""

from ml_collections import ConfigDict

from vlvm_jax.recipes import ftfv


def get_config(arg: str | None = None) -> ConfigDict:
    config = ftfv.get_config(arg)
    config.model.adapter.name = "mean_over_time"
    config.model.adapter.options = {"max_frames": 8}
    for stage in config.stages:
        if "adapter/temporal_embedding" in stage.trainable:  # which this method does not have
            del stage.trainable["adapter/temporal_embedding"]
    return config
