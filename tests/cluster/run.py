#!/usr/bin/env python3
"""Runs the tests of the cluster integration, each in a process and a lab of its own: called by scripts/test-cluster.

    run.py --programs DIRECTORY --logs DIRECTORY --prefix NAMESPACES [--jobs N] [--only NAME[,NAME…]] [--keep] [--list]

One line for each test, the end of its log if it failed, and 'N passed, N failed' at last. A test that does not end within LIMIT has failed.
What a test leaves behind is given back here, also when it was killed.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import keepalived_tests
import pacemaker_tests
from lab import NODES, Lab, die_with_parent

MODULES = (pacemaker_tests, keepalived_tests)
LIMIT = 420


def child(module, test, directory, prefix, programs, keep):
    """Runs in a process of its own; its exit code is the verdict."""
    die_with_parent()
    os.setsid()
    directory.mkdir(parents=True, exist_ok=True)
    lab = module.LAB(directory, prefix, programs)
    log = os.open(directory / "test.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        test(lab)
        code = 0
        lab.say("passed")
    except BaseException:  # noqa: BLE001: whatever it is, it is the test's failure
        traceback.print_exc()
        lab.say("failed")
        for node in NODES:
            if lab.alive(node):
                for words in (["qrbdadm", "status"], ["crm_mon", "-1", "-r"], ["qrbd-failover", "status"], ["ip", "-4", "-o", "address"], ["findmnt", "-t", "ext4"]):
                    try:
                        print(f"---- {node}", lab.on(node, "timeout", "10", *words, check=False))
                    except BaseException as trouble:  # noqa: BLE001
                        print(trouble)
    sys.stdout.flush()
    if keep:
        print("kept; nodes:", {node: lab.pid.get(node) for node in NODES}, "enter one: nsenter -t PID -m -u -i -n -p bash", flush=True)
        time.sleep(24 * 3600)
    try:
        lab.close()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def clean(directory, prefix):
    """Gives back what a lab has left in a directory, and its namespaces."""
    rest = Lab.__new__(Lab)
    rest.directory, rest.prefix, rest.unshare, rest.pid, rest.background = directory, prefix, {}, {}, []
    Lab.close(rest)


class Running:
    """A test under way."""

    def __init__(self, module, test, number, options):
        self.name = test.__name__
        self.directory = Path(options.logs) / self.name
        self.prefix = f"{options.prefix}{number}"
        self.begin = time.monotonic()
        self.limit = None if options.keep else LIMIT
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                child(module, test, self.directory, self.prefix, options.programs, options.keep)
            finally:
                os._exit(1)

    def ended(self):
        """The exit code, once there is one."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if self.limit and time.monotonic() > self.begin + self.limit:
            print(f"{self.name}: no end within {self.limit} s")
            self.kill()
            return 1
        return None

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def clean(self):
        """Nodes ended with the test, whatever became of it; namespaces and loop devices did not."""
        clean(self.directory, self.prefix)

    def report(self, code):
        print(f"{self.name}: {'passed' if code == 0 else 'FAILED'} ({time.monotonic() - self.begin:.0f} s)", flush=True)
        if code != 0:
            log = self.directory / "test.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            print(f"---- from {log}, which goes on with the state of the nodes")
            print("\n".join(text.split("\n---- ")[0].splitlines()[-40:]))
            print("----", flush=True)


def run_all(chosen, options):
    """Gives the verdicts. Most of a test is waiting, so some run at the same time."""
    waiting = list(enumerate(chosen))
    running, verdicts = [], []
    try:
        while waiting or running:
            while waiting and len(running) < (1 if options.keep else options.jobs):
                number, (module, test) = waiting.pop(0)
                running.append(Running(module, test, number, options))
            for one in list(running):
                code = one.ended()
                if code is None:
                    continue
                running.remove(one)
                one.clean()
                one.report(code)
                verdicts.append(code == 0)
            time.sleep(0.1)
    finally:
        for one in running:
            one.kill()
            one.clean()
    return verdicts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True)
    parser.add_argument("--logs", required=True)
    parser.add_argument("--prefix", default=f"q{os.getpid()}-")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--clean", action="store_true", help="give back what tests have left that were killed, and run none")
    options = parser.parse_args()
    every = [(module, test) for module in MODULES for test in module.TESTS]
    if options.list:
        print("\n".join(test.__name__ for _, test in every))
        return 0
    if options.clean:
        for number, (_, test) in enumerate(every):
            clean(Path(options.logs) / test.__name__, f"{options.prefix}{number}")
        return 0
    only = [word for word in options.only.split(",") if word]
    chosen = [(module, test) for module, test in every if not only or any(word in test.__name__ for word in only)]
    if not chosen:
        print("test-cluster: no test of that name; see --list", file=sys.stderr)
        return 2

    def end(*_):
        # Once: what follows is cleaning up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)
    results = run_all(chosen, options)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
