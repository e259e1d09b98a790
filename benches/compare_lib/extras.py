"""What is no load on a running export: QUIC alone, what one disk allows for two copies, a resync, the same with disks in memory, the memory of the
daemons, the death of a Primary."""
import json
import os
import time
from dataclasses import replace

from . import memory as in_memory
from .loads import FILL, LOADS, fio_command, run_load
from .processes import StepFailed
from .replica import LargeDevice, ProtocolC, disk_bytes_for, promote

PACKETS = (8972, 1452)
# A load that touches many extents, and the one that holds the most bytes under way.
MEMORY_LOADS = [load for load in LOADS if load.name in ("write-4k-32", "write-1m-8")]
FAILOVER_LOAD = next(load for load in LOADS if load.name == "write-4k-32")
SEQUENTIAL_LOAD = next(load for load in LOADS if load.name == "write-1m-8")
SYNC_SECONDS = 300


def raw_quinn(context, packet_bytes, seconds):
    command = [f"{context.programs}/qrbd-raw-quinn", "--packet", packet_bytes, "--seconds", seconds]
    sample = json.loads(context.processes.run("raw quinn", command, 60 + 4 * seconds))
    if sample["packet_bytes"] != packet_bytes:
        raise StepFailed(f"QUIC found packets of {sample['packet_bytes']} bytes, not {packet_bytes}")
    return sample


def two_copies(context, rounds, seconds):
    """Both nodes' disks are on one device here. What that device allows: each of two files written at once, and one copied to the other, which is
    what a resync does with it."""
    files = [os.path.join(context.directory, f"copy.{number}") for number in range(2)]
    target = ["--ioengine=io_uring", "--direct=1", f"--filename_format={context.directory}/copy.$jobnum", "--numjobs=2", "--group_reporting"]
    command = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-t", "none", "-T", "none", "-m", 16, "-W", *files]
    samples = []
    try:
        run_load(context.processes, FILL, target, context.size_bytes, None)
        for number in range(rounds):
            both = run_load(context.processes, SEQUENTIAL_LOAD, target, context.size_bytes, seconds, number + 1)
            begun = time.monotonic()
            context.processes.run("qemu-img", command, SYNC_SECONDS)
            copied = context.size_bytes / (time.monotonic() - begun)
            samples.append({"written_bytes_per_second": both["bytes_per_second"] / 2, "copied_bytes_per_second": copied})
        return samples
    finally:
        for file in files:
            if os.path.exists(file):
                os.unlink(file)


def resync(pair):
    """Time from `connect` until both copies are whole, after every block was written while the peer was away."""
    size = pair.context.size_bytes
    pair.admin("bob", "disconnect", "r0")
    pair.wait_until("alice is alone", lambda: pair.state("alice")["replication"] == "Off")
    run_load(pair.context.processes, FILL, pair.target(), size, None)
    marked = pair.state("alice")["out_of_sync"] * 1024
    if marked < size:
        raise StepFailed(f"{marked} bytes are marked after {size} were written alone")
    begun = time.monotonic()
    pair.admin("bob", "connect", "r0")
    # The daemon tells when it is done: to ask it every few milliseconds takes a good part of two cores.
    pair.admin("alice", "wait-sync", "--wfc-timeout", SYNC_SECONDS, "r0", limit_seconds=SYNC_SECONDS)
    pair.wait_until("the resync is done", pair.healthy, SYNC_SECONDS, pause_seconds=0.01)
    return {"bytes": marked, "seconds": time.monotonic() - begun}


class MemoryPair(ProtocolC):
    name = "qrbd-memory"


def resync_in_memory(context, rounds, seconds):
    """The resync with both nodes' disks in memory, and what one such disk writes. A machine without room for it has a reason in place of figures."""
    reason = in_memory.why_not(2 * disk_bytes_for(context.size_bytes))
    if reason is not None:
        return {"not_measured": reason}
    with in_memory.folder() as directory:
        # The file goes before the pair comes: two disks at a time.
        disk = raw_disk(context, os.path.join(directory, "raw"), rounds, seconds)
        pair = MemoryPair(replace(context, directory=directory))
        try:
            pair.start()
            run_load(context.processes, FILL, pair.target(), context.size_bytes, None)
            return {"disk": disk, "resync": [resync(pair) for _ in range(rounds)]}
        finally:
            stop(pair)


def raw_disk(context, file, rounds, seconds):
    """The sequential load on a file itself, after it was filled."""
    target = ["--ioengine=io_uring", "--direct=1", f"--filename={file}"]
    try:
        run_load(context.processes, FILL, target, context.size_bytes, None)
        return [run_load(context.processes, SEQUENTIAL_LOAD, target, context.size_bytes, seconds, number + 1) for number in range(rounds)]
    finally:
        if os.path.exists(file):
            os.unlink(file)


def memory(context, seconds):
    """Resident memory of both daemons of a pair with 1 TiB, after loads on a part of it."""
    pair = LargeDevice(context)
    try:
        pair.start()
        for load in MEMORY_LOADS:
            run_load(context.processes, load, pair.target(), context.size_bytes, seconds)
        return {"device_bytes": pair.disk_bytes, **{node: pair.memory_bytes(node) for node in pair.nodes}}
    finally:
        stop(pair)


class FailoverPair(ProtocolC):
    name = "qrbd-failover"
    disk_bytes = 260 << 20


def failover(context, rounds):
    """Kills the Primary under load and promotes the other node at once, `rounds` times, each node in turn."""
    pair = FailoverPair(context)
    samples = []
    try:
        pair.start()
        for _ in range(rounds):
            dying, survivor = pair.primary, "bob" if pair.primary == "alice" else "alice"
            output = f"{pair.directory}/fio.json"
            load = context.processes.start("fio.failover", fio_command(FAILOVER_LOAD, pair.target(), 256 << 20, 30, output, 1))
            time.sleep(1)
            if load.poll() is not None:
                raise StepFailed(f"the load ended by itself:\n{context.processes.end_of_log('fio.failover')}")
            pair.kill_node(dying)
            seconds, requests = promote(pair, survivor)
            samples.append({"seconds": seconds, "requests": requests})
            context.processes.end(load)
            pair.start_node(dying)
            pair.wait_until("the killed node is whole again", lambda: pair.healthy(survivor), 60)
        return samples
    finally:
        stop(pair)


def stop(pair):
    for process in list(pair.processes.values()):
        pair.context.processes.end(process)
