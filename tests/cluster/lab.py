"""Two machines and a switch, out of namespaces: what the tests of the cluster integration run in.

Owns the network (a bridge in a namespace of its own, which is also the clients' machine and the router), the nodes (network, mount, pid,
uts and ipc namespaces with a private /run, /etc, /usr/local …; see node-init) and everything that has to be given back at the end:
processes, namespaces, loop devices. Invariants: every wait has a condition and a limit; only what the lab made is ever ended, and it is
also ended when the test fails. It does not know what is tested.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NODES = ("nodea", "nodeb")
ADDRESS = {"nodea": "10.77.0.1", "nodeb": "10.77.0.2"}
ROUTER = "10.77.0.254"
SERVICE_ADDRESS = "10.77.0.100"
SIZE_MIB = 32
LOOPS = 3
FIRST_LOOP = 700
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81

PORT = 7000

SERVICE = f"""#!/bin/sh
# The service of the tests, as a script with start, stop and status.
pid=$(cat /run/records.pid 2>/dev/null)
running() {{ [ -n "$pid" ] && grep -qs records.py "/proc/$pid/cmdline"; }}
case $1 in
start)
    running && exit 0
    # Its address comes later than the service itself.
    setsid {HERE}/records.py serve --listen 0.0.0.0:{PORT} --file /mnt/r0/records </dev/null >>/var/log/records.log 2>&1 &
    echo $! >/run/records.pid
    ;;
stop)
    running && kill "$pid"
    while running; do sleep 0.1; done
    ;;
