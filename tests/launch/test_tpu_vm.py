"""tpu_vm.sh against a scripted gcloud: the exact commands, their order, and what becomes of every ending."""

import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
COMMAND = ["python", "-m", "vlvm_jax.train", "--config=configs/ftfv.py:llava-1.5-7b", "--workdir=gs://b/it's a $run"]
QUOTED = "python -m vlvm_jax.train --config=configs/ftfv.py:llava-1.5-7b '--workdir=gs://b/it'\\''s a $run'"
FLAGS = ["--name=run", "--zone=us-west4-a", "--type=v5e-64"]
ABSENT = {"err": "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found\n", "code": 1}
UNREACHABLE = {"err": "ssh: connect to host 34.1.2.3 port 22: Connection timed out\n", "code": 255}


def run_id(*arguments: str) -> str:
    """What names a command on the workers."""
    text = b"".join(argument.encode() + b"\0" for argument in arguments)
    return subprocess.run(["cksum"], input=text, capture_output=True, check=True).stdout.split()[0].decode()


ID = run_id("--", *COMMAND)


def vm(*states: str | dict) -> tuple[str, list[dict]]:
    """What `tpu-vm describe` answers, look after look."""
    return "tpu-vm describe", [{"out": f"{s}\tv5litepod-64\n"} if isinstance(s, str) else s for s in states]


def queue(*states: str | dict) -> tuple[str, list[dict]]:
    """The same of `queued-resources describe`."""
    return "queued-resources describe", [{"out": f"{s}\n"} if isinstance(s, str) else s for s in states]


def status(*looks: list[str] | dict) -> tuple[str, list[dict]]:
    """What the workers answer, look after look: each one's state, or that ssh fails."""
    return "worker.sh status", [
        look if isinstance(look, dict) else {"out": "".join(f"vlvm_jax: {state} {ID}\n" for state in look)}
        for look in looks
    ]


def step(call: list[str]) -> str:
    """A call without the flags that all of its kind share."""
    if call[0] == "git":
        return f"git {call[3]}"
    assert call[:3] == ["gcloud", "compute", "tpus"]
    kind, verb = call[3:5]
    if verb == "ssh":
        worker = next(word for word in call if word.startswith("--worker=")).removeprefix("--worker=")
        return f"{worker}: {call[-1].removeprefix('--command=bash vlvm_worker.sh ')}"
    return verb if kind == "tpu-vm" else f"queue {verb}"


def steps(cloud) -> list[str]:
    return [step(call) for call in cloud.calls if call[0] != "git"]


START = ["scp", "all: install tpu", f"all: start -- {QUOTED}"]
LOOK = ["0: follow 0 0", "all: status"]
END = ["0: follow 0 0"]


