"""What an administrator and his programs do on a node: the daemon, `qrbdadm`, a file system, load that remembers what was acknowledged.

Owns the shell scripts that run in guests. What was acknowledged is written down outside of the guest, so that it survives it.
"""
import json
import os
import re

from .guest import GuestError

# Lines to the end of a file, each made durable and only then written down; beside it a writer with much in flight. Both stop by themselves
# when /run/stop appears, and write down errors.
APPENDER = """
number=$(wc -l </host/acknowledged 2>/dev/null || echo 0)
while [ ! -e /run/stop ]; do
    number=$((number + 1))
    if printf '%s %08d\\n' $(hostname) $number | dd of=/data/lines bs=64 oflag=append conv=notrunc,fsync 2>/run/appender.error; then
        echo "$number $(cut -d' ' -f1 /proc/uptime)" >>/host/acknowledged
    else
        echo "appender: $(tail -n 1 /run/appender.error)" >>/host/errors
        exit 1
    fi
done
"""
BUSY = """
round=0
while [ ! -e /run/stop ]; do
    round=$((round + 1))
    if ! dd if=/host/noise of=/data/busy.$((round % 3)) bs=64k conv=fsync 2>/run/busy.error; then
        echo "writer: $(tail -n 1 /run/busy.error)" >>/host/errors
        exit 1
    fi
    echo $round >/host/busy
done
"""
# Of the file that the second one writes.
NOISE_BYTES = 2 << 20
STATE = "qrbdadm status --verbose --statistics r0 2>&1; tail -n 20 /host/qrbdd.log; dmesg | tail -n 20"


class Wrong(AssertionError):
    """A promise that was not kept."""


def demand(condition, words):
    if not condition:
        raise Wrong(words)


