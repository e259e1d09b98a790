"""The command line: what is measured on which link, table, JSON, verdicts."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from compare_lib import system
from compare_lib.main import Context
from compare_lib.processes import Interrupted, Processes, StepFailed, interrupt_on_signals

from . import measure
from .pair import Link, LinkPair

MIB = 1 << 20
ROUND_TRIPS_MS = (1, 10, 50)
RATES = (100, 1000)
PROGRAMS = ("qrbdd", "qrbdadm", "qrbd-relay")
FILL_GOAL = 0.9
# With one packet in a hundred lost at random.
LOSSY_GOAL = 0.5
PARTS = ("latency", "throughput", "loss", "burst")


def say(text):
    print(text, file=sys.stderr, flush=True)


def arguments(words):
    parser = argparse.ArgumentParser(
        prog="benches/links",
        description="Measures a pair of daemons over links with 1, 10 and 50 ms round trip and 100 and 1000 Mbit/s: write latency of the "
        "three protocols, sequential writes and resync against the link's rate, a burst of protocol A, 1 % loss. Builds the release "
        "programs; needs fio and no root. On a busy machine: chrt -r 5 benches/links.",
        epilog="Exit code 1 if something could not be measured, 2 if a goal was missed.",
    )
    parser.add_argument("--quick", action="store_true", help="under two minutes: fewer links, shorter runs")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)} (default all)")
    parser.add_argument("--round-trips", metavar="MS,…", help="default 1,10,50; quick: 1,50")
    parser.add_argument("--rates", metavar="MBIT,…", help="default 100,1000")
    parser.add_argument("--seconds", type=float, help="of each load (default 6; quick: 2.5)")
    parser.add_argument("--queue", type=float, default=25, metavar="MS", help="what the link's queue holds, in time (default 25)")
    parser.add_argument("--binaries", metavar="DIR", help="use the programs in this folder, build nothing")
    parser.add_argument("--directory", metavar="DIR", help="where to put the disks, in a folder that is removed at the end")
    parser.add_argument("--output", metavar="FILE", help="the record (default: links.json in cargo's target folder)")
    options = parser.parse_args(words)
    options.parts = options.parts.split(",")
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    default = ROUND_TRIPS_MS if not options.quick else (ROUND_TRIPS_MS[0], ROUND_TRIPS_MS[-1])
    options.round_trips = [float(text) for text in options.round_trips.split(",")] if options.round_trips else list(default)
    options.rates = [int(text) for text in options.rates.split(",")] if options.rates else list(RATES)
    options.seconds = options.seconds or (2.5 if options.quick else 6)
    return options


def build():
    say("building the release programs (several minutes the first time)")
    path = os.path.expanduser("~/.cargo/bin") + os.pathsep + os.environ.get("PATH", "")
    command = "cargo build --locked --release -p qrbdd -p qrbd-tools -p qrbd-benches --features qrbd-benches/relay --bins".split()
    if subprocess.run(command, cwd=system.ROOT, env={**os.environ, "PATH": path}, check=False).returncode != 0:
        raise StepFailed(f"the build failed: {' '.join(command)}")
    return os.path.join(system.target_directory(), "release")


class Run:
    def __init__(self, context, options):
        self.context = context
        self.options = options
        self.rows = []
        self.verdicts = []
        self.failures = []

    def with_pair(self, link, protocol, work):
        pair = None
        try:
            pair = LinkPair(self.context, link, protocol)
            pair.start()
            work(pair)
        except StepFailed as error:
            say(f"FAILED: protocol {protocol}, {link.name}: {error}")
            self.failures.append(f"protocol {protocol}, {link.name}: {str(error).splitlines()[0]}")
        finally:
            if pair is not None:
                pair.stop()
                shutil.rmtree(pair.directory, ignore_errors=True)

    def row(self, what, link, text, values, verdict=None):
        """`verdict`: (reached, goal)."""
        mark = "" if verdict is None else ("  ok" if verdict[0] else f"  MISSED: {verdict[1]}")
        print(f"{what:<22} {link.name:<28} {text}{mark}", flush=True)
        self.rows.append({"what": what, "link": link.__dict__, **values})
        if verdict is not None:
            self.verdicts.append({"what": what, "link": link.name, "reached": verdict[0], "goal": verdict[1], "found": text})

    def link(self, round_trip, rate, loss=0):
        return Link(round_trip, rate, loss, self.options.queue)

    def latency(self):
        for round_trip in self.options.round_trips:
            link = self.link(round_trip, max(self.options.rates))
            for protocol in "ABC":
                self.with_pair(link, protocol, lambda pair: self.latency_of(pair))

    def latency_of(self, pair):
        link, seconds = pair.link, min(self.options.seconds, 3)
        found = measure.latency_ms(pair, seconds)
        values = {"protocol": pair.protocol, "p50_ms": found}
        what = f"write latency, {pair.protocol}"
        if pair.protocol == "A":
            pair.disconnect()
            alone = measure.latency_ms(pair, seconds)
            values["unconnected_p50_ms"] = alone
            goal = 2 * alone + 0.1
            self.row(what, link, f"{found:8.2f} ms (unconnected {alone:.2f})", values, (found <= goal, f"≤ {goal:.2f} ms: local speed"))
        else:
            goal = 1.1 * link.round_trip_ms + 1
            self.row(what, link, f"{found:8.2f} ms", values, (found <= goal, f"≤ {goal:.2f} ms: one round trip"))

    def throughput(self, loss=0, wanted=FILL_GOAL):
        for rate in self.options.rates:
            for round_trip in self.options.round_trips if not loss else (10,):
                self.with_pair(self.link(round_trip, rate, loss), "C", lambda pair: self.throughput_of(pair, wanted))

    def throughput_of(self, pair, wanted):
        link, seconds = pair.link, self.options.seconds
        rate = link.bytes_per_second
        size = max(min(int(rate * seconds) // MIB * MIB, self.context.size_bytes), 8 * MIB)
        for what, found in (("sequential writes", measure.sequential(pair, seconds)), ("resync", measure.resync(pair, size))):
            part = found["bytes_per_second"] / rate
            text = f"{found['bytes_per_second'] / 1e6:8.1f} MB/s = {100 * part:3.0f} %, overflow {found['overflowed_percent']:.2f} %"
            if "seconds" in found:
                text += f", whole {found['marked_bytes'] / found['seconds'] / rate * 100:.0f} %"
            self.row(what, link, text, {**found, "part": part}, (part >= wanted, f"≥ {100 * wanted:.0f} % of the link"))

    def loss(self):
        self.throughput(1, LOSSY_GOAL)

    def burst(self):
        for round_trip in self.options.round_trips:
            self.with_pair(self.link(round_trip, min(self.options.rates)), "A", self.burst_of)

    def burst_of(self, pair):
        found = measure.burst(pair, max(self.options.seconds, 4))
        if found["bound_bytes"] is None:
            self.row("burst, A", pair.link, f"{found['local_p50_ms']:8.2f} ms, never slowed", found, (False, "slowed at the bound"))
            return
        stall_goal = 4 * pair.link.round_trip_ms + 4 * found["paced_ms"]
        text = (
            f"{found['local_p50_ms']:8.2f} ms up to {found['bound_bytes'] / MIB:.0f} MiB, then {found['after_p50_ms']:.1f} ms, "
            f"longest {found['after_most_ms']:.0f} ms, {found['after_bytes_per_second'] / 1e6:.1f} MB/s"
        )
        reached = found["after_most_ms"] <= stall_goal
        self.row("burst, A", pair.link, text, found, (reached, f"no stall over {stall_goal:.0f} ms"))


def run(options):
    if shutil.which("fio") is None:
        raise StepFailed("fio is missing: install it (apt-get install fio)")
    programs = os.path.abspath(options.binaries or build())
    for program in PROGRAMS:
        if not os.access(os.path.join(programs, program), os.X_OK):
            raise StepFailed(f"{os.path.join(programs, program)} is missing: give the folder of a release build to --binaries, or none")
    size_bytes = 1024 * MIB if not options.quick else 320 * MIB
    directory = system.make_directory(options.directory, 2 * size_bytes + 64 * MIB)
    begun = time.monotonic()
    processes = Processes(directory)
    try:
        measured = Run(Context(processes, directory, programs, size_bytes), options)
        environment = system.describe(directory)
        for part in PARTS:
            if part in options.parts:
                getattr(measured, part)()
        return measured, {
            "format": 1,
            "environment": environment,
            "minutes": round((time.monotonic() - begun) / 60, 1),
            "rows": measured.rows,
            "verdicts": measured.verdicts,
            "failures": measured.failures,
        }
    finally:
        processes.end_all()
        shutil.rmtree(directory, ignore_errors=True)


def main(words):
    options = arguments(words)
    interrupt_on_signals()
    try:
        measured, record = run(options)
        output = options.output or os.path.join(system.target_directory(), "links.json")
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        with open(output, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    except (StepFailed, OSError) as error:
        say(f"links: {error}")
        return 1
    except (KeyboardInterrupt, Interrupted):
        say("interrupted; everything that was started is ended")
        return 130
    missed = [verdict for verdict in measured.verdicts if not verdict["reached"]]
    print(f"{len(measured.verdicts) - len(missed)} of {len(measured.verdicts)} goals reached, {record['minutes']} minutes, record: {output}")
    for verdict in missed:
        print(f"MISSED {verdict['what']}, {verdict['link']}: {verdict['found'].strip()}; goal {verdict['goal']}")
    for failure in measured.failures:
        print(f"FAILED {failure}")
    return 1 if measured.failures else 2 if missed else 0