def test_an_undisturbed_run_makes_exactly_these_calls(cloud):
    cloud.script(vm(ABSENT, "READY"), status(["exit 0", "exit 0"]))
    flags = [
        "--project", "my-project", "--spot", "--network=net", "--subnetwork", "sub", "--service-account=a@b",
        "--env", "KEY=a 'b' = c", "--env=OTHER=", "--delete",
    ]  # fmt: skip
    done = cloud.run("tpu_vm.sh", *FLAGS, *flags, "--", *COMMAND)
    assert done.returncode == 0, done.stderr

    tpu_vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone=us-west4-a", "--quiet", "--project=my-project"]
    no_checking = "--strict-host-key-checking=no"
    describe = [*tpu_vm, "describe", "run", *where, "--format=value(state,acceleratorType)"]
    archive = f"{cloud.home}/.cache/vlvm_jax/launch/run/vlvm_jax.tar.gz"

    def ssh(worker: str, command: str) -> list[str]:
        return [
            *tpu_vm, "ssh", "run", *where, f"--worker={worker}", no_checking,
            "--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4",
            f"--command=bash vlvm_worker.sh {command}",
        ]  # fmt: skip

    assert cloud.calls == [
        describe,
        [
            *tpu_vm, "create", "run", *where, "--accelerator-type=v5litepod-64", "--version=v2-alpha-tpuv5-lite",
            "--spot", "--network=net", "--subnetwork=sub", "--service-account=a@b",
        ],
        describe,
        ["git", "-C", str(LAUNCH.parent), "status", "--porcelain", "--untracked-files=no"],
        ["git", "-C", str(LAUNCH.parent), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        [*tpu_vm, "scp", f"{LAUNCH}/vlvm_worker.sh", archive, "run:", *where, "--worker=all", no_checking],
        ssh("all", "install tpu"),
        ssh("all", f"start 'KEY=a '\\''b'\\'' = c' OTHER= -- {QUOTED}"),
        ssh("0", "follow 0 0"),
        ssh("all", "status"),
        ssh("0", "follow 0 0"),
        [*tpu_vm, "delete", "run", *where],
    ]  # fmt: skip
    assert shlex.split(QUOTED) == COMMAND


@pytest.mark.parametrize(
    "flags",
    [
        ["--spot"],
        ["--queued", "--spot", "--delete"],
        ["--queued", "--reserved", "--internal-ips", "--version=image", "--rev=v1.0"],
        ["--repo=https://example.com/a b.git", "--rev=v1.0", "--extras=tpu", "--env=A=b c"],
    ],
)
def test_a_dry_run_runs_nothing_and_prints_what_a_run_calls(cloud, flags):
    states = ["READY"] if "--queued" in flags else [ABSENT, "READY"]
    cloud.script(vm(*states), queue(ABSENT, "ACTIVE"), status(["exit 0"]))
    arguments = [*FLAGS, *flags, "--", *COMMAND]

    rehearsal = cloud.run("tpu_vm.sh", "--dry-run", *arguments)
    assert rehearsal.returncode == 0, rehearsal.stderr
    assert cloud.calls == []
    assert list(cloud.home.glob(".cache*")) == []

    real = cloud.run("tpu_vm.sh", *arguments)
    assert real.returncode == 0, real.stderr
    assert [shlex.split(line) for line in rehearsal.stdout.splitlines()] == [
        call for call in cloud.calls if "--porcelain" not in call
    ]


def test_flags_that_change_what_is_created_and_installed(cloud):
    cloud.script(vm("READY"), queue(ABSENT, "ACTIVE"), status(["exit 0"]))
    flags = ["--queued", "--reserved", "--internal-ips", "--version=image", "--repo=https://x/a b.git", "--rev=v1"]
    assert cloud.run("tpu_vm.sh", *FLAGS, *flags, "--", *COMMAND).returncode == 0
    assert [
        "gcloud", "compute", "tpus", "queued-resources", "create", "run", "--zone=us-west4-a", "--quiet",
        "--node-id=run", "--accelerator-type=v5litepod-64", "--runtime-version=image", "--reserved", "--internal-ips",
    ] in cloud.calls  # fmt: skip
    assert "all: install tpu 'https://x/a b.git' v1" in steps(cloud)
    assert all(call[0] == "gcloud" for call in cloud.calls)  # the checkout is not looked at
    assert all("--internal-ip" in call for call in cloud.calls if call[4] in ("ssh", "scp"))


@pytest.mark.parametrize(
    ("accelerator", "image"),
    [
        ("v6e-64", "v2-alpha-tpuv6e"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_the_image_fits_the_type(cloud, accelerator, image):
    done = cloud.run("tpu_vm.sh", "--name=a", "--zone=z", "--type", accelerator, "--dry-run", "--", "true")
    assert f"--accelerator-type={accelerator} --version={image}" in done.stdout


def test_a_preempted_queued_resource_is_requested_again(cloud):
    cloud.script(
        queue(ABSENT, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED", ABSENT, "ACTIVE"),
        vm("READY"),
        status(["running", "running"], UNREACHABLE, UNREACHABLE, ["running", "running"], ["exit 0", "exit 0"]),
    )
    done = cloud.run("tpu_vm.sh", *FLAGS, "--queued", "--spot", "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert steps(cloud) == [
        "queue describe", "queue create", "queue describe", "queue describe", "queue describe", "describe",
        *START, *LOOK, *LOOK, "queue describe", *LOOK, "queue describe",  # SUSPENDING, then SUSPENDED
        "queue describe", "queue create", "queue describe", "describe",
        *START, *LOOK, *LOOK, *END,
    ]  # fmt: skip
    assert "run is WAITING_FOR_RESOURCES" in done.stderr


def test_a_suspended_queued_resource_is_deleted_before_it_is_requested_again(cloud):
    cloud.script(queue("SUSPENDED", ABSENT, "ACTIVE"), vm("READY"), status(["exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--queued", "--", *COMMAND).returncode == 0
    assert steps(cloud)[:6] == [
        "queue describe", "queue delete", "queue describe", "queue create", "queue describe", "describe",
    ]  # fmt: skip
    assert cloud.calls[1][5:] == ["run", "--zone=us-west4-a", "--quiet", "--force"]


@pytest.mark.parametrize("state", ["PREEMPTED", ABSENT])
def test_a_queued_resource_whose_vm_is_gone_is_gone_before_the_queue_says_so(cloud, state):
    cloud.script(queue("ACTIVE", ABSENT, "ACTIVE"), vm(state, "READY"), status(["exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--queued", "--", *COMMAND).returncode == 0
    assert steps(cloud)[:4] == ["queue describe", "describe", "queue delete", "queue describe"]


def test_a_preempted_vm_is_created_again_and_the_command_started_again(cloud):
    cloud.script(
        vm(ABSENT, "READY", "PREEMPTED", "PREEMPTED", ABSENT, "CREATING", "READY"),
        status(["running"], UNREACHABLE, ["exit 0"]),
    )
    done = cloud.run("tpu_vm.sh", *FLAGS, "--spot", "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert steps(cloud) == [
        "describe", "create", "describe", *START, *LOOK, *LOOK, "describe",
        "describe", "delete", "describe", "create", "describe", "describe", *START, *LOOK, *END,
    ]  # fmt: skip


def test_exit_75_runs_the_same_command_again_on_the_same_slice(cloud):
    cloud.script(
        vm(ABSENT, "READY"),
        status(["exit 75", "exit 75"], ["exit 75", "exit 75"], ["exit 0", "exit 0"]),
    )
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert steps(cloud) == [
        "describe", "create", "describe", *START, *LOOK, *END,
        "describe", "all: status", *START, *LOOK, *END,
    ]  # fmt: skip


def test_workers_that_still_run_are_stopped_when_one_has_ended(cloud):
    cloud.script(vm(ABSENT, "READY"), status(["running", "exit 75"], ["exit 75", "exit 75"], ["exit 0", "exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND).returncode == 0
    assert steps(cloud)[3:] == [
        *START, *LOOK, *END, "all: stop 5", "describe", "all: status", *START, *LOOK, *END,
    ]  # fmt: skip


def test_one_worker_done_before_the_others_is_no_end(cloud):
    cloud.script(vm(ABSENT, "READY"), status(["exit 0", "running"], ["exit 0", "exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND).returncode == 0
    assert steps(cloud)[3:] == [*START, *LOOK, *LOOK, *END]


def test_exit_2_stops_with_the_message_and_is_not_tried_again(cloud):
    message = "error: --config.mesh.fsdp: 7 does not divide 64\n"
    cloud.script(
        vm(ABSENT, "READY"),
        status(["exit 2", "running"]),
        ("follow", [{"out": "step 1\n"}, {"out": message}]),
        ("why", [{"out": f"w-0: {message}"}]),
    )
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 2
    assert steps(cloud)[3:] == [*START, "0: follow 0 0", "all: status", "0: follow 7 0", "all: stop 5", "all: why"]
    assert done.stdout == f"step 1\n{message}w-0: {message}"
    assert done.stderr.splitlines()[-1] == (
        "launch: run is kept and goes on costing money; to delete it: "
        "gcloud compute tpus tpu-vm delete run --zone=us-west4-a --quiet"
    )


def test_delete_deletes_whatever_the_end_is(cloud):
    cloud.script(vm(ABSENT, "READY"), status(["exit 2"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--delete", "--", *COMMAND).returncode == 2
    assert steps(cloud)[-1] == "delete"


def test_three_faults_in_a_row_end_it(cloud):
    cloud.script(vm(ABSENT, "READY"), status(["exit 1", "exit 134"]), ("why", [{"out": "w-1: KeyError\n"}]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 1
    assert steps(cloud).count(START[-1]) == 3
    assert "w-1: KeyError" in done.stdout
    assert "3 faults in a row: giving up" in done.stderr


def test_faults_that_are_not_in_a_row_do_not_end_it(cloud):
    looks = [
        state for code in (1, 1, 75, 1, 1) for state in ([f"exit {code}"], [f"exit {code}"])
    ]  # watched, then found
    cloud.script(vm(ABSENT, "READY"), status(*looks, ["exit 0"]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert steps(cloud).count(START[-1]) == 6


def test_a_fault_that_turns_out_to_be_a_preemption_is_none(cloud):
    cloud.script(vm(ABSENT, "READY", "PREEMPTED", "PREEMPTED", ABSENT, "READY"), status(["exit 1"], ["exit 0"]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert steps(cloud).count("create") == 2
    assert "fault" not in done.stderr


def test_failed_installation_is_tried_again_and_given_up(cloud):
    cloud.script(vm(ABSENT, "READY"), ("worker.sh install", [{"code": 1}]), status(["absent"]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 1
    assert steps(cloud).count("all: install tpu") == 3
    assert START[-1] not in steps(cloud)


def test_a_rebooted_worker_starts_the_command_again(cloud):
    cloud.script(vm(ABSENT, "READY"), status(["lost", "running"], ["lost", "exit 75"], ["exit 0", "exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND).returncode == 0
    assert steps(cloud).count(START[-1]) == 2


def test_full_zone_is_asked_again_and_other_refusals_end_it(cloud):
    full = {"err": '{\n "code": 8,\n "message": "There is no more capacity in the zone \\"us-west4-a\\""\n}', "code": 1}
    quota = {"err": "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded.\n", "code": 1}
    cloud.script(vm(ABSENT), ("tpu-vm create", [full, full, quota]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 1
    assert steps(cloud) == ["describe", "create"] * 3
    assert quota["err"] in done.stderr


def test_a_request_that_keeps_failing_is_given_up_and_kept(cloud):
    cloud.script(queue("FAILED", {"out": "code: 7\n"}, ABSENT, "FAILED", {}, ABSENT, "FAILED", {"out": "code: 8\n"}))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--queued", "--", *COMMAND)
    assert done.returncode == 1
    assert [s for s in steps(cloud) if s != "queue describe"] == ["queue delete", "queue create"] * 2
    assert "code: 8" in done.stderr


def test_a_slice_that_runs_this_command_is_followed(cloud):
    cloud.script(vm("READY"), status(["running", "running"], ["running", "running"], ["exit 0", "exit 0"]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 0
    assert steps(cloud) == ["describe", "all: status", *LOOK, *LOOK, *END]


def test_an_idle_slice_is_reused(cloud):
    cloud.script(vm("READY"), status({"err": "bash: vlvm_worker.sh: No such file\n", "code": 127}, ["exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND).returncode == 0
    assert steps(cloud) == ["describe", "all: status", *START, *LOOK, *END]


def test_a_command_that_started_on_some_workers_only_starts_on_all(cloud):
    cloud.script(vm("READY"), status(["running", "absent"], ["exit 0", "exit 0"]))
    assert cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND).returncode == 0
    assert steps(cloud) == ["describe", "all: status", "all: stop 5", *START, *LOOK, *END]


def test_another_command_on_the_slice_is_left_alone(cloud):
    cloud.script(vm("READY"), ("worker.sh status", [{"out": "vlvm_jax: running 12345\n"}]))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 2
    assert "run is running another command; to stop it: gcloud" in done.stderr
    assert steps(cloud) == ["describe", "all: status"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"out": "READY\tv5p-8\n"}, "run is a v5p-8, not a v5litepod-64"),
        ({"out": "STOPPED\tv5litepod-64\n"}, "run is stopped"),
    ],
)
def test_a_slice_that_is_not_the_one_asked_for_is_left_alone(cloud, answer, words):
    cloud.script(vm(answer))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 2
    assert words in done.stderr
    assert steps(cloud) == ["describe"]


def test_gcloud_that_cannot_answer_at_first_ends_it_and_later_is_asked_again(cloud):
    refused = {"err": "ERROR: (gcloud) PERMISSION_DENIED: not allowed\n", "code": 1}
    cloud.script(vm(refused))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert (done.returncode, steps(cloud)) == (1, ["describe"])
    assert "PERMISSION_DENIED" in done.stderr


def test_a_silent_network_is_waited_for_but_not_for_ever(cloud):
    cloud.script(vm(ABSENT, "READY"), status(UNREACHABLE))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 1
    assert steps(cloud).count("all: status") == 20
    assert done.stderr.endswith("the workers of run do not answer: ssh: connect to host 34.1.2.3 port 22: "
                                "Connection timed out\n")  # fmt: skip


def test_the_log_is_read_on_from_where_it_was_left(cloud):
    cloud.script(
        vm(ABSENT, "READY", "PREEMPTED", "PREEMPTED", ABSENT, "READY"),
        status(["running"], ["running"], UNREACHABLE, ["exit 0"]),
        ("follow", [{"out": "one\n"}, {"out": "two\n"}, UNREACHABLE, {"out": "three\n"}, {}]),
    )
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "one\ntwo\nthree\n"
    assert (cloud.home / ".cache/vlvm_jax/launch/run/worker0.log").read_text() == done.stdout
    follows = [s for s in steps(cloud) if "follow" in s]
    # The new slice's log starts at its first byte.
    assert follows == ["0: follow 0 0", "0: follow 4 0", "0: follow 8 0", "0: follow 0 0", "0: follow 6 0"]


def test_told_to_stop_it_leaves_the_run_alone_and_says_how_to_end_it(cloud):
    cloud.script(vm("READY"), status(["running"]))
    process = subprocess.Popen(
        [LAUNCH / "tpu_vm.sh", *FLAGS, "--", *COMMAND],
        env=cloud.environment(VLVM_LAUNCH_POLL="0.05"),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(cloud.calls) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "worker.sh stop" in messages and "tpu-vm delete run" in messages
    assert not any("stop" in s or s == "delete" for s in steps(cloud))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nmae=x"], "unknown flag --nmae"),
        (["--name"], "--name needs a value"),
        (["--name", "--zone=z"], "--name needs a value"),
        (["--name=", "--zone=z"], "--name needs a value"),
        (["--zone=z", "--type=v6e-8", "--", "true"], "--name is required"),
        (["--name=a", "--type=v6e-8", "--", "true"], "--zone is required"),
        (["--name=a", "--zone=z", "--", "true"], "--type is required"),
        ([*FLAGS], "no command"),
        ([*FLAGS, "--"], "no command"),
        ([*FLAGS, "python"], "unexpected argument python"),
        ([*FLAGS, "--spot", "--reserved", "--", "true"], "--spot and --reserved exclude each other"),
        ([*FLAGS, "--keep", "--delete", "--", "true"], "--keep and --delete exclude each other"),
        ([*FLAGS, "--repo=https://x", "--", "true"], "--repo needs --rev"),
        ([*FLAGS, "--env=KEY", "--", "true"], "--env KEY: expected KEY=VALUE"),
        ([*FLAGS, "--env", "1K=v", "--", "true"], "--env 1K=v: expected KEY=VALUE"),
        (["--name=A_b", "--zone=z", "--type=v6e-8", "--", "true"], "--name A_b: at most 40"),
        (["--name=a", "--zone=z", "--type=v7-8", "--", "true"], "--type v7-8: no runtime image is known"),
    ],
)
def test_faulty_flags_end_in_one_line_and_run_nothing(cloud, arguments, words):
    done = cloud.run("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
    assert cloud.calls == []


def test_without_gcloud_one_line_says_so(cloud, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cksum", "cut"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = cloud.run("tpu_vm.sh", *FLAGS, "--", "true", PATH=str(tools))
    assert done.returncode == 2
    assert done.stderr.startswith("error: gcloud is not on the PATH") and done.stderr.count("\n") == 1


def test_help_names_every_flag(cloud):
    done = cloud.run("tpu_vm.sh", "--help")
    assert (done.returncode, done.stderr, cloud.calls) == (0, "", [])
    names = (
        "name zone project type version spot reserved queued network subnetwork service-account repo rev env keep "
        "delete dry-run extras internal-ips"
    )
    for name in names.split():
        assert f"--{name} " in done.stdout