class Node:
    def __init__(self, pair, name):
        self.pair, self.name = pair, name
        self.load = []
        self.begun = 0

    @property
    def guest(self):
        return self.pair[self.name]

    def run(self, script, limit_s=180):
        return self.guest.run(script, limit_s)

    def try_run(self, script, limit_s=180):
        return self.guest.try_run(script, limit_s)

    def until(self, what, condition, limit_s=180):
        return self.guest.until(what, condition, limit_s, show=STATE)

    def host_file(self, name):
        return os.path.join(self.pair.shared(self.name), name)

    def read_host(self, name):
        try:
            with open(self.host_file(name), errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    # ---- daemon ----

    def start_daemon(self, arguments=""):
        self.run(f"setsid qrbdd {arguments} >>/host/qrbdd.log 2>&1 & echo $! >/run/daemon.pid")
        self.until("the daemon answers", "qrbdadm status")

    def restart_daemon(self):
        """Ended in order and started again, as a service manager does it: in the guest, without the way to it."""
        self.run("kill -TERM $(cat /run/daemon.pid); while kill -0 $(cat /run/daemon.pid) 2>/dev/null; do usleep 5000; done; "
                 "setsid qrbdd >>/host/qrbdd.log 2>&1 & echo $! >/run/daemon.pid")
        self.until("the daemon answers", "qrbdadm status")

    def start_unit(self):
        """The daemon as systemd's service, on a guest that has systemd."""
        self.until("systemd has started", "systemctl is-active multi-user.target")
        # The unit must not load modules, and there is none of systemd's that does here.
        self.run("modprobe nbd && systemctl start qrbd")

    def kill_daemon(self):
        self.run('kill -9 $(cat /run/daemon.pid) 2>/dev/null; while kill -0 $(cat /run/daemon.pid) 2>/dev/null; do usleep 10000; done')

    def status(self):
        text = self.run("qrbdadm status --json r0")
        return json.loads(text)[0]

    def until_connected(self):
        self.until("the nodes are connected", "[ \"$(qrbdadm cstate r0)\" = Connected ]")

    def until_equal(self):
        """Connected, both disks UpToDate, nothing out of sync."""
        self.until("both disks are UpToDate", "qrbdadm status --json r0 >/run/state; "
                   "[ \"$(qrbdadm cstate r0)\" = Connected ] && [ \"$(qrbdadm dstate r0)\" = UpToDate/UpToDate ] && "
                   "grep -q '\"replication-state\": *\"Established\"' /run/state && grep -q '\"out-of-sync\": *0,' /run/state", 300)

    def promote(self):
        """Primary as soon as it may be: a dead peer is noticed by its silence."""
        self.until("this node is Primary", "qrbdadm primary r0", 180)

    # ---- load ----

    def start_load(self):
        noise = self.host_file("noise")
        if not os.path.exists(noise):
            with open(noise, "wb") as file:
                file.write(os.urandom(NOISE_BYTES))
        for name in ("errors", "busy"):
            with open(self.host_file(name), "w", encoding="utf-8"):
                pass
        self.begun = len(self.acknowledged())
        self.run("rm -f /run/stop")
        self.load = [self.guest.start(APPENDER), self.guest.start(BUSY)]
        self.until_load_goes_on("the load runs")

    def until_load_goes_on(self, what, lines=5):
        """Waits for so many more acknowledged lines, and for a whole file more of the other writer."""
        before, rounds = len(self.acknowledged()), self.read_host("busy").strip() or "0"
        self.until(what, f"[ -s /host/errors ] || {{ [ $(wc -l </host/acknowledged) -ge {before + lines} ] && "
                   f"[ $(($(cat /host/busy) + 0)) -gt {rounds} ]; }}", 240)
        self.no_errors()

    def stop_load(self):
        self.run("touch /run/stop")
        for command in self.load:
            command.result(240)
        self.load = []
        self.no_errors()

    def no_errors(self):
        errors = self.read_host("errors")
        demand(not errors, f"{self.name}: I/O errors under load:\n{errors}\n{self.guest.console_end()}{self.try_run('dmesg | tail -n 30')[1]}")

    def acknowledged(self):
        """[(number, seconds since boot)] of the lines that were made durable."""
        return [(int(number), float(when)) for number, when in re.findall(r"^(\d+) (\S+)$", self.read_host("acknowledged"), re.MULTILINE)]

    def longest_stall(self, since=None):
        """Seconds between two acknowledged lines of this load, at most; `since`: from so many lines on."""
        times = [when for _, when in self.acknowledged()[self.begun if since is None else max(since - 1, 0):]]
        return max((late - early for early, late in zip(times, times[1:])), default=0.0)

    # ---- the kernel's socket ----

    def lost_sockets(self):
        """How often the kernel lost its socket or got another one, by its own log."""
        return int(self.run("dmesg | grep -cE 'nbd0: (Receive control failed|Send (control|data) failed|Request send failed|Dead connection|"
                            "Connection timed out|reconnected socket)' || true"))

    def pauses(self):
        """Seconds for which the device stood still at each restart that went on with its sockets, by the daemon's log."""
        return [float(seconds) for seconds in re.findall(r"goes on with the sockets that were kept for it, after (\d+\.\d+) s",
                                                         self.read_host("qrbdd.log"))]

    def demand_kept_socket(self, lost, restarts):
        """A planned restart is none to the kernel: so many restarts went on with the very socket, and the kernel has lost none since it had
        lost `lost`. Then no request was sent twice, and none waited for a timer of the kernel."""
        demand(len(self.pauses()) == restarts, f"{self.name}: {len(self.pauses())} of {restarts} restarts went on with the kernel's socket:\n"
               f"{self.read_host('qrbdd.log')[-3000:]}")
        now = self.lost_sockets()
        demand(now == lost, f"{self.name}: the kernel noticed a planned restart {now - lost} times:\n{self.run('dmesg | tail -n 30')}")

    # ---- judgement ----

    def demand_lines(self, writer):
        """Every line that `writer` was acknowledged is in /data/lines here."""
        self.run("cat /data/lines >/host/lines")
        kept = set(self.read_host("lines").split("\n"))
        promised = [f"{writer.name} {number:08d}" for number, _ in writer.acknowledged()]
        demand(promised, "no line was acknowledged, so nothing is proved")
        lost = [line for line in promised if line not in kept]
        demand(not lost, f"{len(lost)} of {len(promised)} acknowledged lines are missing on {self.name}, the first is {lost[:1]}")
        return len(promised)

    def demand_clean_ext4(self, device="/dev/drbd0"):
        code, said = self.try_run(f"e2fsck -fn {device}", 300)
        demand(code == 0, f"e2fsck -fn {device} on {self.name}: exit code {code}\n{said}")

    def demand_no_kernel_errors(self):
        said = self.run("dmesg | grep -iE 'I/O error|EXT4-fs error|XFS.*(error|shutdown)|Aborting journal|remounting filesystem read-only|Buffer I/O' || true")
        demand(not said.strip(), f"{self.name}: the kernel complains:\n{said}")

    def area_bytes(self):
        """Bytes of the volume, from its status."""
        return self.status()["devices"][0]["size"] * 1024


__all__ = ["NOISE_BYTES", "GuestError", "Node", "Wrong", "demand"]
