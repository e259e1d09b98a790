"""What is measured on a pair."""
import glob
import os
import statistics
import time

from compare_lib.loads import Load, fio_command, run_load
from compare_lib.processes import StepFailed

LATENCY = Load("latency", "4 KiB random write, depth 1", "randwrite", "4k", 1, "IOPS")
# Enough under way for the longest link: 16 MiB.
SEQUENTIAL = Load("sequential", "256 KiB sequential write, depth 64", "write", "256k", 64, "MB/s")
FILL = Load("fill", "overwrite", "write", "1M", 8, "MB/s")
BURST = Load("burst", "64 KiB write, depth 1, as fast as it goes", "write", "64k", 1, "MB/s")
SYNC_SECONDS = 300
MIB = 1 << 20


def latency_ms(pair, seconds):
    sample = run_load(pair.context.processes, LATENCY, pair.target(), pair.context.size_bytes, seconds)
    return sample["latency_us"]["p50"] / 1000


def sequential(pair, seconds):
    """Payload bytes per second, as the client sees them."""
    before = pair.line()[-1][1]
    sample = run_load(pair.context.processes, SEQUENTIAL, pair.target(), pair.context.size_bytes, seconds)
    return {"bytes_per_second": sample["bytes_per_second"], **losses(before, pair.line()[-1][1])}


def losses(before, after):
    sent = after["packets"] - before["packets"]
    overflowed = after["overflowed"] - before["overflowed"]
    return {"overflowed_percent": 100 * overflowed / max(sent + overflowed, 1), "most_queued_bytes": after["most_queued_bytes"]}


def resync(pair, size_bytes):
    """Payload bytes per second while the link is in use, and the whole time from `connect`."""
    pair.disconnect()
    run_load(pair.context.processes, FILL, pair.target(), size_bytes, None)
    marked = pair.state("alice")["out_of_sync"] * 1024
    if marked < size_bytes:
        raise StepFailed(f"{marked} bytes are marked after {size_bytes} were written alone")
    samples = len(pair.line())
    begun = time.monotonic()
    pair.admin("bob", "connect", "r0")
    pair.wait_until("the resync is done", pair.healthy, SYNC_SECONDS, pause_seconds=0.02)
    whole = time.monotonic() - begun
    time.sleep(0.1)
    line = pair.line()[samples - 1 :]
    return {
        "bytes_per_second": 0.9 * marked / middle_seconds(line),
        "seconds": whole,
        "marked_bytes": marked,
        **losses(line[0][1], line[-1][1]),
    }


def middle_seconds(line):
    """From 5 % to 95 % of the bytes: without greetings and goodbyes, which take round trips and no bandwidth."""
    first, last = line[0][1]["bytes"], line[-1][1]["bytes"]

    def when(part):
        wanted = first + part * (last - first)
        for (before, low), (after, high) in zip(line, line[1:]):
            if high["bytes"] >= wanted:
                return before + (after - before) * (wanted - low["bytes"]) / max(high["bytes"] - low["bytes"], 1)
        raise StepFailed("the relay saw no data")

    return max(when(0.95) - when(0.05), 1e-9)


def burst(pair, seconds):
    """Protocol A: writes as fast as they are answered, each one's time. Where the slowing begins, how smooth it is after that."""
    prefix = pair.path("burst")
    output = pair.path("fio.json")
    command = fio_command(BURST, pair.target(), pair.context.size_bytes, seconds, output, 1)
    command = [word for word in command if not word.startswith("--ramp_time")]
    command += [f"--write_lat_log={prefix}", "--log_avg_msec=0"]
    pair.context.processes.run("fio burst", command, 60 + 2 * seconds)
    (log,) = glob.glob(prefix + "_clat*.log")
    with open(log, encoding="utf-8") as file:
        rows = [line.split(",") for line in file]
    os.unlink(log)
    # When it ended (ms), how long it took (ms).
    writes = [(float(row[0]), float(row[1]) / 1e6) for row in rows]
    if len(writes) < 100:
        raise StepFailed(f"{len(writes)} writes in {seconds} s")
    return describe_burst(writes, 64 << 10, pair.link)


def describe_burst(writes, block_bytes, link):
    # What the link carries in the time of a write.
    paced_ms = block_bytes / link.bytes_per_second * 1000
    # Slowed: what went in during the last 32 writes is no more than half again what the link carries.
    bound = next((n for n in range(32, len(writes)) if writes[n][0] - writes[n - 32][0] >= 32 * paced_ms / 1.5), None)
    free = [took for _, took in (writes if bound is None else writes[: max(bound - 32, 1)])]
    found = {"local_p50_ms": statistics.median(free), "local_writes": len(free), "bound_bytes": None}
    if bound is not None:
        after = [took for _, took in writes[bound:]]
        seconds = (writes[-1][0] - writes[bound][0]) / 1000
        found.update(
            bound_bytes=bound * block_bytes,
            after_p50_ms=statistics.median(after) if after else 0,
            after_most_ms=max(after, default=0),
            after_bytes_per_second=len(after) * block_bytes / seconds if seconds > 0 else 0,
            paced_ms=paced_ms,
        )
    return found