status) running || exit 3 ;;
esac
"""

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """What a test has to say when it fails."""


def die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Result:
    """A finished command."""

    def __init__(self, words, code, out, err):
        self.words, self.code, self.out, self.err = words, code, out, err

    def __str__(self):
        return f"{' '.join(map(str, self.words))}: exit code {self.code}\n{self.out}{self.err}"


def run(words, limit=60, check=True, stdin=None, env=None):
    """Runs a command to its end. Its output goes through files: what it leaves behind in the background may hold them open."""
    words = [str(word) for word in words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=out, stderr=err, text=True, env=env, start_new_session=True
        )
        try:
            if stdin:
                process.stdin.write(stdin)
                process.stdin.close()
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Failure(f"{' '.join(words)}: no end within {limit} s") from None
        out.seek(0)
        err.seek(0)
        result = Result(words, process.returncode, out.read(), err.read())
    if check and result.code != 0:
        raise Failure(str(result))
    return result


def until(what, condition, limit=60, every=0.1):
    """Waits until the condition gives something true, and gives that."""
    end = time.monotonic() + limit
    said = ""
    while True:
        try:
            found = condition()
            if found:
                return found
            said = ""
        except Failure as failure:
            said = f"; last: {failure}"
        if time.monotonic() > end:
            raise Failure(f"not within {limit} s: {what}{said}")
        time.sleep(every)


class Lab:
    """See the module's text."""

    def __init__(self, directory, prefix, programs):
        self.directory = Path(directory)
        self.prefix = prefix
        self.programs = Path(programs)
        self.unshare = {}
        self.pid = {}
        self.background = []
        self.began = time.monotonic()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)

    # ---- what a test says

    def say(self, text):
        """A line of the test's log."""
        print(f"{time.monotonic() - self.began:7.2f} s  {text}", flush=True)

    # ---- network

    def namespace(self, name):
        return f"{self.prefix}{name}"

    def network(self):
        self.reserve_loop_devices()
        switch = self.namespace("switch")
        for name in ("switch", *NODES):
            run(["ip", "netns", "add", self.namespace(name)])
            run(["ip", "-n", self.namespace(name), "link", "set", "lo", "up"])
        run(["ip", "-n", switch, "link", "add", "br0", "type", "bridge"])
        run(["ip", "-n", switch, "link", "set", "br0", "up"])
        run(["ip", "-n", switch, "addr", "add", f"{ROUTER}/24", "dev", "br0"])
        for node in NODES:
            inside = self.namespace(node)
            run(["ip", "-n", inside, "link", "add", "v0", "type", "veth", "peer", "name", f"p-{node}", "netns", switch])
            run(["ip", "-n", switch, "link", "set", f"p-{node}", "master", "br0", "up"])

    def cut(self, node):
        """Takes the node's cable out of the switch; its carrier stays up."""
        self.say(f"{node} is cut off")
        run(["ip", "-n", self.namespace("switch"), "link", "set", f"p-{node}", "nomaster"])

    def heal(self, node):
        self.say(f"{node} is connected again")
        run(["ip", "-n", self.namespace("switch"), "link", "set", f"p-{node}", "master", "br0"])

    def outside(self, *words):
        """Words that run a command on the clients' machine."""
        return ["ip", "netns", "exec", self.namespace("switch"), *words]

    # ---- nodes

    def home(self, node):
        return self.directory / node

    def start(self, node, *command):
        """Boots a node; `command` runs in it as the boot scripts would, once its directories are there."""
        home = self.home(node)
        (home / "etc").mkdir(exist_ok=True)
        (home / "ready").unlink(missing_ok=True)
        inside = self.namespace(node)
        run(["ip", "-n", inside, "link", "set", "v0", "up"])
        run(["ip", "-n", inside, "addr", "add", f"{ADDRESS[node]}/24", "dev", "v0"])
        with open(home / "init.log", "ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace(node), "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
                 "--mount-proc", HERE / "node-init", home, node, *(command or ["true"])],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        self.unshare[node] = process

        def booted():
            if process.poll() is not None:
                raise SystemExit(f"{node} ended at its start:\n{(home / 'init.log').read_text()}")
            return (home / "ready").exists()

        until(f"{node} has booted", booted)
        self.pid[node] = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])

    def kill(self, node):
        """The end of a machine: every process at once."""
        process = self.unshare.pop(node, None)
        pid = self.pid.pop(node, None)
        if process is None:
            return
        if pid is not None:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # The namespace outlives the machine; its addresses and its link do not.
        run(["ip", "-n", self.namespace(node), "link", "set", "v0", "down"], check=False)
        run(["ip", "-n", self.namespace(node), "addr", "flush", "dev", "v0"], check=False)
        self.release_loop_devices(node, remove=False)

    def alive(self, node):
        return node in self.unshare and self.unshare[node].poll() is None

    def enter(self, node, *words):
        if not self.alive(node):
            raise Failure(f"{node} does not run")
        return ["nsenter", "--target", self.pid[node], "--mount", "--uts", "--ipc", "--net", "--pid", "--", *words]

    def on(self, node, *words, limit=60, check=True, stdin=None, env=None):
        """Runs a command on a node, as its administrator would."""
        return run(self.enter(node, *words), limit, check, stdin, env)

    def spawn(self, name, words, log):
        """A process of the test's own that lives until it ends or the lab does."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        self.background.append((name, process))
        return process

    # ---- QRBD on the nodes

    def configuration(self, net="", more="", resource="r0"):
        """The same configuration and key on both nodes, and a disk each."""
        text = f"resource {resource} {{\n    net {{\n        protocol C;\n{net}    }}\n{more}"
        for number, node in enumerate(NODES):
            text += f"    on {node} {{\n        node-id {number};\n        disk {self.home(node)}/disk;\n        meta-disk internal;\n        address {ADDRESS[node]}:7789;\n    }}\n"
        text += "}\n"
        for node in NODES:
            etc = self.home(node) / "etc"
            (etc / "qrbd.d").mkdir(parents=True, exist_ok=True)
            (etc / "qrbd").mkdir(exist_ok=True)
            (etc / "qrbd.conf").write_text('include "qrbd.d/*.res";\n')
            (etc / "qrbd.d" / f"{resource}.res").write_text(text)
            disk = self.home(node) / "disk"
            if not disk.exists():
                with open(disk, "wb") as file:
                    file.truncate(SIZE_MIB << 20)
        key = self.home(NODES[0]) / "etc/qrbd/authkey"
        if not key.exists():
            run([self.programs / "qrbdadm", "keygen", "--output", key])
            shutil.copy2(key, self.home(NODES[1]) / "etc/qrbd/authkey")

    def install(self, node, *parts):
        """What the guides say to install, where they say it."""
        self.on(node, "install", self.programs / "qrbdd", self.programs / "qrbdadm", "/usr/local/sbin")
        self.on(node, "install", self.programs / "qrbd-load", "/usr/local/bin")
        for part in parts:
            self.on(node, ROOT / "scripts/cluster/install", part)

    def install_service(self, node, place):
        script = self.home(node) / "records-service"
        script.write_text(SERVICE)
        self.on(node, "install", "-m", "0755", script, place)

    def admin(self, node, *words, check=True, limit=60):
        return self.on(node, "qrbdadm", *words, check=check, limit=limit)

    def role(self, node):
        return self.admin(node, "role", "r0", check=False).out.strip()

    def dstate(self, node):
        return self.admin(node, "dstate", "r0", check=False).out.strip()

    def has_address(self, node):
        return SERVICE_ADDRESS + "/" in self.on(node, "ip", "-4", "-o", "address", "show", "dev", "v0").out

    def has_mount(self, node):
        return self.on(node, "findmnt", "/mnt/r0", check=False).code == 0

    def start_daemon(self, node):
        self.on(node, "sh", "-c", "qrbdd --up all </dev/null >>/var/log/qrbdd.log 2>&1 &")
        until(f"qrbdd of {node} answers", lambda: self.admin(node, "status", check=False).code in (0, 10))

    # ---- the end

    def reserve_loop_devices(self):
        """Loop devices of our own for each node: what nobody else looks for cannot be mixed up with others."""
        with open("/dev/loop-control", "rb") as control:
            number = FIRST_LOOP
            for node in NODES:
                numbers = []
                while len(numbers) < LOOPS:
                    number += 1
                    try:
                        fcntl.ioctl(control, LOOP_CTL_ADD, number)
                        numbers.append(number)
                    except FileExistsError:
                        continue
                self.home(node).mkdir(exist_ok=True)
                (self.home(node) / "loops").write_text(" ".join(map(str, numbers)) + "\n")

    def release_loop_devices(self, node, remove):
        """Of a node that does not run any more: what it had attached has no server."""
        file = self.home(node) / "loops"
        if not file.exists():
            return
        with open("/dev/loop-control", "rb") as control:
            for number in map(int, file.read_text().split()):
                if Path(f"/sys/block/loop{number}/loop").exists():
                    run(["losetup", "--detach", f"/dev/loop{number}"], check=False, limit=20)

                def removed(number=number):
                    try:
                        fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
                    except OSError as error:
                        return error.errno == errno.ENODEV
                    return True

                if remove:
                    # Busy until the last mount of the node's namespace is gone.
                    until(f"/dev/loop{number} is free", removed, 30)
        if remove:
            file.unlink()

    def close(self):
        for _, process in self.background:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
        for node in list(self.unshare):
            self.kill(node)
        for name in ("switch", *NODES):
            run(["ip", "netns", "delete", self.namespace(name)], check=False)
        for node in NODES:
            self.release_loop_devices(node, remove=True)
            (self.home(node) / "disk").unlink(missing_ok=True)
