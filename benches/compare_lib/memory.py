"""A folder whose files lie in memory: whether there is one, and its end.

Holds at every moment: the folder belongs to a process of its own, which removes it as soon as it is told to or this program is gone, however that
ended, SIGKILL included. What lies there takes memory, so that nothing may be left. It is not among `Processes`, which end with this program.
"""
import os
import subprocess
from contextlib import contextmanager

from . import system
from .processes import StepFailed

DIRECTORY = "/dev/shm"
# For the daemons, the load and whatever else lives on the machine.
MARGIN_BYTES = 256 << 20
REMOVAL_SECONDS = 60
# Whoever still writes there is killed meanwhile.
KEEPER = """\
trap '' INT TERM HUP
folder=$(mktemp -d "$1/qrbd.XXXXXXXX") || exit 1
echo "$folder"
read -r _
for _ in $(seq 100); do
    rm -rf -- "$folder" && exit 0
    sleep 0.1
done
exit 1
"""


def why_not(file_bytes, directory=DIRECTORY):
    """Why files of so many bytes cannot be disks in memory there; None if they can."""
    if not os.path.isdir(directory):
        return f"{directory} is missing"
    kind = system.file_system(directory)
    if kind != "tmpfs":
        return f"{directory} is no tmpfs, but {kind}"
    needed = file_bytes + MARGIN_BYTES
    reason = system.why_not(directory, needed)
    if reason is not None:
        return f"{directory}: {reason}"
    free = available_bytes()
    if free < needed:
        return f"{free >> 20} MiB of memory are free, {needed >> 20} MiB needed"
    return None


@contextmanager
def folder(parent=DIRECTORY):
    """A fresh folder, removed at the end."""
    keeper = subprocess.Popen(["sh", "-c", KEEPER, "sh", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        path = keeper.stdout.readline().decode().strip()
        if not path:
            raise StepFailed(f"no folder could be made in {parent}")
        yield path
    finally:
        # The keeper goes on even if one does not wait for it.
        keeper.stdin.close()
        code = keeper.wait(REMOVAL_SECONDS)
        keeper.stdout.close()
    if code != 0:
        raise StepFailed(f"{path} could not be removed")


def available_bytes():
    """Memory that can be taken without pushing anything out but caches: of the machine, and of the control groups that this process is in."""
    fields = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines())
    free = [int(fields["MemAvailable"].split()[0]) * 1024]
    try:
        groups = read("/proc/self/cgroup")
    except OSError:
        groups = ""
    free += [left for left in (left_in(*place) for place in control_groups(groups)) if left is not None]
    return max(0, min(free))


# Limit, use, and what of it is cache that goes first: control groups of version 2 and 1.
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def control_groups(text, root="/sys/fs/cgroup"):
    """(folder, names of its files) of the groups in a process's `cgroup` file that count memory, and of those around them."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            above, names = root, VERSION_2
        elif "memory" in controllers.split(","):
            above, names = f"{root}/memory", VERSION_1
        else:
            continue
        while path not in ("", "/"):
            yield above + path, names
            path = os.path.dirname(path)
        yield above, names


def left_in(group, names):
    """What a group may still take; None without a limit, or where it cannot be seen."""
    limit, use, cache = names
    try:
        most = read(os.path.join(group, limit))
        if most == "max":
            return None
        statistics = dict(line.split() for line in read(os.path.join(group, "memory.stat")).splitlines())
        return int(most) - int(read(os.path.join(group, use))) + int(statistics.get(cache, 0))
    except OSError:
        return None


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()
