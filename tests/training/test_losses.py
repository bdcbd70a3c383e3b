"""Which tokens a step learns, and that the head over these alone gives what the head over all tokens would."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlvm_jax.models.batch import Batch, next_tokens
from vlvm_jax.training import losses as losses_lib


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


# --- the head over learned positions ---------------------------------------------------------------------------------

ROWS, LENGTH, WIDTH, VOCAB = 3, 37, 16, 101


@pytest.fixture(scope="module")
def drawn():
    """Hidden states, a head and targets."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((ROWS, LENGTH, WIDTH)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((WIDTH, VOCAB)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, VOCAB, (ROWS, LENGTH)))


def over_all(hidden, head, targets, learned):
    logits = hidden @ head
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * learned), jnp.sum((logits.argmax(-1) == targets) & learned)


def over_learned(hidden, head, targets, learned, passes, chunks=1):
    return losses_lib._learned_losses(passes)(hidden, *losses_lib._pieces(head, chunks), targets, learned)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("passes", [1, 4, 8])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_learned_positions_alone_give_the_same_losses_and_gradients(drawn, share, passes, chunks):
    hidden, head, targets = drawn
    learned = jnp.asarray(np.random.default_rng(1).random(targets.shape) < share)

    def gradients(of, *more):
        function = jax.value_and_grad(lambda *x: of(*x, targets, learned, *more), argnums=(0, 1), has_aux=True)
        return jax.jit(function)(hidden, head)

    (expected, right), expected_gradients = gradients(over_all)
    (loss, said), found = gradients(over_learned, passes, chunks)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    assert said == right
    for one, other in zip(found, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    of_hidden = jax.grad(lambda x: over_learned(x, head, targets, learned, passes, chunks)[0])(hidden)  # a frozen head
    np.testing.assert_allclose(of_hidden, expected_gradients[0], atol=1e-4)


@pytest.mark.parametrize(("learned", "ran"), [(0, 0), (1, 1), (14, 1), (15, 2), (111, 8)])
def test_passes_without_learned_positions_do_not_run(drawn, learned, ran, monkeypatch):
    hidden, head, targets = drawn
    runs, one_pass = [], losses_lib._one_pass

    def counted(*arguments):
        jax.debug.callback(lambda: runs.append(1))
        return one_pass(*arguments)

    monkeypatch.setattr(losses_lib, "_one_pass", counted)
    which = np.zeros(targets.size, bool)
    which[np.random.default_rng(2).permutation(targets.size)[:learned]] = True
    over_learned(hidden, head, targets, jnp.asarray(which.reshape(targets.shape)), 8)
    jax.effects_barrier()
    assert len(runs) == ran
