"""What every test stands on: the emulator, Debian's kernel, and the archive with the programs under test."""
import os
import shutil
import subprocess

from . import initramfs
from .packages import Missing, Packages

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOT_MODULES = "virtio_pci virtio_rng virtio_console crc32c_generic crc32c_intel virtio_scsi sd_mod virtio_net ext4 xfs 9p 9pnet_virtio".split()
# Only there for who asks for them.
MORE_MODULES = ["nbd"]
# For a guest whose first process is systemd: programs by their paths, and of its units only those without services behind them.
SYSTEMD = {"/lib/systemd/systemd": "systemd", "/bin/systemctl": "systemd"}
SYSTEMD_UNITS = "usr/lib/systemd/system"
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
TOOLS = {"mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "mkfs.xfs": "xfsprogs", "xfs_repair": "xfsprogs", "xfs_growfs": "xfsprogs"}


class Setting:
    def __init__(self, *, cache, programs, work, say, tools=None, more_modules=None, files=None):
        """Fetches what is missing and builds the archive in the folder `work`.

        `programs` is the folder with qrbdd and qrbdadm; `tools` maps programs to packages, besides those that every guest has.
        """
        packages = Packages(cache, say)
        self.emulator = packages.program("qemu-system-x86_64", "qemu-system-x86")
        self.environment = packages.environment()
        self.kernel = packages.kernel()
        busybox = packages.unpacked("busybox") or (packages.unpack("busybox-static") or packages.unpacked("busybox"))
        inside = {}
        for name in ("qrbdd", "qrbdadm", "qrbd-load"):
            built = os.path.join(programs, name)
            if not os.path.exists(built):
                raise Missing(f"{built} is missing: cargo build --package qrbdd --package qrbd-tools, or --programs DIR")
            inside[f"usr/sbin/{name}"] = self.stripped(built, work)
        for name, package in {**TOOLS, **(tools or {})}.items():
            if name.startswith("/"):
                inside[name.strip("/")] = packages.file(name, package)
            else:
                inside[f"usr/sbin/{name}"] = packages.program(name, package)
        self.environment = packages.environment()
        with open(os.path.join(HERE, "r0.res"), encoding="utf-8") as file:
            resource = file.read()
        key = os.path.join(work, "authkey")
        subprocess.run([os.path.join(programs, "qrbdadm"), "keygen", "--output", key], check=True, stdout=subprocess.DEVNULL)
        with open(key, "rb") as file:
            secret = file.read()
        everything = {
            "etc/qrbd.conf": 'include "qrbd.d/global_common.conf";\ninclude "qrbd.d/*.res";\n',
            "etc/qrbd.d/global_common.conf": "global { usage-count no; }\n",
            "etc/qrbd.d/r0.res": resource,
            "etc/hosts": "127.0.0.1 localhost\n192.168.1.10 node1\n192.168.1.11 node2\n",
            "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
            "etc/group": "root:x:0:\n",
            **(files or {}),
        }
        if os.path.exists("/etc/mke2fs.conf"):
            with open("/etc/mke2fs.conf", encoding="utf-8") as file:
                everything["etc/mke2fs.conf"] = file.read()
        self.initramfs = os.path.join(work, "initramfs")
        self.packages = packages
        self.parts = dict(
            kernel=self.kernel, busybox=busybox, init=os.path.join(HERE, "init"), boot_modules=BOOT_MODULES,
            more_modules=MORE_MODULES + (more_modules or []), programs=inside, files={**everything, "etc/qrbd/authkey": secret},
            links={"usr/sbin/drbdadm": "qrbdadm"} if not tools or "drbdadm" not in tools else {}, environment=self.environment)
        initramfs.build(self.initramfs, **self.parts)

    def with_systemd(self):
        """The archive for guests that are started with the word vm.systemd: the same, and systemd with our unit as the packages have it."""
        path = self.initramfs + ".systemd"
        if os.path.exists(path):
            return path
        programs = {"usr" + name: self.packages.file(name, package) for name, package in SYSTEMD.items()}
        files = {
            "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "etc/fstab": "",
            # There is no journal.
            "etc/systemd/system.conf": "[Manager]\nDefaultStandardOutput=null\nLogTarget=kmsg\nDefaultTimeoutStartSec=300\n",
            "etc/systemd/system/qrbd.service.d/log.conf": "[Service]\nStandardError=append:/host/qrbdd.log\nTimeoutStopSec=120\n",
        }
        folder = os.path.dirname(self.packages.file("/lib/systemd/system/basic.target", "systemd"))
        for name in sorted(os.listdir(folder)):
            if name.endswith((".target", ".slice")) and os.path.isfile(os.path.join(folder, name)):
                with open(os.path.join(folder, name), encoding="utf-8") as unit:
                    files[f"{SYSTEMD_UNITS}/{name}"] = unit.read()
        ours = os.path.join(REPOSITORY, "scripts/systemd")
        with open(os.path.join(ours, "qrbd.service"), encoding="utf-8") as unit:
            files[f"{SYSTEMD_UNITS}/qrbd.service"] = unit.read()
        programs["usr/lib/qrbd/qrbd-unit"] = os.path.join(ours, "qrbd-unit")
        self.environment = self.packages.environment()
        parts = {**self.parts, "environment": self.environment, "programs": {**self.parts["programs"], **programs},
                 "files": {**self.parts["files"], **files}, "links": {**self.parts["links"], "etc/systemd/system/default.target":
                                                                     f"/{SYSTEMD_UNITS}/multi-user.target"}}
        initramfs.build(path, **parts)
        return path

    @staticmethod
    def stripped(path, work):
        """The program without debugging information: a guest holds everything in memory."""
        if not shutil.which("strip"):
            return path
        target = os.path.join(work, os.path.basename(path))
        subprocess.run(["strip", "-o", target, path], check=True)
        return target
