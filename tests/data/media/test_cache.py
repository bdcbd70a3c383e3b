"""What a loading process keeps of decoded media."""

import numpy as np

from vlvm_jax.data.media.cache import MediaCache


def test_what_was_decoded_first_is_kept_up_to_the_size():
    cache, decoded = MediaCache(25), []

    def get(key, size=10):
        return cache.get(key, lambda: decoded.append(key) or np.zeros(size, np.uint8))

    first = get("a")
    for key in "bcabc":
        get(key)
    assert decoded == ["a", "b", "c", "c"] and get("a") is first  # c has no room, and nothing goes for it
    get("d", size=5)
    get("d")
    assert decoded[4:] == ["d"] and cache.held == 25
