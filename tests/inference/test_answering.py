"""Batches, buckets, what is kept, streaming, limits: over a random tiny model."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from support import tiny_checkpoints as tiny

from vlvm_jax.config import MeshConfig
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import Turn
from vlvm_jax.errors import InputError
from vlvm_jax.inference.answering import Answering, Decoding, Request
from vlvm_jax.inference.engine import length_bucket, power_bucket
from vlvm_jax.inference.loading import load

QUESTIONS = ("what is it ?", "how many dogs ?", "is it a cat or a dog or the bird and two or three ?", "a cat ?")
SHORT = Decoding(max_new_tokens=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("answering")
    tiny.checkpoint(root / "llava", "llava", kv_heads=2)
    for seed in range(2):
        tiny.clip(root / f"{seed}.mp4", seed=seed)
    tiny.picture(root / "picture.png")
    return root


@pytest.fixture(scope="module")
def answering(folder):
    return fresh(folder)


def fresh(folder, **options) -> Answering:
    loaded = load(str(folder / "llava"), frames=4, **{"rows": 4, **options})
    loaded.prompts.decode = lambda ids: "".join(f"[{number}]" for number in ids)  # or bytes that are no text would hide
    return loaded


def about(folder, name: str, questions=QUESTIONS, **values) -> list[Request]:
    media = (("video" if name.endswith("mp4") else "image", str(folder / name)),) if name else ()
    return [Request(f"{name} {number}", media, question, **values) for number, question in enumerate(questions)]


def said(answers) -> dict[str, tuple]:
    return {a.id: (a.text, a.finish, a.prompt_tokens, a.visual_tokens, a.new_tokens) for a in answers}


def test_a_batch_says_what_each_says_alone_in_order(answering, folder):
    requests = [*about(folder, "0.mp4"), *about(folder, "picture.png"), *about(folder, ""), *about(folder, "1.mp4")]
    together = list(answering.answer(requests, SHORT))
    assert [answer.id for answer in together] == [request.id for request in requests]
    alone = [answer for request in requests for answer in answering.answer([request], SHORT)]
    assert said(together) == said(alone)
    assert len({answer.text for answer in together}) > 8
    assert {answer.visual_tokens for answer in together} == {64, 16, 0}


def test_drawn_answers_depend_on_seed_and_id_alone(answering, folder):
    requests = about(folder, "0.mp4")
    drawn = dataclasses.replace(SHORT, temperature=1.0, top_p=0.9, seed=3)
    together = said(answering.answer(requests, drawn))
    assert together == said(answer for request in requests[::-1] for answer in answering.answer([request], drawn))
    assert together != said(answering.answer(requests, SHORT))
    assert together != said(answering.answer(requests, dataclasses.replace(drawn, seed=4)))


def test_each_bucket_is_compiled_once_and_media_are_seen_once(folder):
    answering = fresh(folder)
    seen = []
    encode_media = answering.engine.encode_media
    answering.engine.encode_media = lambda frames: seen.append(frames.shape) or encode_media(frames)
    requests = [*about(folder, "0.mp4"), *about(folder, "1.mp4"), *about(folder, "picture.png")]
    for _ in range(2):
        for decoding in (SHORT, dataclasses.replace(SHORT, max_new_tokens=17, stop=("never",))):
            list(answering.answer(requests, decoding))
    assert seen == [(1, 4, 32, 32, 3)] * 2 + [(1, 1, 32, 32, 3)]
    assert set(answering.engine.traced.values()) == {1}, answering.engine.traced
    assert sum(key[0] == "prefill" for key in answering.engine.traced) >= 2
    for function in answering.engine._functions.values():
        assert function._cache_size() == 1  # type: ignore[attr-defined]


def test_what_was_not_used_longest_is_dropped(folder):
    answering = fresh(folder, cache_bytes=1)
    first, second = about(folder, "0.mp4")[:1], about(folder, "1.mp4")[:1]
    for requests in (first, second, first):
        (answer,) = answering.answer(requests, SHORT)
        assert answer.seconds_vision > 0
    (again,) = answering.answer(first, SHORT)
    assert again.seconds_vision < 0.01 and len(answering._kept) == 1


def test_what_was_used_last_stays(answering, folder):
    requests = [Request("1", (("video", str(folder / f"{n}.mp4")),), "a cat ?", span=(0.0, 0.5)) for n in (0, 1)]
    requests.append(dataclasses.replace(requests[0], span=(0.5, 1.0)))
    first = answering.encode_media(requests[0])
    small = Answering(answering.engine, answering.prompts, cache_bytes=2 * first.nbytes)
    one, two = (small.encode_media(request) for request in requests[:2])
    assert small.encode_media(requests[0]) is one  # used again: the other one goes for the third
    small.encode_media(requests[2])
    assert small.encode_media(requests[0]) is one and small.encode_media(requests[1]) is not two


def test_a_file_that_changed_is_seen_anew(folder, tmp_path):
    answering = fresh(folder)
    path = tmp_path / "clip.mp4"
    shutil.copy(folder / "0.mp4", path)
    (before,) = answering.answer(about(tmp_path, "clip.mp4")[:1], SHORT)
    shutil.copy(folder / "1.mp4", path)
    (after,) = answering.answer(about(tmp_path, "clip.mp4")[:1], SHORT)
    assert before.text != after.text


def test_what_was_seen_is_kept_by_span_and_by_order(answering, folder):
    clip = ("video", str(folder / "0.mp4"))
    whole, begin, end = (Request("1", (clip,), "a cat ?", span=span) for span in (None, (0.0, 0.4), (0.4, 9.0)))
    encoded = [answering.encode_media(request) for request in (whole, begin, end)]
    for number, one in enumerate(encoded):
        for other in encoded[:number]:
            assert not np.array_equal(one.media[0].frames, other.media[0].frames)
    assert answering.encode_media(begin) is encoded[1]
    both = Request("1", (clip, ("video", str(folder / "1.mp4"))), "a cat ?")
    there, back = answering.encode_media(both, (0, 1)), answering.encode_media(both, (1, 0))
    assert not np.array_equal(jax.tree.leaves(there.features)[0], jax.tree.leaves(back.features)[0])


def test_streamed_pieces_join_to_the_answer(answering, folder):
    request = about(folder, "0.mp4")[0]
    decoding = Decoding(max_new_tokens=40)
    pieces, stream = [], answering.stream(request, decoding)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    (expected,) = answering.answer([request], decoding)
    assert said([answer]) == said([expected])
    assert "".join(pieces) == answer.text and len(pieces) > 2


def test_stop_strings_end_answers_and_rows_go_on_without_each_other(answering, folder):
    requests = about(folder, "0.mp4")
    whole = {answer.id: answer for answer in answering.answer(requests, SHORT)}
    victim = whole[requests[1].id]
    tokens = victim.text.removeprefix("[").removesuffix("]").split("][")
    at = next(n for n in range(3, 19) if f"{tokens[n]}][{tokens[n + 1]}" not in "][".join(tokens[: n + 1]))
    stop = f"{tokens[at]}][{tokens[at + 1]}"  # from within one token into the next
    cut = {answer.id: answer for answer in answering.answer(requests, dataclasses.replace(SHORT, stop=(stop,)))}
    assert cut[victim.id].text == victim.text[: victim.text.index(stop)]
    assert cut[victim.id].finish == "stop" and cut[victim.id].new_tokens == at + 2
    for name, answer in cut.items():
        if stop not in whole[name].text:
            assert (answer.text, answer.finish) == (whole[name].text, "length")


def test_an_end_token_ends_an_answer(folder):
    answering = fresh(folder)
    (whole,) = answering.answer(about(folder, "0.mp4")[:1], SHORT)
    tokens = [int(number) for number in whole.text.removeprefix("[").removesuffix("]").split("][")]
    end = next(token for token in tokens[2:] if token not in tokens[:2])
    assert answering.prompts.end_ids == (0, 597, 598)  # of the tokenizer, and of generation_config.json
    answering.prompts.end_ids = (end,)
    (answer,) = answering.answer(about(folder, "0.mp4")[:1], SHORT)
    at = tokens.index(end)
    assert answer.text == "".join(f"[{token}]" for token in tokens[:at])
    assert (answer.finish, answer.new_tokens) == ("stop", at + 1)


def test_a_prefix_is_read_and_not_said(answering, folder):
    plain, begun = about(folder, "0.mp4")[0], about(folder, "0.mp4", prefix="it is a")[0]
    texts = [answering.prompts.prompt(request).text for request in (plain, begun)]
    assert texts[1] == f"{texts[0]} it is a" and texts[0].endswith("ASSISTANT:")
    assert answering.prompts.prompt(dataclasses.replace(begun, prefix="\nit")).text == f"{texts[0]}\nit"
    answers = [next(answering.answer([request], SHORT)) for request in (plain, begun)]
    assert answers[0].text != answers[1].text and answers[1].prompt_tokens > answers[0].prompt_tokens


def test_a_conversation_shows_the_clip_once(answering, folder):
    media = (("video", str(folder / "0.mp4")),)
    turns = (Turn("what is it ?", "a cat"), Turn("why ?", ""))
    text = answering.prompts.prompt(Request("1", media, turns)).text
    assert text == "USER: <image>\nwhat is it ? ASSISTANT: a cat USER: why ? ASSISTANT:"
    (answer,) = answering.answer([Request("1", media, turns)], SHORT)
    assert answer.visual_tokens == 64


def test_placeholders_say_where_media_stand(answering, folder):
    media = (("image", str(folder / "picture.png")), ("video", str(folder / "0.mp4")))
    request = Request("1", media, "is <image> in <video> ?")
    (answer,) = answering.answer([request], SHORT)
    assert answer.visual_tokens == 16 + 64
    with pytest.raises(InputError, match=r"q: 1 placeholders .* for 2 images and clips"):
        list(answering.answer([Request("q", media, "what is <image> ?")], SHORT))


def test_an_answer_ends_with_the_context_and_a_longer_prompt_is_refused_with_the_arithmetic(folder):
    answering = fresh(folder, length=96)
    request = about(folder, "0.mp4")[0]
    (answer,) = answering.answer([request], Decoding(max_new_tokens=64))
    assert answer.finish == "length" and answer.prompt_tokens + answer.new_tokens == 96
    long = dataclasses.replace(request, question="what " * 40)
    with pytest.raises(InputError, match=r"4 frames x 16 = 64 visual tokens \+ 86 text tokens = 150, .* length is 96"):
        list(answering.answer([long], SHORT))
    with pytest.raises(InputError, match=r"max_position_embeddings is 512"):
        list(fresh(folder).answer([dataclasses.replace(request, question="what " * 600)], SHORT))


@pytest.mark.parametrize("question", ["", "  ", "<video>\n", ()])
def test_an_empty_question_is_refused(answering, folder, question):
    request = dataclasses.replace(about(folder, "0.mp4")[0], question=question)
    with pytest.raises(InputError, match="the question is empty"):
        list(answering.answer([request], SHORT))


def test_media_that_cannot_be_used(answering, folder, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    requests = [*about(folder, "0.mp4")[:1], *about(tmp_path, "broken.mp4")[:1], *about(folder, "1.mp4")[:1]]
    with pytest.raises(BadSampleError, match="corrupt"):
        list(answering.answer(requests, SHORT))
    told = []
    answers = list(
        answering.answer(requests, SHORT, on_bad=lambda request, error: told.append((request.id, error.cause)))
    )
    assert [answer.id for answer in answers] == [requests[0].id, requests[2].id]
    assert told == [("broken.mp4 0", "corrupt")]


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(data=1, fsdp=2, tensor=4),
        MeshConfig(data=1, fsdp=4, context=2),
    ],
)
def test_eight_devices_say_what_one_says(folder, mesh):
    requests = [*about(folder, "0.mp4"), *about(folder, "1.mp4")[:1]]
    expected = said(fresh(folder, mesh=MeshConfig()).answer(requests, SHORT))
    answering = fresh(folder, mesh=mesh)
    cache = {}
    decode = answering.engine.decode

    def watched(progress, *args):
        cache.update(key=progress.cache.key.sharding, rows=progress.token.shape[0])
        return decode(progress, *args)

    answering.engine.decode = watched
    assert said(answering.answer(requests[:4], SHORT)) | said(answering.answer(requests[4:], SHORT)) == expected
    assert any(not a.sharding.is_fully_replicated for a in answering.engine.params.values())
    if mesh.tensor > 1:
        assert cache["key"].spec[2] == ("tensor" if mesh.tensor == 2 else None)  # there are two heads
    assert set(answering.engine.traced.values()) == {1}


def test_the_default_mesh_has_all_devices(answering):
    assert answering.engine.mesh.size == jax.device_count() == 8
    assert dict(answering.engine.mesh.shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}


def test_buckets():
    for tokens in range(1, 5000):
        bucket = length_bucket(tokens, 8192)
        assert tokens <= bucket < tokens + max(32, tokens / 8 + 1)
    assert len({length_bucket(tokens, 8192) for tokens in range(1, 4097)}) <= 40
    assert length_bucket(500, 510) == 510
    assert [power_bucket(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert [power_bucket(n, 50) for n in (1, 50, 51)] == [50, 50, 100]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"temperature": -0.5}, "temperature: -0.5"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p: 0.0 is not in \(0, 1\]"),
        ({"top_p": 0.5}, "does nothing at temperature 0"),
        ({"stop": ("",)}, "stop: an empty string"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_decoding_that_cannot_be(values, message):
    with pytest.raises(InputError, match=message):
        Decoding(**values)


def test_decoded_text_is_text(folder):
    answering = load(str(folder / "llava"), frames=4)
    (answer,) = answering.answer(about(folder, "0.mp4")[:1], SHORT)
    assert isinstance(answer.text, str) and answer.text == answer.text.strip()
    assert np.isfinite([answer.seconds_vision, answer.seconds_prefill, answer.seconds_decode]).all()
