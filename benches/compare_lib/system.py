"""What the machine must have (packages, release builds, a disk for direct I/O) and what it is."""
import os
import platform
import shutil
import subprocess
import tempfile
import time

from .processes import StepFailed, words

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
PROGRAMS = ("qrbdd", "qrbdadm", "qrbd-raw-quinn")
# Longest path of a socket below the folder: "/qrbd-c-1452/alice/run/control.sock"; a Unix socket's path ends at 107 bytes.
MAX_DIRECTORY_LENGTH = 70

# Command, packages that may have it (distributions cut QEMU differently), what for.
NEEDED = [
    ("fio", ["fio"], "the loads"),
    ("qemu-nbd", ["qemu-utils"], "plain, and the mirror's target"),
    ("qemu-storage-daemon", ["qemu-utils", "qemu-system-common"], "the mirror"),
    ("nbdkit", ["nbdkit"], "nbdkit file and memory"),
    ("setpriv", ["util-linux"], "processes that end with the comparison"),
    ("unshare", ["util-linux"], "a network with small packets"),
    ("ip", ["iproute2"], "a network with small packets"),
]


def missing_commands():
    return [need for need in NEEDED if shutil.which(need[0]) is None]


def install_peers(say):
    """Installs what is missing, with apt."""
    for attempt in range(2):
        missing = missing_commands()
        if not missing:
            return
        # The second attempt tries the other package that may have the command.
        packages = sorted({names[min(attempt, len(names) - 1)] for _, names, _ in missing})
        for command, _, reason in missing:
            say(f"missing: {command} ({reason})")
        if shutil.which("apt-get") is None:
            raise StepFailed(f"this is not Debian or Ubuntu: install {', '.join(packages)} with this system's tool, then start again")
        root = [] if os.geteuid() == 0 else ["sudo"]
        install = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends", "--no-remove"]
        say(f"installing: {' '.join(packages)}")
        subprocess.run([*root, "apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=False)
        subprocess.run(install + packages, stdout=subprocess.DEVNULL, check=False)
    missing = missing_commands()
    if missing:
        raise StepFailed(f"still missing after the installation: {', '.join(command for command, _, _ in missing)}")


def build(say):
    """Builds the release programs and returns their folder."""
    say("building the release programs (several minutes the first time)")
    path = os.path.expanduser("~/.cargo/bin") + os.pathsep + os.environ.get("PATH", "")
    command = "cargo build --locked --release --package qrbdd --package qrbd-tools --package qrbd-benches --features qrbd-benches/raw-quinn --bins".split()
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}).returncode != 0:
        raise StepFailed(f"the build failed: {words(command)}")
    return os.path.join(target_directory(), "release")


def target_directory():
    return os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"))


def check_programs(directory):
    for program in PROGRAMS:
        if not os.access(os.path.join(directory, program), os.X_OK):
            raise StepFailed(f"{os.path.join(directory, program)} is missing: give the folder of a release build to --binaries, or none")
    return os.path.abspath(directory)


def make_directory(parent, bytes_needed):
    """A fresh folder on a file system that can do direct I/O and has the room."""
    parents = [parent] if parent else [os.environ.get("TMPDIR"), "/var/tmp", "/tmp", target_directory()]
    reasons = []
    for candidate in parents:
        if not candidate:
            continue
        reason = why_not(candidate, bytes_needed)
        if reason is None:
            return tempfile.mkdtemp(prefix="qrbd.", dir=candidate)
        reasons.append(f"{candidate}: {reason}")
    raise StepFailed("no folder to measure in (--directory): " + "; ".join(reasons))


def why_not(directory, bytes_needed):
    if len(directory) > MAX_DIRECTORY_LENGTH - len("/qrbd.12345678"):
        return "its path is too long for Unix sockets below it"
    try:
        free = shutil.disk_usage(directory).free
        if free < bytes_needed:
            return f"{free >> 20} MiB free, {bytes_needed >> 20} MiB needed"
        descriptor, path = tempfile.mkstemp(dir=directory)
        try:
            os.close(descriptor)
            os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
        finally:
            os.unlink(path)
    except OSError as error:
        return f"no direct I/O there: {error.strerror}"
    return None


def describe(directory):
    """The machine, for the record."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "file system": file_system(directory),
        "qrbd": first_line("git", "-C", ROOT, "describe", "--always", "--dirty"),
        "fio": first_line("fio", "--version"),
        "qemu": first_line("qemu-nbd", "--version"),
        "nbdkit": first_line("nbdkit", "--version"),
        "date": time.strftime("%Y-%m-%d"),
        "load at the start": round(os.getloadavg()[0], 1),
    }


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def file_system(directory):
    done = subprocess.run(["df", "--output=fstype", directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode().split("\n")[1].strip() if done.returncode == 0 else "unknown"


def first_line(*command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return "unknown"
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0].strip() if lines else "unknown"
