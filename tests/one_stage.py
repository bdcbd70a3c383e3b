"""The last stage of the tiny recipe alone, for runs that are about something else than learning."""

from typing import Any

from recipes import DATA

from configs import ftfv


def get_config() -> Any:
    config = ftfv.get_config("tiny")
    config.data.embedded = dict(DATA)
    config.data.workers = 0
    config.tensorboard = False
    stage = config.stages[-1]
    stage.update(steps=120, batch_size=8, pack=False, frames=4, length=64, log_every=1)
    config.stages = [stage]
    held_out = config.evals[0]
    held_out.update(limit=11, batch_size=4, frames=4, controls=[])  # 11: processes have unequal numbers of batches
    config.checkpoint.update(save_every=10, keep=20)
    return config
