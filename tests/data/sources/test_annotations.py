"""Annotation files are one block of bytes; what is asked for is parsed."""

import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import Turn
from vlvm_jax.data.sources.annotations import read_annotations
from vlvm_jax.errors import InputError


def said(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def write(tmp_path):
    def write(content, name="notes.jsonl"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return write


def test_a_large_file_pickles_as_its_bytes(write):
    raw = [{"id": i, "video": f"{i}.mp4", "conversations": said(f"q{i}", "a"), "type": "abc"[i % 3]}
           for i in range(20_000)]  # fmt: skip
    text = "\n".join(map(json.dumps, raw))
    source = read_annotations(write(text), "/media")
    packed = pickle.dumps(source)
    assert len(packed) < 1.3 * len(text)
    again = pickle.loads(packed)
    assert len(again) == 20_000 and again[12_345] == source[12_345] and again.types == source.types
    assert again[12_345].media == (("video", "/media/12345.mp4"),)
    assert again[-1].turns == (Turn("<image>\nq19999", "a", "b"),)
    with pytest.raises(IndexError):
        again[20_000]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_kinds_and_types_without_reading_records(write, ending):
    raw = [
        {"video": "v.mp4", "conversations": said("q", "a"), "types": ["b"]},
        {"image": "i.png", "video": "v.mp4", "conversations": said("q", "a"), "type": "a"},
        {"image": "i.png", "conversations": said("q", "a")},
        {"conversations": said("q", "a") * 3, "types": ["b", "a", "b"]},
        {"image": "i.png"},
        [],
    ]
    text = json.dumps(raw) if ending == "json" else "\n".join(map(json.dumps, raw))
    source = read_annotations(write(text, f"n.{ending}"), "/media")
    assert list(source.kinds) == ["video", "video", "image", "text", "image", "bad"]
    assert source.types == [("b",), ("a",), (), ("b", "a"), (), ()]


def test_lines_that_are_not_json_are_bad_records(write):
    good = json.dumps({"conversations": said("q", "a")})
    path = write(f"{good}\n{{oops\n\n{'[' * 100_000}\n{good[:-5]}")
    source = read_annotations(path, "/media")
    assert list(source.kinds) == ["text", "bad", "bad", "bad"]
    for index in (1, 2, 3):
        with pytest.raises(BadSampleError, match=f"record {index}: not JSON") as caught:
            source[index]
        assert caught.value.cause == "bad_record"
    first_bad = read_annotations(write(f"{{oops\n{good}"), "/media")
    assert list(first_bad.kinds) == ["bad", "text"] and first_bad[1].turns == (Turn("q", "a"),)
    with pytest.raises(InputError, match="record 0: not JSON"):
        read_annotations(write("{oops\n{oops"), "/media")


@pytest.mark.parametrize("text", ["[1 2]", "[1,]", "[1, 2", "[1] x", "[", "", "{", "[" * 100_000, '["a]'])
def test_a_list_that_is_not_json_is_refused(write, text):
    path = write(f"[{json.dumps({'conversations': said('q', 'a')})}, {text[1:]}" if text[:1] == "[" else text, "n.json")
    with pytest.raises(InputError, match="not JSON") as caught:
        read_annotations(path, "/media")
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_a_file_without_records_is_refused(write):
    for path in (write(" [ ]\n", "n.json"), write("\n\n")):
        with pytest.raises(InputError, match="holds no record"):
            read_annotations(path, "/media")


def test_bytes_that_are_not_utf8_are_refused(write):
    path = write(b'{"conversations": [{"from": "human", "value": "na\xefve"}, {"from": "gpt", "value": "y"}]}')
    with pytest.raises(InputError, match=r"line 1, byte 50: 0xef is not UTF-8; convert the file, as with `iconv"):
        read_annotations(path, "/media")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda t: "<" not in t)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=8), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_any_text_comes_back_from_both_endings(tmp_path_factory, texts, ascii_only, indent):
    folder = tmp_path_factory.mktemp("texts")
    raw = [{"conversations": said(f"q{text}?", text)} for text in texts]
    (folder / "n.json").write_text(json.dumps(raw, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    lines = "\n".join(json.dumps(one, ensure_ascii=ascii_only) for one in raw)
    (folder / "n.jsonl").write_text(lines, encoding="utf-8", newline="")
    for name in ("n.json", "n.jsonl"):
        source = read_annotations(str(folder / name), "/media")
        assert [record.turns[0].answer for record in source] == texts


def test_damaged_files_never_do_worse_than_be_refused(write):
    """Cut, swapped or overwritten bytes: a line or a bad record, whatever they are."""
    raw = [{"id": i, "image": ["a.png"], "conversations": said("q", "a"), "start": 1} for i in range(3)]
    chance = random.Random(0)
    refused = bad = fine = 0
    for number in range(300):
        ending = ("json", "jsonl")[number % 2]
        data = bytearray((json.dumps(raw) if ending == "json" else "\n".join(map(json.dumps, raw))).encode())
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(b'"{}[],:\\0nx\x00\xff')
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))]
        try:
            source = read_annotations(write(bytes(data), f"n.{ending}"), "/media")
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for index in range(len(source)):
            try:
                assert source[index].turns
                fine += 1
            except BadSampleError as error:
                assert error.cause == "bad_record" and "\n" not in error.detail
                bad += 1
    assert refused > 50 and bad > 30 and fine > 50
