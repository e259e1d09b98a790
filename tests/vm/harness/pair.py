"""Two guests, node1 and node2, with a link between them that can be cut, and disks that outlive them.

Owns the folder with images, sockets and logs. The link is a pair of datagram sockets, one file for each guest: the emulator sends to the
file of the other guest, so a guest may end and begin as it likes, and a renamed file is a cut of which neither end notices anything but silence.
"""
import os
import shutil
import stat
import time

from .guest import Guest, GuestError

NAMES = ("node1", "node2")
ADDRESSES = {"node1": "192.168.1.10/24", "node2": "192.168.1.11/24"}
MIB = 1 << 20
BLOCK = 4096


class Pair:
    def __init__(self, setting, folder, *, disk_mib=96, memory_mib=512, words="", link="datagrams", first_disk_mib=64,
                 more_disks_mib=(), initramfs=None):
        """`setting` knows emulator, kernel and archive (see `setting.py`; `initramfs`: another archive); `words` are added to both kernels' command lines. A link of
        "datagrams" can be cut and outlives guests; "stream" is faster and does neither."""
        self.setting, self.folder, self.words, self.memory_mib, self.link = setting, folder, words, memory_mib, link
        self.initramfs = initramfs
        self.guests = {}
        self.images = {}
        os.makedirs(folder, exist_ok=True)
        for name in NAMES:
            # The first disk is nobody's: the second is /dev/sdb, as in the user's file.
            self.images[name] = [
                self.image(f"{name}.sd{letter}", mib) for letter, mib in zip("abcd", (first_disk_mib, disk_mib, *more_disks_mib))]
            os.makedirs(self.shared(name), exist_ok=True)

    def image(self, name, mib):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.truncate(mib * MIB)
        return path

    def shared(self, name):
        """The folder here that the guest sees as /host."""
        return os.path.join(self.folder, f"{name}.host")

    def socket(self, name):
        return os.path.join(self.folder, f"{name}.net")

    def start(self, *names):
        """Starts guests, waits until they take commands."""
        for name in names or NAMES:
            other = NAMES[1 - NAMES.index(name)]
            if os.path.exists(self.socket(name)):
                os.unlink(self.socket(name))
            if self.link == "datagrams":
                netdev = f"dgram,id=n0,local.type=unix,local.path={self.socket(name)},remote.type=unix,remote.path={self.socket(other)}"
            else:
                server = "on" if name == NAMES[0] else "off"
                netdev = f"stream,id=n0,server={server},addr.type=unix,addr.path={self.socket(NAMES[0])}"
                self.wait_for_listener(name)
            self.guests[name] = Guest(
                name, folder=self.folder, emulator=self.setting.emulator, environment=self.setting.environment,
                kernel=self.setting.kernel, initramfs=self.initramfs or self.setting.initramfs, address=ADDRESSES[name], disks=self.images[name],
                netdev=netdev, mac=f"52:54:00:00:00:0{NAMES.index(name) + 1}", shared=self.shared(name),
                memory_mib=self.memory_mib, words=self.words)
        for name in names or NAMES:
            guest = self.guests[name]
            guest.wait_ready()
            with open(guest.console, errors="replace") as console:
                complaints = [line for line in console if "GUEST:" in line]
            if complaints:
                raise GuestError(f"{name}: {''.join(complaints)}")

    def wait_for_listener(self, name):
        """Of a stream's two ends one listens, and has to be there first."""
        end = time.monotonic() + 60
        while name != NAMES[0] and not os.path.exists(self.socket(NAMES[0])):
            if time.monotonic() > end:
                raise GuestError(f"{NAMES[0]} does not listen: {self.guests[NAMES[0]].emulator_log()}")
            time.sleep(0.02)

    def __getitem__(self, name):
        return self.guests[name]

    def __iter__(self):
        return iter([self.guests[name] for name in NAMES])

    def kill(self, name):
        """Power failure of a guest."""
        self.guests[name].kill()

    def grow_disks(self, mib):
        """Both guests' /dev/sdb have so many MiB more, while they are in use."""
        for guest in self:
            size = os.path.getsize(self.images[guest.name][1]) + mib * MIB
            guest.grow_disk(1, size)
            # What an administrator does when his storage has grown; the kernel may have noticed by itself.
            guest.run("echo 1 >/sys/class/block/sdb/device/rescan")
            guest.until(f"/dev/sdb has {size} bytes", f"[ $(blockdev --getsize64 /dev/sdb) = {size} ]")

    def cut(self):
        """No packet passes any more, in either direction; both carriers stay."""
        for name in NAMES:
            if os.path.exists(self.socket(name)):
                os.rename(self.socket(name), self.socket(name) + ".cut")

    def heal(self):
        for name in NAMES:
            if os.path.exists(self.socket(name) + ".cut"):
                os.rename(self.socket(name) + ".cut", self.socket(name))

    def stop(self):
        for guest in self.guests.values():
            guest.kill()

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def differences(self, data_bytes):
        """What differs between the two /dev/sdb in their first bytes, in words; empty if nothing does."""
        blocks, empty = [], {"node1": 0, "node2": 0}
        with open(self.images["node1"][1], "rb") as one, open(self.images["node2"][1], "rb") as two:
            for offset in range(0, data_bytes, MIB):
                length = min(MIB, data_bytes - offset)
                first, second = one.read(length), two.read(length)
                if first == second:
                    continue
                for block in range(0, length, BLOCK):
                    here, there = first[block:block + BLOCK], second[block:block + BLOCK]
                    if here != there:
                        blocks.append((offset + block) // BLOCK)
                        empty["node1"] += not any(here)
                        empty["node2"] += not any(there)
        if not blocks:
            return ""
        return (f"{len(blocks)} blocks of {BLOCK} bytes differ, the first are {blocks[:12]}; "
                f"of these {empty['node1']} are zero on node1, {empty['node2']} on node2")

    def keep_logs(self, folder):
        """Copies consoles and what the guests left in their shared folders."""
        os.makedirs(folder, exist_ok=True)
        for place, _, files in os.walk(self.folder):
            for file in files:
                path = os.path.join(place, file)
                if file.endswith((".sda", ".sdb", ".sdc")) or file == "noise" or not stat.S_ISREG(os.lstat(path).st_mode):
                    continue
                shutil.copyfile(path, os.path.join(folder, os.path.relpath(path, self.folder).replace("/", ".")))
