"""QRBD in the comparison: a pair of daemons on loopback, each with its disk, started from files that are written here."""
import json
import os
import signal
import subprocess
import time

from .peers import GUARANTEES, Peer, free_port, nbd_target
from .processes import StepFailed

ADMIN_SECONDS = 60
SYNC_SECONDS = 300
# Internal metadata: superblocks, activity log, bitmap (1 bit for 4 KiB).
METADATA_BYTES = 4 << 20

CONFIGURATION = """\
resource r0 {{
    net {{
        protocol {protocol};
    }}
    on alice {{
        disk {directory}/alice/disk;
        address 127.0.0.1:{alice_port};
        meta-disk internal;
    }}
    on bob {{
        disk {directory}/bob/disk;
        address 127.0.0.1:{bob_port};
        meta-disk internal;
    }}
}}
"""


def disk_bytes_for(size_bytes):
    """What a disk must have for an export of `size_bytes` and internal metadata."""
    return -(-(size_bytes + size_bytes // 32768 + METADATA_BYTES) // 4096) * 4096


class Pair(Peer):
    """Two daemons, alice Primary. Options are the defaults but for the protocol."""

    kind = "qrbd"
    protocol = "C"
    nodes = ("alice", "bob")
    disk_bytes = None
    # Words before the daemons' command lines.
    prefix = ()
    initial_sync = True

    def start(self):
        self.primary = "alice"
        for node in ("alice", "bob"):
            os.makedirs(self.path(f"{node}/run"))
            os.makedirs(self.path(f"{node}/state"))
        for node in self.nodes:
            self.make_disk(f"{node}/disk", self.disk_bytes or disk_bytes_for(self.context.size_bytes))
        ports = dict(alice_port=free_port(), bob_port=free_port())
        with open(self.path("cluster.conf"), "w", encoding="utf-8") as file:
            file.write(CONFIGURATION.format(protocol=self.protocol, directory=self.directory, **ports))
        self.context.processes.run("keygen", [self.program("qrbdadm"), "keygen", "--output", self.path("authkey")], ADMIN_SECONDS)
        for node in self.nodes:
            self.admin(node, "create-md", "--force", "r0")
            self.start_node(node)
        if self.nodes == ("alice",):
            self.admin("alice", "primary", "--force", "r0")
            return
        self.wait_until("both nodes are connected", lambda: self.state("alice")["replication"] == "Established")
        if self.initial_sync:
            self.admin("alice", "primary", "--force", "r0")
            self.wait_until("the initial sync is done", self.healthy, SYNC_SECONDS)
        else:
            self.admin("alice", "new-current-uuid", "--clear-bitmap", "r0")
            self.admin("alice", "primary", "r0")
            self.wait_until("both disks are UpToDate", self.healthy)

    def program(self, name):
        return os.path.join(self.context.programs, name)

    def places(self, node):
        run, state = self.path(f"{node}/run"), self.path(f"{node}/state")
        return ["-c", self.path("cluster.conf"), "--node", node, "--run-dir", run, "--state-dir", state]

    def admin_command(self, node, *words):
        return [self.program("qrbdadm"), *self.places(node), *words]

    def admin(self, node, *words, limit_seconds=ADMIN_SECONDS):
        return self.context.processes.run(f"qrbdadm {words[0]}", self.admin_command(node, *words), limit_seconds)

    def start_node(self, node):
        command = [self.program("qrbdd"), *self.places(node), "--key-file", self.path("authkey")]
        process = self.spawn(node, [*self.prefix, *command])

        def answers():
            try:
                self.admin(node, "status")
            except StepFailed:
                return False
            return True

        self.context.processes.wait_until(f"the daemon of {node} answers", answers, process=process)
        self.admin(node, "up", "r0")

    def kill_node(self, node):
        process = self.processes.pop(node)
        os.kill(process.pid, signal.SIGKILL)
        self.context.processes.end(process, gently=False)

    def wait_until(self, what, condition, limit_seconds=20, pause_seconds=0.05):
        try:
            self.context.processes.wait_until(f"{self.name}: {what}", condition, limit_seconds, pause_seconds=pause_seconds)
        except StepFailed as error:
            logs = "\n".join(self.context.processes.end_of_log(f"{self.name}.{node}") for node in self.nodes)
            raise StepFailed(f"{error}\n{logs}") from None

    def state(self, node):
        """Role and states as `node` sees them."""
        return read_status(self.admin(node, "status", "--json", "r0"))

    def healthy(self, node="alice"):
        state = self.state(node)
        return (
            state["replication"] == "Established"
            and state["disk"] == state["peer_disk"] == "UpToDate"
            and state["out_of_sync"] == 0
        )

    def target(self):
        return nbd_target(self.path(f"{self.primary}/run/nbd.sock"), "r0")

    def memory_bytes(self, node):
        """Resident memory of a daemon: now, and the most it ever was."""
        with open(f"/proc/{self.processes[node].pid}/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
        return {name: int(lines[field].split()[0]) * 1024 for name, field in (("now", "VmRSS"), ("most", "VmHWM"))}


def read_status(text):
    report = json.loads(text)
    report = report[0] if isinstance(report, list) else report
    connection = (report.get("connections") or [{}])[0]
    peer = (connection.get("peer_devices") or [{}])[0]
    return {
        "role": report["role"],
        "disk": report["devices"][0]["disk-state"],
        "replication": peer.get("replication-state", "Off"),
        "peer_disk": peer.get("peer-disk-state", "DUnknown"),
        "out_of_sync": peer.get("out-of-sync", 0),
    }


def facts(replicated, encrypted, answered, flush):
    return dict(zip(GUARANTEES, [replicated, encrypted, "yes, both" if encrypted == "yes" else "yes", answered, flush]))


REPLICATED = "yes; resync of what differs"


class ProtocolA(Pair):
    name = "qrbd-a"
    title = "QRBD, protocol A"
    protocol = "A"
    guarantees = facts(REPLICATED, "yes", "this disk has it, on its way to the peer", "this disk; in its place on its way to the peer")


class ProtocolB(Pair):
    name = "qrbd-b"
    title = "QRBD, protocol B"
    protocol = "B"
    guarantees = facts(REPLICATED, "yes", "this disk has it and the peer received it", "this disk; the peer received it")


class ProtocolC(Pair):
    name = "qrbd-c"
    title = "QRBD, protocol C"
    guarantees = facts(REPLICATED, "yes", "both disks have it", "both disks")


class SmallPackets(ProtocolC):
    """Protocol C over an interface that carries Ethernet's packets: loopback in a network namespace, made smaller."""

    name = "qrbd-c-1452"
    title = "QRBD, protocol C, 1452-byte packets"
    only_loads = ("write-1m-8",)
    # IPv4 and UDP take 28 bytes.
    interface_bytes = 1480

    def start(self):
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = f"ip link set lo mtu {self.interface_bytes} && ip link set lo up && echo ready && exec sleep infinity"
        process = self.spawn("namespace", ["unshare", "--net", *user, "sh", "-c", script])
        log = f"{self.name}.namespace"
        ready = lambda: "ready" in self.context.processes.end_of_log(log)  # noqa: E731
        self.context.processes.wait_until("a network namespace is made", ready, process=process)
        self.prefix = ["nsenter", "--target", process.pid, "--net"]
        if user:
            self.prefix += ["--user", "--preserve-credentials"]
        super().start()


class Alone(Pair):
    name = "qrbd-alone"
    title = "QRBD, unconnected"
    nodes = ("alice",)
    guarantees = facts("no; notes what the peer misses", "-", "this disk has it", "this disk")


class LargeDevice(ProtocolC):
    """1 TiB, sparse, for the daemon's memory."""

    name = "qrbd-large"
    disk_bytes = 1 << 40
    initial_sync = False


def promote(pair, node, limit_seconds=30):
    """Asks for the role until it is given. Seconds from the first request to success, and how many requests."""
    begun, requests = time.monotonic(), 0
    command = [str(word) for word in pair.admin_command(node, "primary", "r0")]
    while True:
        requests += 1
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ADMIN_SECONDS)
        elapsed = time.monotonic() - begun
        if done.returncode == 0:
            pair.primary = node
            return elapsed, requests
        if elapsed > limit_seconds:
            raise StepFailed(f"{node} could not be promoted: {done.stdout.decode()}{done.stderr.decode()}")
        time.sleep(0.01)
