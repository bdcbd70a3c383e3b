"""submit.sh and xpk.sh against stubs of kubectl and xpk: the manifest's fields, and the exact commands."""

import shlex

import pytest
import yaml

FLAGS = ["--name=run", "--type=v5e-64", "--image=europe-docker.pkg.dev/p/r/vlvm_jax:1"]
WHERE = ["--cluster=c", "--zone=us-west4-a"]
COMMAND = ["python", "-m", "vlvm_jax.train", "--workdir=gs://b/it's a run", "$HOME $(KEY) $$", '"q" \\ \t\r\n: #']


def manifest(text: str) -> dict:
    return yaml.safe_load(text)


def job(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(jobset: dict) -> dict:
    return job(jobset)["template"]["spec"]


def seen_by_container(text: str) -> str:
    """Kubernetes' own rule for commands and values: `$$` is a dollar, `$(NAME)` a variable."""
    assert "$(" not in text.replace("$$", "")
    return text.replace("$$", "$")


def test_the_manifest_of_a_multi_host_slice(cloud):
    cloud.script(("kubectl", [{"reads": True}]))
    done = cloud.run("gke/submit.sh", *FLAGS, "--env", 'KEY=it\'s "a" $(b)', "--env=EMPTY=", "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert cloud.calls == [["kubectl", "create", "--filename=-"]]
    jobset = manifest((cloud.home / "input").read_text())

    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"] == {
        "name": "run",
        "namespace": "default",
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    }
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert (job(jobset)["parallelism"], job(jobset)["completions"]) == (16, 16)  # a pod a host
    assert job(jobset)["completionMode"] == "Indexed"
    assert pod(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    (container,) = pod(jobset)["containers"]
    assert container["image"] == "europe-docker.pkg.dev/p/r/vlvm_jax:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert [seen_by_container(word) for word in container["command"]] == COMMAND
    assert {entry["name"]: seen_by_container(entry["value"]) for entry in container["env"]} == {
        "KEY": 'it\'s "a" $(b)',
        "EMPTY": "",
    }


def test_exit_2_fails_the_jobset_and_everything_else_restarts_all_pods(cloud):
    done = cloud.run("gke/submit.sh", *FLAGS, "--max-restarts=7", "--dry-run", "--", "true")
    jobset = manifest(done.stdout)
    assert job(jobset)["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]}}
    ]
    assert pod(jobset)["containers"][0]["name"] == "train"
    # What a pod failure policy asks of the rest of the job, and a lost host of a slice.
    assert (pod(jobset)["restartPolicy"], job(jobset)["backoffLimit"]) == ("Never", 0)
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"name": "badInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }


@pytest.mark.parametrize(
    ("accelerator", "label", "topology", "hosts", "chips"),
    [
        ("v5p-128", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("v6e-64", "tpu-v6e-slice", "8x8", 16, 4),
        ("v4-16", "tpu-v4-podslice", "2x2x2", 2, 4),
        ("v6e-8", "tpu-v6e-slice", "2x4", 1, 8),
    ],
)
def test_accelerator_types(cloud, accelerator, label, topology, hosts, chips):
    flags = ["--name=run", "--image=i", "--type", accelerator, "--dry-run"]
    jobset = manifest(cloud.run("gke/submit.sh", *flags, "--", "true").stdout)
    assert list(pod(jobset)["nodeSelector"].values()) == [label, topology]
    assert job(jobset)["parallelism"] == job(jobset)["completions"] == hosts
    assert pod(jobset)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert bool(jobset["metadata"]["annotations"]) == (hosts > 1)


def test_flags_that_choose_nodes_and_place(cloud):
    flags = ["--slices=2", "--spot", "--context=gke_p_z_c", "--namespace", "team a", "--service-account=trainer"]
    done = cloud.run("gke/submit.sh", *FLAGS, *flags, "--dry-run", "--", "true")
    jobset = manifest(done.stdout)
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert jobset["metadata"]["namespace"] == "team a"
    assert pod(jobset)["serviceAccountName"] == "trainer"
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert done.stdout.splitlines()[-1] == "# kubectl --context=gke_p_z_c create --filename=-"

    done = cloud.run("gke/submit.sh", *FLAGS, "--reservation=mine", "--dry-run", "--", "true")
    assert pod(manifest(done.stdout))["nodeSelector"]["cloud.google.com/reservation-name"] == "mine"


@pytest.mark.parametrize("name", ["no", "y", "null"])
def test_names_that_yaml_would_take_for_something_else(cloud, name):
    flags = ["--name", name, "--image=1.0", "--type=v6e-8", "--namespace=on", "--service-account=off"]
    jobset = manifest(cloud.run("gke/submit.sh", *flags, "--dry-run", "--", "true", "1", "{{image}}").stdout)
    assert jobset["metadata"]["name"] == name and jobset["metadata"]["namespace"] == "on"
    assert pod(jobset)["serviceAccountName"] == "off"
    assert pod(jobset)["containers"][0]["command"] == ["true", "1", "{{image}}"]


def test_a_dry_run_prints_the_manifest_that_would_be_created_and_runs_nothing(cloud):
    cloud.script(("kubectl", [{"reads": True}]))
    rehearsal = cloud.run("gke/submit.sh", *FLAGS, "--dry-run", "--", *COMMAND)
    assert (rehearsal.returncode, rehearsal.stderr, cloud.calls) == (0, "", [])
    assert cloud.run("gke/submit.sh", *FLAGS, "--", *COMMAND).returncode == 0
    assert rehearsal.stdout.removesuffix("# kubectl create --filename=-\n") == (cloud.home / "input").read_text()


def test_kubectl_that_refuses_is_no_success(cloud):
    cloud.script(("kubectl", [{"err": 'jobsets "run" already exists\n', "code": 1}]))
    done = cloud.run("gke/submit.sh", *FLAGS, "--", "true")
    assert done.returncode == 1
    assert done.stderr == 'jobsets "run" already exists\n'


def test_xpk_gets_exactly_this(cloud):
    flags = ["--project", "p", "--slices=2", "--spot", "--max-restarts=7", "--env", "A=b c $d"]
    command = ["python", "-m", "vlvm_jax.train", "--workdir=gs://b/it's a run", "$HOME"]
    done = cloud.run("gke/xpk.sh", *FLAGS, *WHERE, *flags, "--", *command)
    assert done.returncode == 0, done.stderr
    line = "python -m vlvm_jax.train '--workdir=gs://b/it'\\''s a run' '$$HOME'"
    assert cloud.calls == [[
        "xpk", "workload", "create", "--cluster=c", "--zone=us-west4-a", "--project=p", "--workload=run",
        "--tpu-type=v5litepod-64", "--num-slices=2", "--docker-image=europe-docker.pkg.dev/p/r/vlvm_jax:1",
        "--max-restarts=7", "--restart-on-exit-codes=1,75", "--termination-grace-period-seconds=300", "--spot",
        "--env=A=b c $$d", f"--command={line}",
    ]]  # fmt: skip
    assert shlex.split(seen_by_container(line)) == command


def test_an_xpk_dry_run_prints_the_command_and_runs_nothing(cloud):
    arguments = [*FLAGS, *WHERE, "--reservation=mine", "--", *COMMAND[:4]]
    rehearsal = cloud.run("gke/xpk.sh", "--dry-run", *arguments)
    assert (rehearsal.returncode, rehearsal.stderr, cloud.calls) == (0, "", [])
    assert cloud.run("gke/xpk.sh", *arguments).returncode == 0
    assert cloud.calls == [shlex.split(rehearsal.stdout)]
    assert "--reservation=mine" in cloud.calls[0]


FAULTS = [
    (["--nmae=x"], "unknown flag --nmae"),
    (["--name"], "--name needs a value"),
    (["--name", "--type=v6e-8"], "--name needs a value"),
    (["--name=a", "--type=v6e-8", "--", "true"], "--image is required"),
    (["--name=a", "--image=i", "--", "true"], "--type is required"),
    ([*FLAGS], "no command"),
    ([*FLAGS, "true"], "unexpected argument true"),
    ([*FLAGS, "--spot", "--reservation=r", "--", "true"], "--spot and --reservation exclude each other"),
    ([*FLAGS, "--env=KEY", "--", "true"], "--env KEY: expected KEY=VALUE"),
    ([*FLAGS, "--slices=0", "--", "true"], "--slices 0: expected a whole number from 1"),
    ([*FLAGS, "--max-restarts", "x", "--", "true"], "--max-restarts x: expected a whole number"),
    (["--name=A", "--type=v6e-8", "--image=i", "--", "true"], "--name A: at most 40"),
    (["--name=a", "--type=v6e-2", "--image=i", "--", "true"], "which has v6e-1 v6e-4 v6e-8 v6e-16"),
    (["--name=a", "--type=v9-9", "--image=i", "--", "true"], "--type v9-9 is not in launch/accelerators.tsv"),
    (["--name=a", "--type=v6e-8", "--slices=2", "--image=i", "--", "true"], "v6e-8 has one"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        *((script, *fault) for script in ("submit.sh", "xpk.sh") for fault in FAULTS),
        ("submit.sh", ["--cluster=c"], "unknown flag --cluster"),
        ("submit.sh", ["--context"], "--context needs a value"),
        ("xpk.sh", ["--namespace=n"], "unknown flag --namespace"),
        ("xpk.sh", [*FLAGS, "--zone=z", "--", "true"], "--cluster is required"),
    ],
)
def test_faulty_flags_end_in_one_line_and_run_nothing(cloud, script, arguments, words):
    done = cloud.run(f"gke/{script}", *arguments)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("script", "own"), [("submit.sh", "context namespace service-account"), ("xpk.sh", "cluster zone project")]
)
def test_help_names_every_flag(cloud, script, own):
    done = cloud.run(f"gke/{script}", "--help")
    assert (done.returncode, done.stderr, cloud.calls) == (0, "", [])
    for name in f"name type image slices spot reservation max-restarts env dry-run {own}".split():
        assert f"--{name} " in done.stdout
