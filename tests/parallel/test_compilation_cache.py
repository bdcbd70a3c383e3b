"""Compiled programs are kept on disk, unless the user said where or that they are not to be."""

import json
import os
import subprocess
import sys

import pytest
from support.recipes import ROOT

from vlvm_jax.parallel import compilation_cache

SCRIPT = """
import json, jax, jax.numpy as jnp
from jax import monitoring
from vlvm_jax.parallel import compilation_cache
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event))
compilation_cache.keep()
if jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(json.dumps([jax.config.jax_compilation_cache_dir, any("cache_hits" in event for event in events)]))
"""


def run(home, **variables):
    """Where programs are kept, and whether one was found there."""
    clean = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment = {**clean, "XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Error" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    first, found = run(tmp_path)
    assert first.startswith(f"{tmp_path}/vlvm_jax/compiled/jax-") and not found
    assert run(tmp_path) == [first, True]


def test_the_user_has_the_last_word(tmp_path):
    own = str(tmp_path / "own")
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=own)[0] == own
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0") == [None, False]
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == [None, False]  # no folder can be made there
    assert not (tmp_path / "vlvm_jax").exists()


@pytest.mark.parametrize(("one", "other"), [("flags\t\t: sse avx2", "flags\t\t: sse avx512f"), ("model name\t: A", "")])
def test_another_cpu_has_another_folder(one, other, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(compilation_cache, "_CPU_INFO", file)
    folders = []
    for text in (one, f"processor\t: 7\n{one}\ncpu MHz\t\t: 2.1", other):  # as on another core of the same
        file.write_text(text)
        compilation_cache._cpu.cache_clear()
        folders.append(compilation_cache.folder())
    compilation_cache._cpu.cache_clear()
    assert folders[0] == folders[1] != folders[2]
