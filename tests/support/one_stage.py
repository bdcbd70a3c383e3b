"""The last stage of the small recipe alone, of a smaller model: for runs that are about anything but learning."""

from typing import Any

from support import small


def get_config() -> Any:
    config = small.get_config()
    config.data.workers = 0
    config.tensorboard = False
    config.model.vision.num_hidden_layers = config.model.decoder.num_hidden_layers = 1
    stage = config.stages[-1]
    stage.update(steps=40, batch_size=4, pack=False, frames=2, length=168, log_every=1)
    config.stages = [stage]
    held_out = config.evals[0]
    held_out.update(limit=11, batch_size=4, frames=2, controls=[])  # 11: processes have unequal numbers of batches
    config.checkpoint.update(save_every=5, keep=20)
    return config
