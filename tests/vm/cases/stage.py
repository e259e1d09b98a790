"""The pair that tests share, so that not each of them boots two guests.

Invariant: a test finds what `mounted` promises, whatever test was before it. After a failed test the pair is thrown away.
"""
import os
import shutil
import tempfile

from harness.pair import Pair

from .steps import bring_up


class Stage:
    def __init__(self, setting, logs, keep):
        self.setting, self.logs, self.keep = setting, logs, keep
        self.pair = None
        self.nodes = []
        self.others = []
        # Short, because the path of a socket may have 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="qrbd-vm.", dir="/var/tmp")

    def mounted(self):
        """(Primary, Secondary): connected, an ext4 of the volume r0/0 on /data of the Primary, made by the user's commands."""
        if not self.pair:
            self.pair = Pair(self.setting, os.path.join(self.folder, "pair"))
            self.pair.start()
            self.nodes = bring_up(self.pair)
        return self.nodes

    def swap(self):
        """The other node has become Primary."""
        self.nodes = list(reversed(self.nodes))

    def another(self, name, **arguments):
        """A pair for one test alone, not started."""
        pair = Pair(self.setting, os.path.join(self.folder, name), **arguments)
        self.others.append(pair)
        return pair

    def after(self, name, passed):
        """After a test: what is its own goes, and what is shared if it failed."""
        for pair in self.others:
            self.drop(pair, name, passed)
        self.others = []
        if not passed and self.pair:
            self.drop(self.pair, name, passed)
            self.pair, self.nodes = None, []

    def drop(self, pair, name, passed):
        pair.stop()
        if not passed:
            pair.keep_logs(os.path.join(self.logs, name))
        if not self.keep:
            pair.remove()
        elif os.path.exists(pair.folder):
            os.rename(pair.folder, os.path.join(self.folder, f"{name}.{os.path.basename(pair.folder)}"))

    def close(self):
        if self.pair:
            self.pair.stop()
        if self.keep:
            print(f"kept: {self.folder}", flush=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


