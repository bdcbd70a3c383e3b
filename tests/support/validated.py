"""The recipe that is small enough for tests, its last stage validated every 4 steps."""

from typing import Any

from support import small
from vlvm_jax.recipes._common import EMBEDDED, complete, entry


def get_config(arg: str | None = None) -> Any:
    config = small.get_config(arg).to_dict()
    config["stages"] = [dict(stage) for stage in config["stages"]]
    config["stages"][-1] |= {
        "validation": [entry(f"{EMBEDDED}/heldout_clips.json")],
        "validate_every": 4,
        "best": "loss",
    }
    return complete(config)
