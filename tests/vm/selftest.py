"""The judgements of these tests, on what is wrong on purpose: none may call it right. Needs no guest."""
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

from bench import BEGIN, END, ratios, table  # noqa: E402 - the path comes first
from harness.initramfs import Archive  # noqa: E402
from harness.node import Node, Wrong, demand  # noqa: E402
from harness.pair import BLOCK, MIB, Pair  # noqa: E402


class Silent:
    """A guest that answers everything with success and nothing."""

    def run(self, _script, _limit_s=0):
        return ""

    def try_run(self, _script, _limit_s=0):
        return 0, ""

    def console_end(self):
        return ""


def refused(judgement):
    try:
        judgement()
    except Wrong:
        return True
    return False


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def check(folder):
    pair = Pair(None, folder, disk_mib=4)
    for guest in ("node1", "node2"):
        pair.guests[guest] = Silent()
    one, two = Node(pair, "node1"), Node(pair, "node2")

    demand(pair.differences(4 * MIB) == "", "equal disks are called different")
    with open(pair.images["node2"][1], "r+b") as disk:
        disk.seek(3 * MIB + 5 * BLOCK + 17)
        disk.write(b"x")
    demand("1 blocks" in pair.differences(4 * MIB), "one wrong byte is not noticed")
    demand(pair.differences(3 * MIB) == "", "bytes behind the volume's end are compared")

    demand(refused(lambda: two.demand_lines(one)), "a load of which nothing was acknowledged proves something")
    write(one.host_file("acknowledged"), "1 10.00\n2 10.50\n3 17.25\n")
    write(two.host_file("lines"), "node1 00000001\nnode1 00000002\nnode1 00000003\nnode1 00000004\n")
    demand(two.demand_lines(one) == 3, "lines that are there are not found")
    write(two.host_file("lines"), "node1 00000001\nnode1 00000003\nnode2 00000002\n")
    demand(refused(lambda: two.demand_lines(one)), "a missing line is not noticed")
    write(two.host_file("lines"), "node1 00000001\nnode1 0000\0\0\0\0\nnode1 00000003\n")
    demand(refused(lambda: two.demand_lines(one)), "a damaged line is not noticed")
    demand(one.longest_stall() == 6.75, "the longest stall is another one")

    write(one.host_file("errors"), "writer: dd: writing '/data/busy.1': Input/output error\n")
    demand(refused(one.no_errors), "an I/O error is not noticed")

    archive = Archive()
    archive.file("etc/one/two", b"three")
    path = os.path.join(folder, "archive")
    archive.write(path)
    with open(path, "rb") as file:
        data = file.read()
    demand(data.startswith(b"070701") and data.count(b"070701") == 4 and b"TRAILER!!!" in data and len(data) % 4 == 0, "no archive")

    figures = {"write-4k-1": {"disk": [[100, 9]] * 3, "drbd": [[50, 20], [40, 25], [60, 17]], "qrbd": [[25, 40], [30, 33], [60, 17]]}}
    record = {"figures": figures, "resync": {"drbd": [2.0], "qrbd": [4.0]}, "rounds": 3, "seconds": 1, "kernel": "k", "drbd": "8",
              "round_trip_ms": "1", "date": "d", "load_before": 0.0, "dirty_mib": 1}
    demand(ratios(record) == {"write-4k-1": 0.75, "resync": 0.5}, "wrong ratios")
    demand("0.75 of DRBD's IOPS, goal 0.8, first step 0.4: first step reached" in table(record), "wrong verdict")
    demand(BEGIN != END, "markers")


def main():
    with tempfile.TemporaryDirectory(prefix="qrbd-vm.") as folder:
        check(folder)
    print("self-test: what is wrong is noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
