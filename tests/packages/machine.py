"""A throw-away Debian machine with systemd as its first process, in namespaces of this host.

Owns: the image that all machines are copies of (made once, kept under the target folder), a machine's life (boot, commands in it, orderly
end, death), its disks (files as loop devices of the host, seen as /dev/sdX inside) and the cable between two machines.

Invariants: nothing of a machine outlives the process that made it, save its folder, the kernel's work being left to namespaces; a
machine sees only its own mounts, processes, names, cgroups and network. Every wait has a limit.

Needs root. Not a security boundary: the machine is root on the host's kernel.
"""
import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import time

# What a small Debian server has, as far as the tests touch it.
IMAGE_PACKAGES = (
    "systemd", "systemd-sysv", "kmod", "iproute2", "fuse3", "libnbd-bin", "e2fsprogs", "mount", "procps", "man-db", "bash-completion",
)
SUITE = "bookworm"
MIRROR = os.environ.get("QRBD_DEBIAN_MIRROR", "http://deb.debian.org/debian")
# Loop devices that a machine can see. The kernel gives any number that is free, and some programs begin at high ones.
LOOP_DEVICES = 2048

# Runs as the first process of the new namespaces; NAME, FOLDER, IMAGE and DISKS are in its environment.
SETUP = r"""
set -e
root=$FOLDER/root
# Volatile: the end of a machine need not wait until the host's disk has everything. The replicated disks are no part of this.
mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=$FOLDER/upper,workdir=$FOLDER/work,volatile" "$root"
mount -t proc proc "$root/proc"
# Read-only, so that systemd sees a container and leaves the host's devices alone.
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty fuse loop-control; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
python3 - "$root/dev" "$LOOP_DEVICES" <<'END'
import os, sys
for number in range(int(sys.argv[2])):
    os.mknod(f"{sys.argv[1]}/loop{number}", 0o60660, os.makedev(7, number))
END
for disk in $DISKS; do
    : >"$root/dev/${disk%%=*}"
    mount --bind "${disk#*=}" "$root/dev/${disk%%=*}"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
: >"$root/dev/console"
mount --bind "$FOLDER/console" "$root/dev/console"
hostname "$NAME"
ip link set lo up
cd "$root"
pivot_root . mnt
cd /
umount -l /mnt
exec env -i container=qrbd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --log-target=journal </dev/console >/dev/console 2>&1
"""


class Failure(AssertionError):
    """A claim that does not hold, or a step that did not work."""


def run(*command, check=True, limit=60, **options):
    """Runs a command of the host; its output and exit code."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=limit, text=True, errors="replace",
            **options,
        )
    except subprocess.TimeoutExpired as expired:
        raise Failure(f"{' '.join(command)}: not done within {limit} s; so far: {expired.output}") from None
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    return done


def until(what, limit, condition):
    """Waits until `condition` returns something true, and returns that. What it last said is shown if it never does."""
    end = time.monotonic() + limit
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Failure(f"not within {limit} s: {what}")
        time.sleep(0.05)


def image(cache, further=()):
    """The folder with the machine that all are copies of, with further packages; made if it is not there."""
    packages = (*IMAGE_PACKAGES, *further)
    key = hashlib.sha256(" ".join((SUITE, *packages)).encode()).hexdigest()[:12]
    folder = os.path.join(cache, f"debian-{SUITE}-{key}")
    if os.path.isdir(folder):
        return folder
    os.makedirs(cache, exist_ok=True)
    unfinished = f"{folder}.{os.getpid()}"
    try:
        run(
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}",
            "--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/locale/*",
            SUITE, unfinished, MIRROR, limit=900,
        )
        with contextlib.suppress(OSError):
            # Somebody else made it meanwhile: that one will do.
            os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def die_with_parent():
    """In a child: the kernel ends it when this process ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def cgroup_folder():
    """Where this process may make cgroups: its own group in the unified hierarchy."""
    mount = None
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            words = line.split()
            if words[2] == "cgroup2":
                mount = words[1]
    if mount is None:
        raise Failure("no cgroup2 is mounted: systemd cannot run in a container here")
    with open("/proc/self/cgroup", encoding="utf-8") as groups:
        for line in groups:
            number, _, path = line.strip().split(":", 2)
            if number == "0":
                return os.path.join(mount, path.strip("/"))
    raise Failure("this process is in no unified cgroup")


