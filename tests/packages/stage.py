"""What the tests of the packages share: where things are, the packages themselves, machines with QRBD installed, a pair of them.

The pair is set up by the very commands of docs/installation.md. It is one pair for all tests that want one, each of which leaves it as
it found it: both nodes connected and up to date, alice Primary.
"""
import os
import shutil
import tempfile

from machine import Disk, Failure, Machine, cable, image, run, until

MIB = 1 << 20

# No other run's: loop devices are seen by the whole host, with the paths of their files as each machine names them.
RESOURCE = f"web{os.getpid()}"
DEVICE = f"/run/qrbd-device/{RESOURCE}-0"
CONFIGURATION = f"""\
resource {RESOURCE} {{
    net {{ protocol C; }}
    on alice {{ disk /dev/sdb; meta-disk internal; address 192.168.77.1:7789; }}
    on bob   {{ disk /dev/sdb; meta-disk internal; address 192.168.77.2:7789; }}
}}
"""
# The file system of the tests: mounted by hand or by systemd, unmounted before what is under it goes.
FSTAB = f"{DEVICE} /data ext4 noauto,nofail,_netdev,x-systemd.requires=qrbd-device@{RESOURCE}.service 0 0\n"


class Stage:
    """Owns the folder of a run and everything that is alive in it."""

    def __init__(self, root, programs, cache):
        self.root, self.programs, self.cache = root, os.path.abspath(programs), cache
        # In memory where there is enough of it: the tests are about programs, and share the host's disk with others.
        roomy = os.path.ismount("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4 << 30
        self.folder = tempfile.mkdtemp(prefix="qrbd-packages-", dir="/dev/shm" if roomy else None)
        self.machines = []
        self.made = None
        self.both = self.both_with = None

    def close_machines(self):
        for machine in self.machines:
            machine.close()
        self.both = None

    def close(self, keep):
        self.close_machines()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def packages(self):
        """Files of the packages by kind: deb, rpm, compat_deb, compat_rpm. Built once."""
        if self.made is None:
            output = os.path.join(self.folder, "packages")
            run(os.path.join(self.root, "scripts/package"), "--programs", self.programs, "--output", output, "--fast", limit=300)
            self.made = {}
            for name in os.listdir(output):
                kind = name.rsplit(".", 1)[1]
                self.made[("compat_" if name.startswith("qrbd-drbd-compat") else "") + kind] = os.path.join(output, name)
            if sorted(self.made) != ["compat_deb", "compat_rpm", "deb", "rpm"]:
                raise Failure(f"scripts/package made {sorted(os.listdir(output))}")
        return self.made

    def unpacked_image(self, further=()):
        """The image of the machines."""
        return image(self.cache, further)

    def machine(self, name, disks=(), further=()):
        """A machine that runs, with nothing of QRBD; `disks` are names with sizes in bytes."""
        folder = os.path.join(self.folder, f"{len(self.machines)}-{name}")
        os.makedirs(folder)
        attached = {disk: Disk(os.path.join(folder, f"{disk}.disk"), size) for disk, size in disks}
        machine = Machine(self.unpacked_image(further), folder, name, attached)
        self.machines.append(machine)
        return machine.boot()

    def install(self, machine, kind="deb", check=True):
        """Installs a package with the machine's own dpkg."""
        file = self.packages()[kind]
        inside = f"/root/{os.path.basename(file)}"
        with open(file, "rb") as package:
            data = package.read()
        os.makedirs(machine.path("/root"), exist_ok=True)
        # Through the machine's own mount: what is changed under a mounted overlay is not sure to be seen.
        receiver = f"/proc/{machine.pid}/root{inside}"
        with open(receiver, "wb") as copy:
            copy.write(data)
        return machine.run("dpkg", "-i", inside, check=check, limit=120)

    def pair(self, further=(), size=64 * MIB):
        """alice and bob: connected, up to date, alice Primary with a file system at /data. One pair at a time, with packages as asked for."""
        if self.both is not None and self.both_with != further:
            self.close_machines()
        if self.both is None:
            self.both_with = further
            alice, bob = (self.machine(name, [("sdb", size)], further) for name in ("alice", "bob"))
            cable(alice, "192.168.77.1/24", bob, "192.168.77.2/24")
            for node in (alice, bob):
                self.install(node)
                node.write(f"/etc/qrbd.d/{RESOURCE}.res", CONFIGURATION)
                node.write("/etc/fstab", FSTAB)
                node.write("/etc/default/qrbd", 'QRBD_UP=all\nQRBD_WAIT_CONNECT=3\n')
                node.run("mkdir", "-p", "/data")
            alice.run("qrbdadm", "keygen")
            bob.write("/etc/qrbd/authkey", alice.run("cat", "/etc/qrbd/authkey").stdout, 0o400)
            for node in (alice, bob):
                node.run("qrbdadm", "create-md", "--force", RESOURCE)
                node.run("systemctl", "enable", "--now", "qrbd")
            until_connected(alice)
            alice.run("qrbdadm", "primary", "--force", RESOURCE)
            alice.run("qrbdadm", "wait-sync", RESOURCE)
            for node in (alice, bob):
                node.run("systemctl", "daemon-reload")
            alice.run("systemctl", "start", f"qrbd-device@{RESOURCE}")
            alice.run("mkfs.ext4", "-q", DEVICE)
            alice.run("systemctl", "start", "data.mount")
            self.both = alice, bob
        return self.both


def role(node, resource=RESOURCE):
    return node.says("qrbdadm", "role", resource, check=False).split("/")[0]


def connected(node):
    return node.says("qrbdadm", "cstate", RESOURCE, check=False) == "Connected"


def until_connected(node):
    until(f"{node.name}: connected", 40, lambda: connected(node))


def until_up_to_date(node):
    until(f"{node.name}: both disks UpToDate", 60, lambda: node.says("qrbdadm", "dstate", RESOURCE, check=False) == "UpToDate/UpToDate")


def daemon(node):
    """The process of the daemon, 0 if there is none."""
    return int(node.says("systemctl", "show", "--property=MainPID", "--value", "qrbd.service"))


def until_new_daemon(node, old):
    return until(f"{node.name}: a new daemon that is ready", 60, lambda: (
        (new := daemon(node)) not in (0, old) and node.says("systemctl", "is-active", "qrbd", check=False) == "active" and new
    ))
