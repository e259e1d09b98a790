"""What QRBD wants to reach, as ratios of figures of one run, and whether it did.

A goal that needs something that was not measured is left out, never guessed.
"""
from dataclasses import dataclass

from .figures import Figures, ratio
from .loads import LOADS

MIB = 1 << 20
UNITS = {load.name: load for load in LOADS}


@dataclass
class Goal:
    name: str
    text: str
    value: float
    wanted: float
    # "x": at least so many times; "x at most"; "ms" and "MiB": at most.
    unit: str
    # What one has to know to judge it by; not part of the verdict.
    note: str = ""

    @property
    def met(self):
        return self.value >= self.wanted if self.unit == "x" else self.value <= self.wanted

    def line(self):
        unit = self.unit.split()[0]
        decimals = 2 if unit == "x" else 0
        sign = "at least" if self.unit == "x" else "at most"
        verdict = "reached" if self.met else "not reached"
        return f"{self.name:<4} {self.text:<72} {self.value:>8.{decimals}f} {unit:<4} {sign} {self.wanted:.{decimals}f}: {verdict}{self.note and f'; {self.note}'}"


def speed(record, load, peer):
    """Median of a load at a peer, None if it was not measured."""
    samples = record["loads"].get(load, {}).get(peer)
    return Figures(UNITS[load].value(sample) for sample in samples).median if samples else None


def latency(record, load, peer):
    """Median of the rounds' median latency in microseconds."""
    samples = record["loads"].get(load, {}).get(peer)
    return Figures(sample["latency_us"]["p50"] for sample in samples).median if samples else None


def quinn(record, packet, read):
    samples = record.get("quinn", {}).get(str(packet))
    return Figures(read(sample) for sample in samples).median if samples else None


def resynced(samples):
    """Median of resyncs in MB/s."""
    return Figures(sample["bytes"] / sample["seconds"] / 1e6 for sample in samples).median if samples else None


def rate(samples, what="bytes_per_second"):
    """Median of rounds in MB/s."""
    return Figures(sample[what] / 1e6 for sample in samples).median if samples else None


def slowest(*limits):
    """None if one of them was not measured: it might be the one."""
    return None if None in limits else min(limits)


def goals(record):
    found = []

    def goal(name, text, value, wanted, unit="x", note=""):
        if value is not None:
            found.append(Goal(name, text, value, wanted, unit, note))

    def against(load, peer, other):
        return ratio(speed(record, load, peer), speed(record, load, other))

    goal("P1", "4 KiB random write, depth 1: protocol C against plain", against("write-4k-1", "qrbd-c", "plain"), 1.0)
    goal("P2", "4 KiB random write, depth 32: protocol C against plain", against("write-4k-32", "qrbd-c", "plain"), 2.0)
    goal("P3", "1 MiB sequential write, 8972-byte packets: protocol C against plain", against("write-1m-8", "qrbd-c", "plain"), 1.0)
    small = quinn(record, 1452, lambda sample: sample["bytes_per_second"] / 1e6)
    goal("P3b", "1 MiB sequential write, 1452-byte packets: against raw quinn", ratio(speed(record, "write-1m-8", "qrbd-c-1452"), small), 0.9)
    goal("P4", "4 KiB random read, depth 32: protocol C against plain", against("read-4k-32", "qrbd-c", "plain"), 1.5)
    goal("P5", "4 KiB random write, depth 1: protocol A against unconnected", against("write-4k-1", "qrbd-a", "qrbd-alone"), 0.9)

    network = rate(record.get("quinn", {}).get("8972"))
    limit = slowest(speed(record, "write-1m-8", "raw"), network)
    # Both disks are on one device: a resync reads there what it writes there, as a copy does.
    copied = ratio(rate(record.get("copies"), "copied_bytes_per_second"), limit)
    note = "" if copied is None else f"a copy from file to file on this device {copied:.2f} x"
    goal("P6", "resync by bitmap: against the slower of raw disk and raw quinn", ratio(resynced(record.get("resync")), limit), 0.9, note=note)
    memory = record.get("resync-memory", {})
    limit = slowest(rate(memory.get("disk")), network)
    goal("P6m", "P6 in memory: against the slower of raw memory disk and raw quinn", ratio(resynced(memory.get("resync")), limit), 0.9)

    mirrored = {load: against(load.name, "qrbd-c", "qemu-mirror") for load in LOADS if load.writes}
    if None not in mirrored.values():
        worst = min(mirrored, key=mirrored.get)
        # What is there to be won: an unreplicated server, and this device when nothing but two disks are written.
        bounds = {"plain itself": against(worst.name, "plain", "qemu-mirror"), "two raw disks at once": against(worst.name, "raw-two", "qemu-mirror")}
        note = ", ".join([worst.title] + [f"{name} {bound:.2f} x" for name, bound in bounds.items() if bound is not None])
        goal("P7", "every write load: protocol C against QEMU's mirror, the worst of them", mirrored[worst], 2.0, note=note)

    parts = [latency(record, "write-4k-1", "nbdkit-memory"), latency(record, "write-4k-1", "raw")]
    parts.append(quinn(record, 8972, lambda sample: sample["latency_us"]["p50"]))
    ours = latency(record, "write-4k-1", "qrbd-c")
    if None not in parts and ours:
        goal("P8", "4 KiB random write, depth 1: latency against NBD alone + QUIC + disk", ours / sum(parts), 1.1, "x at most")

    if record.get("memory"):
        most = max(record["memory"][node]["most"] for node in ("alice", "bob")) / MIB
        goal("P9", "memory of a daemon, 1 TiB device, under load (short run)", most, 64 + 32, "MiB")
    if record.get("failover"):
        median = Figures(sample["seconds"] * 1000 for sample in record["failover"]).median
        goal("P11", "promotion after the Primary was killed, from the first request", median, 200, "ms")
    return found
