"""YAML that repeats itself without end is refused soon; all other YAML reads as PyYAML's safe loader reads it."""

import json
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data import yaml_text
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.errors import InputError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}\n" for i in range(1, 30)
)
KEYS = "".join(f"? &b{i} [*b{i - 1}, *b{i - 1}]\n: 0\n" if i else "? &b0 [1]\n: 0\n" for i in range(64))
BOMBS = {
    "aliases": (LAUGHS, "values, aliases resolved"),
    "data sets of aliases": (LAUGHS + "datasets: [*a63]\n", "values, aliases resolved"),
    "merged aliases": (MERGES + "datasets: [*a29]\n", "values, aliases resolved"),
    "aliases in keys": (KEYS, "values, aliases resolved"),
    "itself": ("datasets: &a [*a]\n", "an alias of what it is in"),
    "brackets": ("[" * 100_000, "nested more than 100 levels deep"),
    "indents": ("- " * 5000 + "a", "nested more than 100 levels deep"),
    "size": ("a: b\n" * 300_000, "more than 1 MiB"),
    "many values": ("datasets:\n" + "- a\n" * 150_000, "more than 100,000 values"),
    "base 60": ("a: 1" + ":1" * 400_000, "a number of more than 100 digits"),
    "digits": ("a: " + "9" * 500_000, "a number of more than 100 digits"),
    "an object": ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_mixture_without_bound_is_refused(tmp_path, name):
    text, message = BOMBS[name]
    file = tmp_path / "mixture.yaml"
    file.write_text(text)
    started = time.thread_time()
    with pytest.raises(InputError, match=message) as error:
        open_source(MixtureEntry(path=str(file)))
    assert time.thread_time() - started < 20
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value) and len(str(error.value)) < 500


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, VALUES)
@settings(max_examples=40, deadline=None)
def test_it_reads_what_the_safe_loader_reads(one, other):
    text = yaml.safe_dump({"one": one, "other": [other, {"again": one}, one]})  # with aliases
    assert yaml_text.loads(text) == yaml.safe_load(text)


def test_aliases_and_merges_of_a_usual_size():
    text = "base: &base {a: 1, b: [2]}\nx: {<<: *base, a: 3}\ny: *base\nz: 190:20:30\n"
    assert yaml_text.loads(text) == yaml.safe_load(text)


def listing(file, *names):
    file.write_text("datasets:\n" + "".join(f"- {{json_path: {name}, sampling_strategy: all}}\n" for name in names))
    return MixtureEntry(path=str(file))


def test_mixtures_of_mixtures_end(tmp_path):
    entry = listing(tmp_path / "a.yaml", "b.yaml")
    listing(tmp_path / "b.yaml", "a.yaml", "a.yaml")
    with pytest.raises(InputError, match=r"a.yaml: a mixture of itself, through .*b.yaml"):
        open_source(entry)
    for number in range(6):
        listing(tmp_path / f"{number}.yaml", f"{number + 1}.yaml")
    with pytest.raises(InputError, match="mixtures in mixtures more than 4 levels deep"):
        open_source(MixtureEntry(path=str(tmp_path / "0.yaml")))
    record = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "one.json").write_text(json.dumps([record]))
    entry = listing(tmp_path / "top.yaml", *["middle.yaml"] * 200)
    listing(tmp_path / "middle.yaml", *["one.json"] * 3)
    assert len(open_source(entry)) == 600
    listing(tmp_path / "middle.yaml", *["one.json"] * 60)
    with pytest.raises(InputError, match=r"top.yaml: lists more than 10,000 data sets"):
        open_source(entry)
