"""What QRBD is compared with: other ways to reach a disk.

Each peer makes its own files in its own folder, is started once, and stays idle while it is not its turn. Its `guarantees`
say what one gets for the speed: they are facts about the peer with the options that are used here, and go into the report.
"""
import json
import os
import socket
import time

from .processes import StepFailed

READY_SECONDS = 20
MIRROR_READY_SECONDS = 300

# Columns of the report.
GUARANTEES = ["replicated", "encrypted", "direct I/O", "a write is answered when", "FLUSH makes durable"]


class Peer:
    name = title = ""
    # Colour group of the picture.
    kind = "unreplicated"
    guarantees = {}
    # Where it takes part; None: in every load.
    only_loads = None

    def __init__(self, context):
        self.context = context
        self.directory = os.path.join(context.directory, self.name)
        os.mkdir(self.directory)
        self.processes = {}

    def path(self, name):
        return os.path.join(self.directory, name)

    def make_disk(self, name="disk", size_bytes=None):
        path = self.path(name)
        with open(path, "wb") as disk:
            disk.truncate(size_bytes or self.context.size_bytes)
        return path

    def spawn(self, name, command):
        self.processes[name] = self.context.processes.start(f"{self.name}.{name}", command)
        return self.processes[name]

    def wait_for_socket(self, path, process):
        self.context.processes.wait_until(f"{path} accepts connections", lambda: connects(path), READY_SECONDS, process)

    def start(self):
        """Until it can be written to."""

    def target(self):
        """fio's words for it."""
        raise NotImplementedError

    def settle(self):
        """After each load, outside the measurement: nothing of it may disturb the next one."""


def nbd_target(path, export=""):
    return ["--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={path}"]


def connects(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def free_port(kind=socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class RawDisk(Peer):
    name = "raw"
    title = "raw disk (fio, io_uring)"
    guarantees = dict(zip(GUARANTEES, ["no", "no", "yes", "the disk has it", "the file"]))

    def start(self):
        self.disk = self.make_disk()

    def target(self):
        return ["--ioengine=io_uring", "--direct=1", f"--filename={self.disk}"]


class TwoRawDisks(Peer):
    """What this device gives two disks that are written at the same time: no mirror that has both of its disks here is faster."""

    name = "raw-two"
    title = "two raw disks at once, each"
    guarantees = dict(zip(GUARANTEES, ["no", "no", "yes, both", "each disk for itself", "each file"]))

    def start(self):
        for number in range(2):
            self.make_disk(f"disk.{number}")

    def target(self):
        files = [f"--directory={self.directory}", "--filename_format=disk.$jobnum", "--numjobs=2"]
        return ["--ioengine=io_uring", "--direct=1", *files]


class Plain(Peer):
    name = "plain"
    title = "plain: qemu-nbd"
    guarantees = dict(zip(GUARANTEES, ["no", "no (Unix socket)", "yes", "the disk has it", "the file"]))

    def start(self):
        disk, path = self.make_disk(), self.path("socket")
        options = "-f raw --cache=none --aio=io_uring -t -e 16".split()
        process = self.spawn("server", ["qemu-nbd", *options, "-k", path, disk])
        self.wait_for_socket(path, process)

    def target(self):
        return nbd_target(self.path("socket"))


class NbdkitFile(Peer):
    name = "nbdkit-file"
    title = "nbdkit file"
    guarantees = dict(zip(GUARANTEES, ["no", "no (Unix socket)", "no, page cache", "memory of the host has it", "the file"]))

    def start(self):
        self.disk, path = self.make_disk(), self.path("socket")
        process = self.spawn("server", ["nbdkit", "--foreground", "--unix", path, "file", self.disk])
        self.wait_for_socket(path, process)

    def target(self):
        return nbd_target(self.path("socket"))

    def settle(self):
        # What it left in the page cache would be written while the next one is measured.
        with open(self.disk, "rb") as disk:
            os.fsync(disk.fileno())


class NbdkitMemory(Peer):
    name = "nbdkit-memory"
    title = "nbdkit memory (no disk)"
    guarantees = dict(zip(GUARANTEES, ["no", "no (Unix socket)", "no disk", "memory of the server has it", "nothing"]))

    def start(self):
        path = self.path("socket")
        process = self.spawn("server", ["nbdkit", "--foreground", "--unix", path, "memory", str(self.context.size_bytes)])
        self.wait_for_socket(path, process)

    def target(self):
        return nbd_target(self.path("socket"))


class QemuMirror(Peer):
    name = "qemu-mirror"
    title = "QEMU mirror, write-blocking"
    kind = "replicated"
    guarantees = dict(
        zip(GUARANTEES, ["yes; copies all after an outage", "no (TCP)", "yes, both", "both disks have it", "the source's file alone"])
    )

    def start(self):
        port = free_port(socket.SOCK_STREAM)
        target, source = self.make_disk("target"), self.make_disk("source")
        options = "-f raw --cache=none --aio=io_uring -t -b 127.0.0.1 -x target".split()
        process = self.spawn("target", ["qemu-nbd", *options, "-p", str(port), target])
        self.context.processes.wait_until("the mirror's target listens", lambda: listens(port), READY_SECONDS, process)
        blockdevs = [
            f"driver=file,node-name=file,filename={source},cache.direct=on,aio=io_uring",
            "driver=raw,node-name=source,file=file",
            f"driver=nbd,node-name=target,server.type=inet,server.host=127.0.0.1,server.port={port},export=target",
        ]
        command = ["qemu-storage-daemon"] + [word for blockdev in blockdevs for word in ("--blockdev", blockdev)]
        command += ["--nbd-server", f"addr.type=unix,addr.path={self.path('socket')}"]
        command += ["--export", "type=nbd,id=export,node-name=source,writable=on,name=mirror"]
        command += ["--chardev", f"socket,id=monitor,path={self.path('monitor')},server=on,wait=off"]
        process = self.spawn("source", command + ["--monitor", "chardev=monitor"])
        self.wait_for_socket(self.path("socket"), process)
        monitor = Monitor(self.path("monitor"))
        mirror = {"job-id": "mirror", "device": "source", "target": "target", "sync": "full", "copy-mode": "write-blocking"}
        monitor.execute("blockdev-mirror", mirror)
        self.context.processes.wait_until(
            "the mirror is ready",
            lambda: all(job["ready"] for job in monitor.execute("query-block-jobs")) and monitor.execute("query-block-jobs") != [],
            MIRROR_READY_SECONDS,
            process,
        )
        monitor.close()

    def target(self):
        return nbd_target(self.path("socket"), "mirror")


def listens(port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Monitor:
    """QEMU's machine protocol, as far as it is needed."""

    def __init__(self, path):
        deadline = time.monotonic() + READY_SECONDS
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while self.socket.connect_ex(path) != 0:
            if time.monotonic() > deadline:
                raise StepFailed(f"QEMU's monitor {path} does not accept connections")
            time.sleep(0.05)
        self.socket.settimeout(READY_SECONDS)
        self.file = self.socket.makefile("rw", encoding="utf-8")
        self.file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command, arguments=None):
        self.file.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self.file.flush()
        for line in self.file:
            answer = json.loads(line)
            if "error" in answer:
                raise StepFailed(f"QEMU refuses {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]
        raise StepFailed(f"QEMU closed its monitor at {command}")

    def close(self):
        self.file.close()
        self.socket.close()
