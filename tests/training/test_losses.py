"""Which tokens a step learns."""

import numpy as np

from vlvm_jax.models.batch import Batch, next_tokens


def batch(segment_ids, loss_mask) -> Batch:
    segments = np.array(segment_ids)
    tokens = 10 + np.arange(segments.size).reshape(segments.shape)
    nothing = np.zeros(segments.shape, bool)
    return Batch(
        frames=np.zeros((len(segments), 0, 0, 0, 3), np.uint8), media=nothing[:, :0], is_video=nothing[:, :0],
        token_ids=tokens, media_mask=nothing, positions=tokens, segment_ids=segments,
        loss_mask=np.array(loss_mask, bool),
    )  # type: ignore[arg-type]  # fmt: skip


def test_the_next_token_of_the_same_sample_is_learned():
    """All tokens are to be learned: the first of a sample cannot be, since nothing of its own stands before it."""
    targets, learned = next_tokens(batch([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.ones((2, 6))))
    assert np.asarray(targets)[:, :-1].tolist() == [[11, 12, 13, 14, 15], [17, 18, 19, 20, 21]]
    # Where the next token is padding, it is another sample's too.
    assert learned.tolist() == [[True, True, False, True, False, False], [True] * 5 + [False]]


def test_only_what_is_marked_is_learned():
    _, learned = next_tokens(batch([[1, 1, 1, 1, 2, 2]], [[0, 0, 1, 0, 0, 1]]))
    assert learned.tolist() == [[False, True, False, False, True, False]]
