"""The order of a run: what is needed, the peers, the loads in turns, the rest, the report."""
import argparse
import json
import os
import shutil
import signal
import sys
import time
import unittest
from dataclasses import asdict, dataclass

from . import extras, system
from .document import DOCUMENT, write_document
from .figures import number
from .goals import goals
from .loads import FILL, LOADS, WARM, run_load
from .peers import NbdkitFile, NbdkitMemory, Plain, QemuMirror, RawDisk, TwoRawDisks
from .picture import picture
from .processes import Interrupted, Processes, StepFailed, interrupt_on_signals
from .replica import Alone, ProtocolA, ProtocolB, ProtocolC, SmallPackets
from .table import table

PEERS = [RawDisk, TwoRawDisks, Plain, NbdkitFile, NbdkitMemory, QemuMirror, Alone, ProtocolA, ProtocolB, ProtocolC, SmallPackets]
EXTRAS = ["quinn", "copies", "resync", "resync-memory", "memory", "failover"]
MIB = 1 << 20


@dataclass
class Context:
    processes: Processes
    directory: str
    programs: str
    size_bytes: int


def say(words):
    print(words, file=sys.stderr, flush=True)


def names(known):
    def parse(text):
        wanted = [name for name in text.split(",") if name]
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return wanted

    return parse


def within(least, most, kind):
    def parse(text):
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be within {least} .. {most}")
        return value

    parse.__name__ = "number"
    return parse


def arguments(words):
    peers, loads = [peer.name for peer in PEERS], [load.name for load in LOADS]
    parser = argparse.ArgumentParser(
        prog="benches/compare",
        description="Compares QRBD with plain qemu-nbd, nbdkit, QEMU's mirror, the raw disk and raw QUIC, in turns on this machine. "
        "Installs the peers if they are missing (apt) and builds the release programs.",
        epilog="The record, the table and the picture go to --output; exit code 1 if something could not be measured.",
    )
    parser.add_argument("--quick", action="store_true", help="under two minutes: shows that everything works, not how fast it is")
    parser.add_argument("--rounds", type=within(1, 1000, int), help="rounds of each load (default 5; quick: 1)")
    parser.add_argument("--runtime", type=within(0.2, 600, float), metavar="SECONDS", help="of each load in a round (default 3; quick: 0.4)")
    parser.add_argument("--size", type=within(64, 65536, int), metavar="MIB", help="of each device (default 1024; quick: 128)")
    parser.add_argument("--loads", type=names(loads), metavar="LOAD,…", default=loads, help=f"some of {', '.join(loads)}")
    parser.add_argument("--peers", type=names(peers), metavar="PEER,…", default=peers, help=f"some of {', '.join(peers)}")
    parser.add_argument("--extras", type=names(EXTRAS), metavar="EXTRA,…", help=f"some of {', '.join(EXTRAS)} (default all; '' for none)")
    parser.add_argument("--binaries", metavar="DIR", help="use the programs in this folder, build nothing")
    parser.add_argument("--directory", metavar="DIR", help="where to put the disks, in a folder that is removed at the end (default: TMPDIR, /var/tmp)")
    parser.add_argument("--output", metavar="DIR", help="where the results go (default: compare/ in cargo's target folder)")
    parser.add_argument("--from", dest="record", metavar="FILE", help="measure nothing: report this record (compare.json of a run)")
    parser.add_argument("--write-docs", action="store_true", help=f"put the results into {DOCUMENT}")
    parser.add_argument("--self-test", action="store_true", help="test statistics, tables and picture; measures nothing")
    options = parser.parse_args(words)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.runtime = options.runtime or (0.4 if options.quick else 3)
    options.size = options.size or (128 if options.quick else 1024)
    options.extras = EXTRAS if options.extras is None else options.extras
    return options


