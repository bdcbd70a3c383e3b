"""Shards from a user's folder: what is in them, the same bytes however they are made, and reruns after a crash."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support import gcs, user_folder
from support.recipes import ROOT, environment

from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.media import containers
from vlvm_jax.data.sources import shards
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.data.tools import prepare
from vlvm_jax.data.tools.prepare import Job
from vlvm_jax.data.tools.reencode import Target
from vlvm_jax.errors import InputError, Interrupted


def run(job, workers=0, max_bad_share=0.0):
    plan = prepare.make_plan(job)
    prepare.run_local(plan, workers, max_bad_share, lambda done, note: None)
    return prepare.finish(plan, max_bad_share)


def contents(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def media_bytes(path):
    names = containers.frame_names(path)
    return [containers.open_medium(name).read() for name in names or [path]]


def test_records_come_back_as_they_were(tmp_path):
    source = str(user_folder.good(tmp_path / "mine"))
    report = run(Job((source,), str(tmp_path / "out"), "mine", shards=3))
    before, after = (open_source(MixtureEntry(path=path)) for path in (source, str(tmp_path / "out")))
    assert len(before) == len(after) == report.manifest.records == 8
    ids = []
    for index in range(8):
        mine, theirs = before[index], after[index]
        assert (mine.turns, mine.span, mine.kind) == (theirs.turns, theirs.span, theirs.kind)
        ids.append(theirs.id)
        assert [kind for kind, _ in mine.media] == [kind for kind, _ in theirs.media]
        for (_, original), (_, stored) in zip(mine.media, theirs.media, strict=True):
            assert "array_record#" in stored and media_bytes(stored) == media_bytes(original)
    assert ids == ["first", *map(str, range(1, 8))]
    assert list(after.kinds) == list(before.kinds) and list(after.types) == list(before.types)
    assert report.media == {"image": 4, "video": 6} and not report.dropped
    assert (tmp_path / "out" / prepare.DROPPED).read_text() == ""


def test_the_manifests_say_what_is_there(tmp_path):
    source = str(user_folder.good(tmp_path / "mine"))
    report = run(Job((source,), str(tmp_path / "out"), "mine", shards=3, target=Target(24, 4)))
    manifest = shards.read_manifest(str(tmp_path / "out"))
    assert manifest.shards == report.manifest.shards == tuple(shards.shard_name("mine", i, 3) for i in range(3))
    infos = [shards.read_info(str(tmp_path / "out" / shards.info_name(name))) for name in manifest.shards]
    for name, info in zip(manifest.shards, infos, strict=True):
        data = (tmp_path / "out" / name).read_bytes()
        assert (info.bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert info.records == len(info.kinds) == len(info.types) == len(info.ids)
    assert [info.records for info in infos] == [2, 3, 3]
    assert manifest.sha256 == shards.combined([info.sha256 for info in infos])
    assert (manifest.settings["size"], manifest.settings["fps"]) == (24, 4)


def test_the_bytes_do_not_depend_on_the_workers(tmp_path):
    source = str(user_folder.good(tmp_path / "mine"))
    made = []
    for workers in (0, 1, 3):
        run(Job((source,), str(tmp_path / f"{workers}"), "mine", shards=4, target=Target(24, 4)), workers)
        made.append(contents(tmp_path / f"{workers}"))
    assert made[0] == made[1] == made[2] and len(made[0]) == 4 + 4 + 3


def test_what_cannot_be_used_is_dropped_counted_and_listed(tmp_path):
    source = str(user_folder.bad(tmp_path / "mine"))
    job = Job((source,), str(tmp_path / "out"), "mine", shards=2, target=Target(24))
    with pytest.raises(InputError, match=r"of 12 records cannot be used .*more than --max_bad_share=0.4 allows"):
        run(job, max_bad_share=0.4)
    assert not (tmp_path / "out" / shards.MANIFEST).exists()
    report = run(job, max_bad_share=0.5)
    assert report.dropped == user_folder.BAD and report.manifest.records == 6
    listed = [json.loads(line) for line in (tmp_path / "out" / prepare.DROPPED).read_text().splitlines()]
    assert [entry["record"] for entry in listed] == list(range(6))
    causes = ["missing", "missing", "corrupt", "no_video", "bad_record", "bad_record"]
    assert [entry["cause"] for entry in listed] == causes
    assert "gone.mp4" in listed[0]["detail"]
    assert len(open_source(MixtureEntry(path=str(tmp_path / "out")))) == 6


@pytest.mark.parametrize("target", [Target(), Target(24)], ids=["as they are", "smaller"])
def test_the_same_media_are_dropped_with_and_without_reencoding(tmp_path, target):
    source = str(user_folder.bad(tmp_path / "mine"))
    assert run(Job((source,), str(tmp_path / "out"), "x", target=target), max_bad_share=1).dropped == user_folder.BAD


def many(tmp_path, count=24):
    """Clips that take a moment each."""
    folder = tmp_path / "mine"
    for number in range(count):
        user_folder.clip(folder / f"{number}.mp4", frames=60, fps=30, size=(320, 240))
    records = [{"video": f"{n}.mp4", "conversations": user_folder.ask("What moves?")} for n in range(count)]
    (folder / "notes.json").write_text(json.dumps(records))
    return str(folder / "notes.json")


def marks(folder):
    """Of the shards that are whole, what any touch would change."""
    whole = [file.with_suffix(shards.SUFFIX) for file in folder.glob("*-of-*.json")]
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in whole}


def test_a_rerun_after_kill_9_makes_what_is_missing_and_touches_nothing_else(tmp_path):
    source, out = many(tmp_path), tmp_path / "out"
    command = [
        sys.executable, "-m", "vlvm_jax.data", "prepare", source, f"--output={out}", "--name=x", "--shards=12",
        "--size=120", "--fps=10", "--workers=2",
    ]  # fmt: skip
    settings = {"cwd": ROOT, "env": environment(tmp_path), "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **settings) as process:
        while len(marks(out)) < 2:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = marks(out)  # workers that live on for a moment may add to it
    assert 2 <= len(before) < 12 and not (out / shards.MANIFEST).exists()
    subprocess.run(command, check=True, **settings)
    after = marks(out)
    assert len(after) == 12 and {name: after[name] for name in before} == before
    run(Job((source,), str(tmp_path / "other"), "x", shards=12, target=Target(120, 10)))
    assert contents(out) == contents(tmp_path / "other")


def test_sigterm_ends_it_with_what_is_whole(tmp_path):
    source, out = many(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "vlvm_jax.data", "prepare", source, f"--output={out}", "--shards=12", "--size=120"]
    settings = {"cwd": ROOT, "env": environment(tmp_path), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--workers=2"], **settings, text=True) as process:
        while not marks(out):
            assert process.poll() is None, "it ended before it was stopped"
            time.sleep(0.01)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and f"interrupted: finished shards stay in {out}" in said
    assert 0 < len(marks(out)) < 12 and not list(out.glob(f".*{storage.PARTIAL}"))


def test_a_stopped_run_says_so_and_goes_on_later(tmp_path):
    source, out = many(tmp_path, 6), tmp_path / "out"
    plan = prepare.make_plan(Job((source,), str(out), "x", shards=6))

    def stop(done, note):
        if done >= 3:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        prepare.run_local(plan, 0, 0.0, stop)
    before = marks(out)
    assert len(before) == 2 and not list(out.glob(f".*{storage.PARTIAL}"))
    notes = []
    prepare.run_local(plan, 0, 0.0, lambda done, note: notes.append((done, note)))
    assert notes[0] == (2, "2 of 6 shards were there") and notes[-1][0] == 6
    assert {name: marks(out)[name] for name in before} == before


def test_damage_is_found_and_mended(tmp_path):
    source, out = str(user_folder.good(tmp_path / "mine")), tmp_path / "out"
    job = Job((source,), str(out), "x", shards=4)
    run(job)
    whole = contents(out)
    assert list(prepare.damaged(str(out))) == []
    names = [shards.shard_name("x", index, 4) for index in range(4)]
    (out / names[0]).write_bytes((out / names[0]).read_bytes()[:-9])
    (out / names[1]).unlink()
    (out / shards.info_name(names[2])).write_text("{")
    data = bytearray((out / names[3]).read_bytes())
    data[len(data) // 2] ^= 1
    (out / names[3]).write_bytes(data)
    faults = dict(prepare.damaged(str(out)))
    assert set(faults) == {names[0], names[1], shards.info_name(names[2]), names[3]}
    assert "missing" in faults[names[1]] and "damaged" in faults[shards.info_name(names[2])]
    (out / names[3]).unlink()  # as it says to: its size alone tells nothing
    run(job)
    assert contents(out) == whole and list(prepare.damaged(str(out))) == []
    shutil.copy(out / names[0], out / names[1])
    shutil.copy(out / shards.info_name(names[0]), out / shards.info_name(names[1]))
    assert dict(prepare.damaged(str(out))) == {shards.MANIFEST: "belongs to other shards than those that lie here"}


def test_other_settings_in_the_folder_are_refused(tmp_path):
    file = user_folder.good(tmp_path / "mine")
    job = Job((str(file),), str(tmp_path / "out"), "x", shards=2, target=Target(24))
    run(job)
    before = contents(tmp_path / "out")
    for other, said in (
        (Job(job.sources, job.output, "x", shards=2, target=Target(32)), r"\(size: 24 there, 32 here\)"),
        (Job(job.sources, job.output, "x", shards=3, target=Target(24)), r"\(shards: 2 there, 3 here\)"),
        (Job(job.sources, job.output, "y", shards=2, target=Target(24)), r"name: \"x\" there, \"y\" here"),
    ):
        with pytest.raises(InputError, match=said):
            prepare.make_plan(other)
    records = json.loads(file.read_text())
    records[0]["conversations"][1]["value"] = "Nothing."
    file.write_text(json.dumps(records))
    with pytest.raises(InputError, match="digest"):
        prepare.make_plan(job)
    assert contents(tmp_path / "out") == before


def test_sources_follow_one_another_and_need_records(tmp_path):
    first, second = str(user_folder.good(tmp_path / "a")), str(user_folder.bad(tmp_path / "b"))
    report = run(Job((first, second), str(tmp_path / "out"), "x", shards=5), max_bad_share=0.5)
    assert report.manifest.records == 8 + 6 and report.dropped == user_folder.BAD
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(InputError, match=r"none\.json"):
        prepare.make_plan(Job((str(tmp_path / "none.json"),), str(tmp_path / "no"), "x"))
    with pytest.raises(InputError, match=r"source\.format"):
        prepare.make_plan(Job((first,), str(tmp_path / "no"), "x", format="tape"))


def test_shards_are_as_large_as_asked(tmp_path):
    source = many(tmp_path, 12)
    whole = run(Job((source,), str(tmp_path / "one"), "x")).manifest
    assert len(whole.shards) == 1
    size = sum(file.stat().st_size for file in (tmp_path / "mine").glob("*.mp4"))
    report = run(Job((source,), str(tmp_path / "some"), "x", shard_mb=size / 2**20 / 3.5))
    assert len(report.manifest.shards) == 4


def test_one_at_a_time(tmp_path):
    source = str(user_folder.good(tmp_path / "mine"))
    plan = prepare.make_plan(Job((source,), str(tmp_path / "out"), "x", shards=2))
    held = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process is preparing this folder"):
        prepare.run_local(plan, 0, 0.0, lambda done, note: None)
    os.close(held)
    prepare.run_local(plan, 0, 0.0, lambda done, note: None)


def test_a_bucket_gives_the_same(tmp_path, monkeypatch):
    """From and to `gs://`, by processes, with storage that fails now and then."""
    source = str(user_folder.good(tmp_path / "mine"))
    run(Job((source,), str(tmp_path / "out"), "x", shards=3, target=Target(24, 4)))
    (tmp_path / "bucket").mkdir()
    with gcs.serve(tmp_path / "bucket") as bucket:
        for key, value in bucket.environment.items():
            monkeypatch.setenv(key, value)
        for file in (tmp_path / "mine").rglob("*.*"):
            storage.write_bytes(f"{bucket.root}/mine/{file.relative_to(tmp_path / 'mine')}", file.read_bytes())
        bucket.faults = gcs.Faults(0.05, ("500", "503", "429", "cut"))
        out = f"{bucket.root}/made/out"
        job = Job((f"{bucket.root}/mine/notes.json",), out, "x", shards=3, target=Target(24, 4))
        report = run(job, workers=2)
        assert sum(count for kind, count in bucket.faults.done.items() if kind != "ok")
        bucket.faults = gcs.Faults()
        assert report.manifest.sha256 == shards.read_manifest(str(tmp_path / "out")).sha256
        assert list(prepare.damaged(out)) == []
        assert (
            storage.read_bytes(f"{out}/{report.manifest.shards[1]}")
            == (tmp_path / "out" / report.manifest.shards[1]).read_bytes()
        )
        asked = len(bucket.requests)
        run(job, workers=0)
        assert not [path for method, path in bucket.requests[asked:] if "upload" in path and "array_record" in path]