class Disk:
    """A file of the host as a block device."""

    def __init__(self, file, size):
        with open(file, "wb") as made:
            made.truncate(size)
        self.file = file
        self.device = run("losetup", "--find", "--show", file).stdout.strip()

    def close(self):
        run("losetup", "--detach", self.device, check=False)


class Machine:
    """One machine. Its disk is FOLDER/upper over the image, so what it wrote can be looked at from outside, also when it is off."""

    def __init__(self, base, folder, name, disks=None):
        self.base, self.folder, self.name = base, folder, name
        self.disks = disks or {}
        self.process = None
        self.pid = None
        self.group = None
        for part in ("upper/etc/systemd/system", "upper/var/log/journal", "root"):
            os.makedirs(os.path.join(folder, part))
        self.write("/etc/hostname", f"{name}\n")
        self.write("/etc/hosts", "127.0.0.1 localhost\n")
        self.write("/etc/machine-id", hashlib.sha256(name.encode()).hexdigest()[:32] + "\n")
        # There is no terminal, nothing that these could set, and no database but the one of a test.
        for unit in ("console-getty.service", "getty.target", "systemd-logind.service", "systemd-timesyncd.service", "apt-daily.timer",
                     "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "man-db.timer", "postgresql.service"):
            os.symlink("/dev/null", self.path(f"/etc/systemd/system/{unit}"))

    def path(self, inside):
        """A path of the machine as the host sees it; for files that the machine wrote, or is to find."""
        return os.path.join(self.folder, "upper", inside.lstrip("/"))

    def write(self, inside, text, mode=0o644):
        """Writes a file; while the machine runs, from within."""
        if self.pid is not None:
            done = subprocess.run(
                [*self.enter(), "sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"', "sh", inside, f"{mode:o}"],
                input=text, text=True, timeout=30, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            if done.returncode != 0:
                raise Failure(f"{self.name}: {inside} could not be written: {done.stdout}")
            return
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(inside), mode)

    def boot(self):
        """Starts it, and returns when systemd has started everything."""
        if self.process is not None:
            raise Failure(f"{self.name} runs already")
        self.group = os.path.join(cgroup_folder(), f"qrbd-test-{os.getpid()}-{os.path.basename(self.folder)}")
        os.makedirs(self.group, exist_ok=True)
        with open(os.path.join(self.folder, "console"), "a", encoding="utf-8"):
            pass
        # A volatile mount leaves a mark in it that forbids the next one.
        shutil.rmtree(os.path.join(self.folder, "work"), ignore_errors=True)
        os.mkdir(os.path.join(self.folder, "work"))
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NAME": self.name, "FOLDER": self.folder, "IMAGE": self.base,
            "DISKS": " ".join(f"{name}={disk.device}" for name, disk in self.disks.items()), "LOOP_DEVICES": str(LOOP_DEVICES),
        }
        with open(os.path.join(self.folder, "boot.log"), "ab") as log:
            self.process = subprocess.Popen(
                [
                    "sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh", self.group,
                    "unshare", "--mount", "--pid", "--uts", "--net", "--ipc", "--cgroup", "--fork", "--kill-child",
                    "--propagation", "private", "sh", "-c", SETUP,
                ],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent,
            )
        self.pid = until(f"{self.name}: a first process", 20, self.first_process)
        until(f"{self.name}: systemd has started", 60, self.started)
        return self

    def first_process(self):
        if self.process.poll() is not None:
            with open(os.path.join(self.folder, "boot.log"), encoding="utf-8", errors="replace") as log:
                raise Failure(f"{self.name} does not boot: {log.read()}")
        with contextlib.suppress(OSError):
            pid = self.process.pid
            with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as children:
                for child in children.read().split():
                    if os.readlink(f"/proc/{child}/exe").endswith("/systemd/systemd"):
                        return int(child)
        return None

    def started(self):
        if self.process.poll() is not None:
            raise Failure(f"{self.name} ended while it was booting")
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        # What failed is for the tests to judge.
        return state in ("running", "degraded")

    def enter(self):
        if self.pid is None:
            raise Failure(f"{self.name} is off")
        return [
            "nsenter", "--target", str(self.pid), "--all", "--", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
            "HOME=/root", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=cat",
        ]

    def run(self, *command, check=True, limit=60):
        """Runs a command in it; output and exit code."""
        try:
            return run(*self.enter(), *command, check=check, limit=limit, cwd="/")
        except Failure as failure:
            raise Failure(f"{self.name}: {failure}") from None

    def says(self, *command, check=True, limit=60):
        """A command's output without the white space around it."""
        return self.run(*command, check=check, limit=limit).stdout.strip()

    def power_off(self):
        """The orderly end; returns when everything of it is gone."""
        self.run("systemctl", "--no-block", "--no-wall", "poweroff")
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} does not end within 120 s: {self.journal()[-3000:]}") from None
        self.gone()

    def kill(self):
        """The end without warning: everything in it is gone at once. Its disks keep what they had been given, the host's page cache included."""
        if self.process is not None:
            loops = self.loops()
            if self.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            else:
                self.process.kill()
            self.process.wait(60)
            self.gone()
            # They are the host's, which did not die.
            for device in loops:
                run("losetup", "--detach", device, check=False)

    def loops(self):
        """Loop devices over files in FUSE file systems of this machine."""
        numbers = set()
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/mountinfo", encoding="utf-8") as mounts:
            for line in mounts:
                if line.split(" - ")[1].split()[0] == "fuse":
                    numbers.add(line.split()[2])
        listed = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-MAJ:MIN", check=False).stdout
        return [line.split()[0] for line in listed.splitlines() if len(line.split()) == 2 and line.split()[1] in numbers]

    def gone(self):
        self.process = self.pid = None
        try:
            until(f"{self.name}: its cgroups are empty", 30, self.remove_groups)
        except Failure as failure:
            raise Failure(f"{failure}; in them: {self.left_over()}") from None

    def remove_groups(self):
        for folder, _, _ in os.walk(self.group, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                return False
        return True

    def left_over(self):
        """What is still in its cgroups, with what each process waits for in the kernel."""
        found = []
        for folder, _, _ in os.walk(self.group):
            with contextlib.suppress(OSError), open(os.path.join(folder, "cgroup.procs"), encoding="utf-8") as processes:
                for process in processes.read().split():
                    for file in ("stat", "stack"):
                        with contextlib.suppress(OSError), open(f"/proc/{process}/{file}", encoding="utf-8") as text:
                            found.append(text.read().strip())
            found.append(folder)
        return "\n".join(found)

    def journal(self, *arguments):
        """Its journal, also when it is off."""
        if self.pid is not None:
            return self.says("journalctl", "--no-pager", "--quiet", *arguments, check=False)
        return run("journalctl", "--no-pager", "--quiet", "--directory", self.path("/var/log/journal"), *arguments, check=False).stdout

    def close(self):
        """Off for good; may be called again."""
        self.kill()
        for disk in self.disks.values():
            disk.close()
        self.disks = {}


def cable(left, left_address, right, right_address):
    """Connects two running machines; the interface is `lan` in both."""
    run("ip", "link", "add", "lan", "netns", str(left.pid), "type", "veth", "peer", "name", "lan", "netns", str(right.pid))
    for machine, address in ((left, left_address), (right, right_address)):
        machine.run("ip", "address", "add", address, "dev", "lan")
        machine.run("ip", "link", "set", "lan", "up")