class Run:
    """One run and its record."""

    def __init__(self, context, options):
        self.context = context
        self.options = options
        self.peers = []
        self.failures = []
        self.loads = {}
        self.extras = {}

    def failed(self, what, error):
        say(f"FAILED: {what}: {error}")
        self.failures.append(f"{what}: {str(error).splitlines()[0]}")

    def start_peers(self):
        for kind in PEERS:
            if kind.name not in self.options.peers:
                continue
            begun = time.monotonic()
            try:
                peer = kind(self.context)
                peer.start()
                run_load(self.context.processes, FILL, peer.target(), self.context.size_bytes, None)
                peer.settle()
            except StepFailed as error:
                self.failed(kind.title, error)
                continue
            self.peers.append(peer)
            say(f"ready: {peer.title} ({time.monotonic() - begun:.1f} s)")

    def run_loads(self):
        for load in LOADS:
            if load.name not in self.options.loads:
                continue
            samples = self.loads[load.name] = {}
            taking_part = [peer for peer in self.peers if peer.only_loads is None or load.name in peer.only_loads]
            say(f"{load.title} ({load.unit})")
            for round_number in range(self.options.rounds):
                # Everyone has everyone else as a neighbour some time.
                shift = round_number % max(len(taking_part), 1)
                for peer in taking_part[shift:] + taking_part[:shift]:
                    self.measure(load, peer, round_number, samples)
                shown = [f"{peer.name} {number(load.value(samples[peer.name][-1]))}" for peer in taking_part if samples.get(peer.name)]
                say(f"  round {round_number + 1}: {', '.join(shown)}")

    def measure(self, load, peer, round_number, samples):
        try:
            if not load.writes:
                # A virtual disk's storage answers quickly only what was read lately: that would be compared, not the servers.
                run_load(self.context.processes, WARM, peer.target(), self.context.size_bytes, None)
            sample = run_load(
                self.context.processes, load, peer.target(), self.context.size_bytes, self.options.runtime, round_number + 1
            )
            samples.setdefault(peer.name, []).append(sample)
            peer.settle()
        except StepFailed as error:
            self.failed(f"{peer.title}, {load.title}, round {round_number + 1}", error)

    def run_extras(self):
        replica = next((peer for peer in self.peers if peer.name == ProtocolC.name), None)
        rounds = range(self.options.rounds)
        seconds = max(self.options.runtime, 0.5)
        steps = {
            "quinn": lambda: {
                packet: [extras.raw_quinn(self.context, packet, seconds) for _ in rounds] for packet in extras.PACKETS
            },
            "copies": lambda: extras.two_copies(self.context, self.options.rounds, seconds),
            "resync": lambda: [extras.resync(replica) for _ in rounds],
            "resync-memory": lambda: extras.resync_in_memory(self.context, self.options.rounds, seconds),
            "memory": lambda: extras.memory(self.context, 2 * seconds),
            "failover": lambda: extras.failover(self.context, self.options.rounds),
        }
        for name in self.options.extras:
            if name == "resync" and replica is None:
                continue
            say(name)
            try:
                self.extras[name] = steps[name]()
            except StepFailed as error:
                self.failed(name, error)

    def record(self, environment):
        return {
            "format": 1,
            "environment": environment,
            "options": {"rounds": self.options.rounds, "runtime": self.options.runtime, "size_bytes": self.context.size_bytes},
            "peers": [
                {"name": peer.name, "title": peer.title, "kind": peer.kind, "guarantees": peer.guarantees} for peer in self.peers
            ],
            "loads": self.loads,
            **{name: found for name, found in self.extras.items()},
            "failures": self.failures,
        }


def measure(options):
    system.install_peers(say)
    programs = system.check_programs(options.binaries or system.build(say))
    size_bytes = options.size * MIB
    # Each pair has two disks; the file of a load that only one peer takes part in counts too, and the two copies.
    directory = system.make_directory(options.directory, size_bytes * (2 * len(options.peers) + 3))
    begun = time.monotonic()
    processes = Processes(directory)
    try:
        environment = system.describe(directory)
        run = Run(Context(processes, directory, programs, size_bytes), options)
        run.start_peers()
        run.run_loads()
        run.run_extras()
        # As JSON says it: a record that was just made and one that is read again are the same.
        record = json.loads(json.dumps(run.record(environment)))
        record["options"]["minutes"] = round((time.monotonic() - begun) / 60, 1)
        return record
    finally:
        processes.end_all()
        shutil.rmtree(directory, ignore_errors=True)


def report(record, options):
    shown = table(record)
    print(shown)
    if options.record is None:
        output = options.output or os.path.join(system.target_directory(), "compare")
        os.makedirs(output, exist_ok=True)
        record["goals"] = [asdict(goal) for goal in goals(record)]
        for name, contents in (("json", json.dumps(record, indent=1) + "\n"), ("txt", shown + "\n"), ("svg", picture(record))):
            with open(os.path.join(output, f"compare.{name}"), "w", encoding="utf-8") as file:
                file.write(contents)
        print(f"{record['options']['minutes']} minutes; record, table and picture: {output}/compare.json, .txt, .svg")
    if options.write_docs:
        write_document(record)
        print(f"written: {DOCUMENT}")


def self_test():
    suite = unittest.defaultTestLoader.discover(os.path.join(os.path.dirname(__file__), "tests"), top_level_dir=os.path.dirname(os.path.dirname(__file__)))
    outcome = unittest.TextTestRunner().run(suite)
    return 0 if outcome.wasSuccessful() and outcome.testsRun > 0 else 1


def main(words):
    options = arguments(words)
    if options.self_test:
        return self_test()
    interrupt_on_signals()
    try:
        if options.record is None:
            record = measure(options)
        else:
            with open(options.record, encoding="utf-8") as file:
                record = json.load(file)
        report(record, options)
    except StepFailed as error:
        say(f"compare: {error}")
        return 1
    except (OSError, ValueError, KeyError) as error:
        say(f"compare: {error!r}")
        return 1
    except (KeyboardInterrupt, Interrupted) as error:
        say("interrupted; everything that was started is ended")
        return 128 + (signal.Signals[str(error)] if isinstance(error, Interrupted) else signal.SIGINT)
    return 1 if record["failures"] else 0
