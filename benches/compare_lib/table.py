"""The record of a run as text."""
from .figures import Figures, number, ratio, times
from .goals import goals, latency, quinn, speed
from .loads import LOADS
from .peers import GUARANTEES

REFERENCE = "plain"


def load_rows(record, load):
    """(peer's name, title, figures, ratio to plain, p50, p99) of each peer that was measured."""
    reference = speed(record, load.name, REFERENCE)
    rows = []
    for peer in record["peers"]:
        samples = record["loads"].get(load.name, {}).get(peer["name"])
        if not samples:
            continue
        figures = Figures(load.value(sample) for sample in samples)
        p99 = Figures(sample["latency_us"]["p99"] for sample in samples).median
        rows.append((peer, figures, ratio(figures.median, reference), latency(record, load.name, peer["name"]), p99))
    return rows


def table(record):
    lines = [heading(record), ""]
    for load in LOADS:
        rows = load_rows(record, load)
        if not rows:
            continue
        lines.append(f"{load.title} ({load.unit})")
        lines.append(f"  {'':<38} {'median':>9} {'least':>9} {'most':>9} {'to plain':>9} {'p50 us':>9} {'p99 us':>9}")
        for peer, figures, to_plain, p50, p99 in rows:
            shown = [number(figures.median), number(figures.least), number(figures.most), times(to_plain), number(p50), number(p99)]
            lines.append(f"  {peer['title']:<38} " + " ".join(f"{cell:>9}" for cell in shown))
        lines.append("")
    lines += references(record)
    lines += guarantees(record)
    reached = goals(record)
    if reached:
        head = "Goals" if record["options"]["rounds"] >= 5 else "Goals (this run is too short to judge by)"
        lines += [head, *(f"  {goal.line()}" for goal in reached), ""]
    if record["failures"]:
        lines += ["NOT MEASURED", *(f"  {failure}" for failure in record["failures"]), ""]
    return "\n".join(lines)


def heading(record):
    machine, options = record["environment"], record["options"]
    text = [
        f"{machine['processor']}, {machine['cores']} cores, kernel {machine['kernel']}, {machine['file system']}; {machine['date']}",
        f"QRBD {machine['qrbd']}; {machine['qemu']}; {machine['nbdkit']}; {machine['fio']}",
        f"{options['rounds']} rounds in turns, {options['runtime']} s for each load, {options['size_bytes'] >> 20} MiB, after a full overwrite; "
        "both nodes and the load on this machine",
        f"other load on the machine: {machine['load at the start']} runnable at the start",
    ]
    if options["rounds"] < 5:
        text.append("fewer than five rounds: this run shows that everything works; its figures are not for quoting")
    return "\n".join(text)


def references(record):
    lines = []
    for packet in record.get("quinn", {}):
        rate = quinn(record, packet, lambda sample: sample["bytes_per_second"] / 1e6)
        p50 = quinn(record, packet, lambda sample: sample["latency_us"]["p50"])
        p99 = quinn(record, packet, lambda sample: sample["latency_us"]["p99"])
        rows = f"{number(rate)} MB/s; 4 KiB and its answer: p50 {number(p50)} us, p99 {number(p99)} us"
        lines.append(f"  raw quinn, {packet}-byte packets: one stream {rows}")
    if record.get("copies"):
        written, copied = (
            Figures(sample[what] / 1e6 for sample in record["copies"]) for what in ("written_bytes_per_second", "copied_bytes_per_second")
        )
        spread = f"({number(written.least)} .. {number(written.most)})"
        lines.append(f"  both disks are on one device; two files written at once, 1 MiB sequential: each {number(written.median)} MB/s {spread}")
        lines.append(f"  and a file copied to another one there: {number(copied.median)} MB/s ({number(copied.least)} .. {number(copied.most)})")
    if record.get("resync"):
        lines.append(f"  resync of {resyncs(record['resync'])}")
    in_memory = record.get("resync-memory", {})
    if "not_measured" in in_memory:
        lines.append(f"  resync with both disks in memory: not measured: {in_memory['not_measured']}")
    elif in_memory:
        rate = Figures(sample["bytes_per_second"] / 1e6 for sample in in_memory["disk"])
        lines.append(f"  a disk in memory, 1 MiB sequential: {number(rate.median)} MB/s ({number(rate.least)} .. {number(rate.most)})")
        lines.append(f"  both disks in memory: resync of {resyncs(in_memory['resync'])}")
    if record.get("memory"):
        memory = record["memory"]
        shown = [f"{node} {memory[node]['most'] / 2**20:.0f} MiB" for node in ("alice", "bob")]
        lines.append(f"  memory of the daemons, {memory['device_bytes'] >> 40} TiB device, most under load: {', '.join(shown)}")
    if record.get("failover"):
        found = Figures(sample["seconds"] * 1000 for sample in record["failover"])
        lines.append(
            f"  promotion after the Primary was killed: {number(found.median)} ms ({number(found.least)} .. {number(found.most)}), "
            f"{max(sample['requests'] for sample in record['failover'])} requests at most"
        )
    return ["References and the rest", *lines, ""] if lines else []


def resyncs(samples):
    rate = Figures(sample["bytes"] / sample["seconds"] / 1e6 for sample in samples)
    size = f"{samples[0]['bytes'] >> 20} MiB, from connect to both whole"
    return f"{size}: {number(rate.median)} MB/s ({number(rate.least)} .. {number(rate.most)})"


def guarantees(record):
    """One row for each peer, as wide as its words need."""
    rows = [["What each guarantees", *GUARANTEES]]
    rows += [[peer["title"], *(peer["guarantees"][name] for name in GUARANTEES)] for peer in record["peers"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*lines, ""]
