"""Images as a tower sees them, without a processor."""

import numpy as np
from jaxtyping import UInt8

from vlvm_jax.data.images.squares import resize
from vlvm_jax.data.media.frames import open_image


def read_image(path: str, size: int) -> UInt8[np.ndarray, "1 {size} {size} 3"]:
    """One image, by `resize`; errors of `open_image`."""
    return resize(open_image(path), size)[None]
