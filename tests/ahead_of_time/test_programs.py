"""The TPU compiler on small models, for every family of chips: what fits, what is donated, what moves."""

import dataclasses
import functools
from types import SimpleNamespace

import hypothesis
import jax
import pytest
from hypothesis import strategies as st
from support.recipes import small

from vlvm_jax.ahead_of_time import programs
from vlvm_jax.ahead_of_time import report as compile_report
from vlvm_jax.config import Config, MeshConfig, build, to_json
from vlvm_jax.parallel import topology as topology_lib
from vlvm_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow

LAYERS = 3
VISION = {
    "kind": "clip", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 84, "patch_size": 14,
}  # fmt: skip
DECODER = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 2048,
}  # fmt: skip


def config(mesh: dict, **stage) -> Config:
    """The tiny recipe's last stage with a model in the compiler's granularity."""
    values = to_json(small(evals=[]))
    values["model"] |= {
        "vision": VISION, "decoder": DECODER, "dtype": "bfloat16", "vision_remat": "full", "decoder_remat": "full",
    }  # fmt: skip
    last = values["stages"][-1] | {"batch_size": 8, "frames": 2, "length": 256, "loss_chunks": 2}
    values["stages"] = [last | {"frozen_dtype": "bfloat16"} | stage]
    return build(Config, values | {"mesh": {"data": 1, **mesh}})


def compiled(topology: str, made: Config, name: str = "instruct", rows: int | None = None):
    """The report, the topology and the mesh."""
    parsed = topology_lib.parse(topology)
    mesh = make_mesh(made.mesh, parsed.devices())
    return programs.compile_program(programs.program(made, name, rows, mesh), mesh, parsed), parsed, mesh


FAMILIES = {
    "v5e-4": {"fsdp": -1},
    "v5p-8": {"fsdp": 2, "tensor": 2},
    "v6e-4": {"fsdp": 2, "context": 2},
    "v4-8x2": {"fsdp": -1},
}


@pytest.mark.parametrize("topology", FAMILIES)
def test_a_step_fits_donates_its_state_and_gathers_by_layer(topology):
    report, parsed, mesh = compiled(topology, config(FAMILIES[topology]))
    assert report.fits and report.message is None
    # fp32 parameters and AdamW's two moments, bf16 frozen ones; nothing large lies whole on a chip.
    parts = parsed.chips // mesh.shape["data"]
    state, frozen = 12 * report.trainable / parts, 2 * report.frozen / parts
    assert state < report.donated < 1.1 * state
    assert report.arguments < report.peak < report.arguments + report.temporaries + 2**23
    assert report.results - report.donated < 16384  # the metrics; the state is overwritten in place
    assert report.arguments < 1.1 * (state + frozen) + 2**20
    counts = report.collectives.count
    assert counts.get("all-gather", 0) + counts.get("collective-permute", 0) >= LAYERS
    if parsed.slices > 1:
        assert mesh.shape["data"] == parsed.slices
        assert counts["all-reduce"] > 0  # gradients cross the slices
    assert 0 < report.mfu_bound <= 1


def test_prefill_and_decode():
    made = config({"tensor": 2, "fsdp": 2})
    prefill, parsed, _ = compiled("v5e-4", made, "prefill")
    decode, _, _ = compiled("v5e-4", made, "decode")
    assert prefill.fits and decode.fits
    cache = 2 * LAYERS * (256 + programs.NEW_TOKENS) * 2 * 128 * 2 * prefill.batch_size / parsed.chips
    assert decode.donated > 0.9 * cache
    assert decode.flops.decoder < prefill.flops.decoder / 100
    assert prefill.flops.backward == 0


def test_what_cannot_fit_is_said_with_the_arithmetic():
    report, parsed, _ = compiled("v5e-1", config({}, length=2048, frames=8), rows=16384)
    assert not report.fits
    line = compile_report.misfit(report, parsed)
    assert "16384 rows: does not fit v5e-1: needs" in line and "15.75 GiB" in line and "\n" not in line


