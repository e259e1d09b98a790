"""QRBD beside DRBD's kernel module in the same two guests, in turns: see --help and docs/testing-in-guests.md."""
import argparse
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

from harness.guest import GuestError  # noqa: E402 - the path comes first
from harness.node import Node  # noqa: E402
from harness.packages import Missing  # noqa: E402
from harness.pair import Pair  # noqa: E402
from harness.setting import Setting  # noqa: E402

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOCUMENT = os.path.join(REPOSITORY, "docs/performance.md")
BEGIN = "<!-- results of scripts/bench-drbd begin -->"
END = "<!-- results of scripts/bench-drbd end -->"
MIB = 1 << 20
# Name: (in words, fio's options, unit, what of fio's answer).
LOADS = {
    "write-4k-1": ("4 KiB random write, depth 1", "--rw=randwrite --bs=4k --ioengine=psync --iodepth=1", "IOPS"),
    "write-4k-16": ("4 KiB random write, depth 16", "--rw=randwrite --bs=4k --ioengine=libaio --iodepth=16", "IOPS"),
    "write-256k-4": ("256 KiB sequential write, depth 4", "--rw=write --bs=256k --ioengine=libaio --iodepth=4", "MiB/s"),
    "read-4k-16": ("4 KiB random read, depth 16", "--rw=randread --bs=4k --ioengine=libaio --iodepth=16", "IOPS"),
}
# The disk that nobody replicates, DRBD's module, QRBD: each on a disk of its own, all of one kind.
TARGETS = {"disk": "/dev/sdc", "drbd": "/dev/drbd1", "qrbd": "/dev/drbd0"}
DRBD_TOOLS = {"fio": "fio", "drbdadm": "drbd-utils", "drbdsetup": "drbd-utils", "drbdmeta": "drbd-utils",
              "/lib/drbd/drbdadm-84": "drbd-utils", "/lib/drbd/drbdsetup-84": "drbd-utils"}
GOAL, FIRST_STEP = 0.8, 0.4


def say(words):
    print(words, file=sys.stderr, flush=True)


def fio(node, device, options, size_mib, seconds):
    """Figure of one run: IOPS or MiB/s, and the median latency in µs."""
    output = node.run(
        f"fio --name=load --filename={device} {options} --direct=1 --size={size_mib}m --time_based --runtime={seconds} --ramp_time=1 "
        "--randrepeat=0 --norandommap --refill_buffers --output-format=json", 60 + 20 * seconds)
    job = json.loads(output[output.index("{"):])["jobs"][0]
    if job["error"]:
        raise GuestError(f"fio on {device}: error {job['error']}")
    side = job["read" if "read" in options else "write"]
    figure = side["iops"] if "bs=4k" in options else side["bw_bytes"] / MIB
    return figure, side["clat_ns"]["percentile"]["50.000000"] / 1000


class Drbd:
    """DRBD's module: resource d0."""

    def __init__(self, nodes):
        self.nodes = nodes

    def up(self):
        for node in self.nodes:
            node.run("modprobe drbd && drbdadm create-md --force d0 && drbdadm up d0")
        self.nodes[0].until("DRBD is connected", "drbdadm cstate d0 | grep -q '^Connected'")
        self.nodes[0].run("drbdadm -- --clear-bitmap new-current-uuid d0/0 && drbdadm primary d0")

    def disconnect(self):
        self.nodes[0].run("drbdadm disconnect d0")

    def connect(self):
        self.nodes[0].run("drbdadm connect d0")

    def until_equal(self):
        self.nodes[0].until("DRBD's disks are UpToDate", "drbdadm dstate d0 | grep -q UpToDate/UpToDate", 600)


class Qrbd:
    """Ours: resource r0, the user's file."""

    def __init__(self, nodes):
        self.nodes = nodes

    def up(self):
        for node in self.nodes:
            node.start_daemon()
            node.run("qrbdadm create-md r0 && qrbdadm up r0")
        self.nodes[0].until_connected()
        self.nodes[0].run("qrbdadm new-current-uuid --clear-bitmap r0/0")
        self.nodes[0].promote()
        self.nodes[0].until("the block device is there", "[ -b /dev/drbd0 ]")

    def disconnect(self):
        self.nodes[0].run("qrbdadm disconnect r0")

    def connect(self):
        self.nodes[0].run("qrbdadm connect r0")

    def until_equal(self):
        self.nodes[0].until_equal()


