"""The loads, and fio, which produces them."""
import json
import os
from dataclasses import dataclass

from .processes import StepFailed

FIO_START_SECONDS = 60


@dataclass(frozen=True)
class Load:
    name: str
    title: str
    pattern: str
    block: str
    depth: int
    # "IOPS" or "MB/s": what the table shows.
    unit: str
    # A flush after each write.
    flush: bool = False

    @property
    def writes(self):
        return "write" in self.pattern

    def value(self, sample):
        return sample["iops"] if self.unit == "IOPS" else sample["bytes_per_second"] / 1e6


LOADS = [
    Load("write-4k-1", "4 KiB random write, depth 1", "randwrite", "4k", 1, "IOPS"),
    Load("write-4k-32", "4 KiB random write, depth 32", "randwrite", "4k", 32, "IOPS"),
    Load("write-64k-8", "64 KiB random write, depth 8", "randwrite", "64k", 8, "MB/s"),
    Load("write-1m-8", "1 MiB sequential write, depth 8", "write", "1M", 8, "MB/s"),
    Load("read-4k-32", "4 KiB random read, depth 32", "randread", "4k", 32, "IOPS"),
    Load("write-4k-1-flush", "4 KiB random write, depth 1, a flush after each", "randwrite", "4k", 1, "IOPS", flush=True),
]
FILL = Load("fill", "full overwrite", "write", "1M", 8, "MB/s")
WARM = Load("warm", "everything read once", "read", "1M", 8, "MB/s")


def fio_command(load, target, size_bytes, seconds, output, seed):
    """`target` says where: fio's words for a file or for an NBD export. `seconds` None: once over the whole size."""
    command = ["fio", f"--name={load.name}", *target, f"--rw={load.pattern}", f"--bs={load.block}", f"--iodepth={load.depth}"]
    # Random bytes that cannot be compressed are fio's default; other places and other bytes in each round.
    command += [f"--size={size_bytes}", f"--randseed={seed}", "--randrepeat=0", "--norandommap"]
    if load.flush:
        command.append("--fsync=1")
    if seconds is not None:
        command += ["--time_based", f"--runtime={round(seconds * 1000)}ms", f"--ramp_time={round(min(1, seconds / 5) * 1000)}ms"]
    return command + ["--thread", "--eta=never", "--output-format=json", f"--output={output}"]


def run_load(processes, load, target, size_bytes, seconds, seed=1):
    """Runs a load once and returns its figures."""
    output = os.path.join(processes.directory, "fio.json")
    limit = FIO_START_SECONDS + (2 * seconds if seconds is not None else 120)
    processes.run("fio", fio_command(load, target, size_bytes, seconds, output, seed), limit)
    with open(output, encoding="utf-8") as file:
        sample = read_sample(file.read(), load)
    os.unlink(output)
    return sample


def read_sample(text, load):
    """The figures in fio's JSON, which lines for people may precede; of several jobs the mean of each."""
    try:
        jobs = json.loads(text[text.index("{"):])["jobs"]
        return mean_sample([read_job(job, load) for job in jobs])
    except (ValueError, KeyError, IndexError) as error:
        raise StepFailed(f"fio's output is not understood ({error!r}): {text[:500]}") from None


def read_job(job, load):
    side = job["write" if load.writes else "read"]
    if job["error"] != 0:
        raise StepFailed(f"fio reports error {job['error']}")
    if side["total_ios"] == 0:
        raise StepFailed("fio finished no operation")
    percentiles = side["clat_ns"].get("percentile", {})
    return {
        "iops": side["iops"],
        "bytes_per_second": side["bw_bytes"],
        "latency_us": {
            "mean": side["lat_ns"]["mean"] / 1000,
            "p50": percentiles.get("50.000000", 0) / 1000,
            "p99": percentiles.get("99.000000", 0) / 1000,
        },
    }


def mean_sample(samples):
    first, count = samples[0], len(samples)
    mean = {key: sum(sample[key] for sample in samples) / count for key in ("iops", "bytes_per_second")}
    latencies = {key: sum(sample["latency_us"][key] for sample in samples) / count for key in first["latency_us"]}
    return {**mean, "latency_us": latencies}