@hypothesis.example(fixed=0, each=1, power=1.25, first=1, limit=73)
@hypothesis.given(
    st.integers(0, 10**6), st.integers(1, 10**5), st.floats(0.7, 1.4), st.integers(1, 500), st.integers(1, 10**7)
)
def test_the_search_finds_the_largest_size_in_few_trials(fixed, each, power, first, limit):
    trials = []

    def needs(size):
        trials.append(size)
        need = int(fixed + each * size**power)
        return need if need < 2 * limit else None

    found = programs.largest_size(needs, limit, first)
    assert found == 0 or needs(found) <= limit
    assert (needs(found + max(1, found // 8)) or 10**18) > limit
    assert len(trials) < 30


@pytest.mark.parametrize("by_line, tried", [(False, [16, 55, 130, 146]), (True, [16, 55, 130])])
def test_the_search_follows_a_line(by_line, tried):
    trials = []

    def needs(size):
        trials.append(size)
        return 3000 + 100 * size

    assert programs.largest_size(needs, 16000, 16, by_line=by_line) == 130
    assert trials == tried


def test_the_search_goes_back_where_the_line_promised_too_much():
    trials = []

    def needs(size):
        trials.append(size)
        return max(3000 + 100 * size, 200 * size)

    assert 72 <= programs.largest_size(needs, 16000, 16) <= 80
    assert len(trials) <= 5


def test_the_search_begins_with_the_rows_it_is_told(monkeypatch):
    """Close to what fits a program compiles for minutes: here its needs are a line."""
    made, parsed = config({"fsdp": 4}), topology_lib.parse("v5e-4")
    each, tried = int(parsed.chip.hbm) // 1000, []

    def compile_program(program, mesh, topology):
        tried.append(program.batch_size)
        needed = each * program.batch_size
        return SimpleNamespace(needed=needed, fits=needed <= topology.chip.hbm, batch_size=program.batch_size)

    monkeypatch.setattr(programs, "compile_program", compile_program)
    find = functools.partial(programs.search, made, "instruct", make_mesh(made.mesh, parsed.devices()), parsed)
    assert 880 < find(lambda _: None, rows=96).batch_size <= 1000
    assert tried[0] == 96
    tried.clear()
    assert 880 < find(lambda _: None, rows=400, known=400 * each).batch_size <= 1000
    assert 400 not in tried
    tried.clear()
    assert 880 < find(lambda _: None).batch_size <= 1000
    assert tried[0] == 8


def test_meshes_and_slices():
    devices = topology_lib.parse("v5e-16x2").devices()
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 8, "context": 1, "tensor": 1}
    slices = [[device.slice_index for device in row.ravel()] for row in mesh.devices]
    assert [set(row) for row in slices] == [{0}, {0}, {1}, {1}]


def test_layers_inputs_can_wait_in_the_host_s_memory():
    """With `offload` the chip never holds the inputs of all layers at once, which `full` keeps there."""
    layers, rows, length = 32, 32, 512
    made = config({"fsdp": -1}, length=length, frames=1, batch_size=rows)
    decoder = made.model.decoder.model_copy(update={"num_hidden_layers": layers})
    model = made.model.model_copy(update={"decoder": decoder, "decoder_remat": "offload"})
    report, parsed, _ = compiled("v5e-4", made.model_copy(update={"model": model}))
    inputs = layers * rows * length * decoder.hidden_size * 2 / parsed.chips
    assert report.temporaries < 0.75 * inputs


@pytest.mark.parametrize("name", ["instruct", "prefill", "decode"])
def test_programs_for_tpus_carry_no_options_for_cpus(name, monkeypatch):
    """A report in bf16 is that of a library that knows no such options."""
    made, given = config({"fsdp": -1}), []
    jit = jax.jit

    def spy(*args, compiler_options=None, **kwargs):
        given.append(compiler_options)
        return jit(*args, compiler_options=compiler_options, **kwargs)

    monkeypatch.setattr(jax, "jit", spy)
    found, _, _ = compiled("v5e-4", made, name)
    assert given and set(given) == {None}
    monkeypatch.setattr(jax, "jit", lambda *args, compiler_options=None, **kwargs: jit(*args, **kwargs))
    without, _, _ = compiled("v5e-4", made, name)
    assert dataclasses.replace(found, seconds=0.0) == dataclasses.replace(without, seconds=0.0)