def resync(replica, device, dirty_mib):
    """Seconds in which a peer that was away gets so many MiB, from `connect` until both are UpToDate."""
    replica.disconnect()
    replica.nodes[0].run(f"dd if=/host/noise of={device} bs=1M count={dirty_mib} oflag=direct conv=fsync", 300)
    begin = time.monotonic()
    replica.connect()
    replica.until_equal()
    return time.monotonic() - begin


def measure(setting, folder, options):
    pair = Pair(setting, os.path.join(folder, "pair"), disk_mib=options.disk_mib, memory_mib=768, link="stream",
                first_disk_mib=options.disk_mib, more_disks_mib=[options.disk_mib])
    record = {"rounds": options.rounds, "seconds": options.seconds, "disk_mib": options.disk_mib, "figures": {}, "resync": {},
              "dirty_mib": options.dirty_mib, "date": time.strftime("%Y-%m-%d"), "load_before": os.getloadavg()[0]}
    try:
        pair.start()
        nodes = [Node(pair, name) for name in ("node1", "node2")]
        with open(nodes[0].host_file("noise"), "wb") as file:
            file.write(os.urandom(options.dirty_mib * MIB))
        replicas = {"drbd": Drbd(nodes), "qrbd": Qrbd(nodes)}
        for replica in replicas.values():
            replica.up()
        record["kernel"] = nodes[0].run("uname -r").strip()
        found = re.search(r"version: (\S+)", nodes[0].run("cat /proc/drbd"))
        record["drbd"] = found[1] if found else "unknown"
        record["round_trip_ms"] = nodes[0].run("ping -c 20 -i 0.1 -q 192.168.1.11 | tail -n 1").split("/")[3]
        size_mib = options.disk_mib // 2
        for name, device in TARGETS.items():
            say(f"filling {name}")
            nodes[0].run(f"dd if=/host/noise of={device} bs=1M count={min(size_mib, options.dirty_mib)} oflag=direct conv=fsync", 600)
            fio(nodes[0], device, LOADS["write-4k-16"][1], size_mib, options.seconds)
        for turn in range(options.rounds):
            order = list(TARGETS)[turn % len(TARGETS):] + list(TARGETS)[:turn % len(TARGETS)]
            for load, (words, how, unit) in LOADS.items():
                for name in order:
                    figure, median_us = fio(nodes[0], TARGETS[name], how, size_mib, options.seconds)
                    record["figures"].setdefault(load, {}).setdefault(name, []).append([figure, median_us])
                    say(f"round {turn + 1}: {words}: {name} {figure:.0f} {unit}, median {median_us:.0f} us")
            for name, replica in replicas.items():
                took = resync(replica, TARGETS[name], options.dirty_mib)
                record["resync"].setdefault(name, []).append(took)
                say(f"round {turn + 1}: resync of {options.dirty_mib} MiB: {name} {took:.1f} s")
            record["rounds"] = turn + 1
            record["load_after"] = os.getloadavg()[0]
            # After each round: what a failure in a later one must not take away.
            with open(os.path.join(options.output, "bench-drbd.json"), "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
        return record
    except GuestError:
        pair.keep_logs(os.path.join(options.output, "logs"))
        raise
    finally:
        pair.stop()


def middle(values):
    return statistics.median(values)


def spread(values):
    return f"{min(values):.0f} .. {max(values):.0f}"


def ratios(record):
    """QRBD / DRBD of each load: the median of the rounds' own ratios."""
    found = {}
    for load, figures in record["figures"].items():
        found[load] = middle([ours[0] / theirs[0] for ours, theirs in zip(figures["qrbd"], figures["drbd"])])
    found["resync"] = middle([theirs / ours for ours, theirs in zip(record["resync"]["qrbd"], record["resync"]["drbd"])])
    return found


def table(record):
    lines = [
        f"{record['rounds']} rounds of {record['seconds']} s, in turns; Linux {record['kernel']}, DRBD {record['drbd']}; protocol C; round trip "
        f"{record['round_trip_ms']} ms; {record['date']}, load of the machine {record['load_before']:.1f} before and "
        f"{record.get('load_after', 0):.1f} after",
        f"{'':34} {'bare disk':>22} {'DRBD':>22} {'QRBD':>22} {'QRBD / DRBD':>12}",
    ]
    ratio = ratios(record)
    for load, (words, _, unit) in LOADS.items():
        if load not in record["figures"]:
            continue
        cells = []
        for name in TARGETS:
            values = [figure for figure, _ in record["figures"][load][name]]
            cells.append(f"{middle(values):.0f} ({spread(values)})")
        lines.append(f"{words + ', ' + unit:34} " + " ".join(f"{cell:>22}" for cell in cells) + f" {ratio[load]:>12.2f}")
        if load == "write-4k-1":
            cells = [f"{middle([median for _, median in record['figures'][load][name]]):.0f} us" for name in TARGETS]
            lines.append(f"{'  its median latency':34} " + " ".join(f"{cell:>22}" for cell in cells))
    cells = ["", *(f"{middle(record['resync'][name]):.1f} s" for name in ("drbd", "qrbd"))]
    lines.append(f"{'resync of ' + str(record['dirty_mib']) + ' MiB':34} " + " ".join(f"{cell:>22}" for cell in cells) + f" {ratio['resync']:>12.2f}")
    for load in ("write-4k-1", "write-4k-16"):
        if load in ratio:
            word = "goal reached" if ratio[load] >= GOAL else "first step reached" if ratio[load] >= FIRST_STEP else "not reached"
            lines.append(f"P12 {LOADS[load][0]}: {ratio[load]:.2f} of DRBD's IOPS, goal {GOAL}, first step {FIRST_STEP}: {word}")
    return "\n".join(lines) + "\n"


def write_document(record):
    with open(DOCUMENT, encoding="utf-8") as file:
        text = file.read()
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise Missing(f"{DOCUMENT} needs the lines '{BEGIN}' and '{END}', in this order")
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write(text[:begin + len(BEGIN)] + f"\n```text\n{table(record)}```\n" + text[end:])


def interrupted(number, _frame):
    raise SystemExit(128 + number)


def main(arguments):
    target = os.path.abspath(os.environ.get("CARGO_TARGET_DIR") or os.path.join(REPOSITORY, "target"))
    parser = argparse.ArgumentParser(prog="scripts/bench-drbd", description=__doc__)
    parser.add_argument("--programs", default=os.path.join(target, "release"), metavar="DIR", help="where qrbdd and qrbdadm are (release)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--disk-mib", type=int, default=256)
    parser.add_argument("--dirty-mib", type=int, default=48, help="of a resync")
    parser.add_argument("--quick", action="store_true", help="one round of two seconds: shows that everything works")
    parser.add_argument("--output", default=os.path.join(target, "bench-drbd"), metavar="DIR", help="for bench-drbd.json and .txt")
    parser.add_argument("--from", dest="record", metavar="FILE", help="take the record of an earlier run")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    os.makedirs(options.output, exist_ok=True)
    try:
        if options.record:
            with open(options.record, encoding="utf-8") as file:
                record = json.load(file)
        else:
            # In memory if there is enough: the figures are of the replication, not of this machine's disk.
            parent = "/dev/shm" if os.path.isdir("/dev/shm") else "/var/tmp"
            folder = tempfile.mkdtemp(prefix="qrbd-vm.", dir=parent)
            try:
                with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "drbd.conf"), encoding="utf-8") as file:
                    configuration = file.read()
                setting = Setting(cache=os.path.join(target, "vm"), programs=os.path.abspath(options.programs), work=folder, say=say,
                                  tools=DRBD_TOOLS, more_modules=["drbd"], files={"etc/drbd.conf": configuration})
                record = measure(setting, folder, options)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        text = table(record)
        with open(os.path.join(options.output, "bench-drbd.txt"), "w", encoding="utf-8") as file:
            file.write(text)
        print(text, end="")
        if options.write_docs:
            write_document(record)
    except (Missing, GuestError) as error:
        print(f"bench-drbd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
