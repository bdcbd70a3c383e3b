"""How the manifest of a step comes about."""

import jax
from etils import epath

from vlvm_jax.weights import checksums


def test_what_other_processes_are_writing_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    (tmp_path / "params" / "ocdbt.process_1" / "d").mkdir(parents=True)
    (tmp_path / "params" / "ocdbt.process_1" / "d" / "a").write_bytes(b"123")
    (tmp_path / "params" / "their notes, half written").symlink_to(tmp_path / "gone")
    checksums.StepManifest(epath.Path(tmp_path / "5"), ("params",))._add(str(tmp_path / "params"))
    assert "ocdbt.process_1/d/a" in (tmp_path / "params" / checksums._PART.format(1)).read_text()
