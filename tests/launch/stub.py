"""Stands in for gcloud, kubectl, xpk and git: logs its argv, and answers by a scenario (see conftest.py).

Run under the name of the tool it stands in for, with STUB_DIR as its folder. Tests start it some hundred times, so it
imports nothing that takes long to load, not even json.
"""
# ruff: noqa: PTH119, PTH123, PTH208

import os
import sys
from _json import encode_basestring_ascii as json_string

HOME = os.environ["STUB_DIR"]


def reply_to(line: str) -> dict:
    """The next scripted reply of the first rule that fits; a rule's last reply is given for ever."""
    with open(f"{HOME}/scenario") as file:
        scenario = eval(file.read())
    for index, (words, replies) in enumerate(scenario):
        if words in line:
            with open(f"{HOME}/count{index}", "a") as counter:
                given = counter.tell()
                counter.write(".")
            return replies[min(given, len(replies) - 1)]
    return {}


def act(argv: list[str]) -> int:
    """What gcloud does on TPU VMs: copies to the workers' homes, or runs the command in each of them."""
    import shutil
    import subprocess

    workers = sorted(os.listdir(f"{HOME}/workers"))
    choice = next(arg for arg in argv if arg.startswith("--worker=")).partition("=")[2]
    homes = [f"{HOME}/workers/{worker}" for worker in (workers if choice == "all" else [workers[int(choice)]])]
    if "scp" in argv:
        for home in homes:
            for source in [arg for arg in argv[argv.index("scp") + 1 :] if arg.startswith("/")]:
                shutil.copy(source, home)
        return 0
    command = next(arg for arg in argv if arg.startswith("--command=")).partition("=")[2]
    codes = []
    for home in homes:
        env = {**os.environ, "HOME": home, "PATH": f"{home}/bin:{os.environ['REAL_PATH']}"}
        codes.append(subprocess.run(["bash", "-c", command], cwd=home, env=env).returncode)
    return next((code for code in codes if code), 0)


def main() -> int:
    argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    with open(f"{HOME}/calls.jsonl", "a") as log:
        log.write(f"[{', '.join(map(json_string, argv))}]\n")
    reply = reply_to(" ".join(argv))
    if reply.get("act"):
        return act(argv)
    if reply.get("reads"):
        with open(f"{HOME}/input", "w") as file:
            file.write(sys.stdin.read())
    sys.stdout.write(reply.get("out", ""))
    sys.stderr.write(reply.get("err", ""))
    return reply.get("code", 0)


sys.exit(main())
