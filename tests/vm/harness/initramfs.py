"""The guests' initial file system, which is their only one: busybox, kernel modules, programs with their libraries.

Owns the archive's bytes (cpio, "newc"; uncompressed, because unpacking costs an emulated processor more than the emulator's copy) and the
order of modules, which is read from the modules themselves. Knows nothing of what the programs are for.
"""
import lzma
import os
import re
import stat
import subprocess

FOLDERS = "usr/bin usr/sbin usr/lib usr/lib64 etc etc/qrbd.d proc sys dev tmp run var/lib/qrbd var/lib/drbd var/log data host root".split()


class Archive:
    """A cpio archive in memory."""

    def __init__(self):
        self.parts = []
        self.names = {}

    def entry(self, name, mode, data=b""):
        name = name.strip("/")
        if name in self.names:
            return
        parent = os.path.dirname(name)
        if parent and parent not in self.names:
            self.entry(parent, stat.S_IFDIR | 0o755)
        self.names[name] = mode
        self.record(len(self.names), name, mode, data)

    def record(self, number, name, mode, data):
        encoded = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self.parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def folder(self, name):
        self.entry(name, stat.S_IFDIR | 0o755)

    def link(self, name, target):
        self.entry(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name, data, mode=0o644):
        self.entry(name, stat.S_IFREG | mode, data)

    def copy(self, name, path, mode=0o755):
        with open(path, "rb") as source:
            self.file(name, source.read(), mode)

    def write(self, path):
        self.record(0, "TRAILER!!!", 0, b"")
        with open(path, "wb") as target:
            target.writelines(self.parts)


class Modules:
    """Modules of an unpacked kernel package, and which needs which."""

    def __init__(self, kernel):
        folder = os.path.join(kernel, "modules")
        self.version = os.listdir(folder)[0]
        self.paths = {}
        self.order = []
        self.needs = {}
        for place, _, files in os.walk(folder):
            for file in files:
                found = re.fullmatch(r"(.+)\.ko(\.xz)?", file)
                if found:
                    self.paths[found[1].replace("-", "_")] = os.path.join(place, file)

    def content(self, name):
        path = self.paths[name]
        with open(path, "rb") as file:
            data = file.read()
        return lzma.decompress(data) if path.endswith(".xz") else data

    def want(self, name):
        name = name.replace("-", "_")
        if name in self.needs:
            return
        if name not in self.paths:
            raise KeyError(f"the kernel package has no module {name}")
        data = self.content(name)
        found = re.search(rb"\0depends=([^\0]*)\0", data)
        needs = [need for need in (found[1].decode() if found else "").replace("-", "_").split(",") if need]
        softly = [need.replace("-", "_") for text in re.findall(rb"\0softdep=pre: ([^\0]*)\0", data) for need in text.decode().split()]
        self.needs[name] = needs
        for need in needs + [need for need in softly if need in self.paths]:
            self.want(need)
        self.order.append(name)

    def whole_chain(self, name):
        """The module's needs, nearest first, as modules.dep wants them."""
        chain = []
        for need in self.needs[name]:
            chain += [need, *self.whole_chain(need)]
        return list(dict.fromkeys(chain))


def libraries(path, environment):
    """Paths of the shared objects that a program is started with."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, env=environment)
    if "not a dynamic" in listed.stderr or "statically linked" in listed.stdout:
        return []
    if "not found" in listed.stdout:
        raise FileNotFoundError(f"libraries of {path}:\n{listed.stdout}")
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def build(path, *, kernel, busybox, init, boot_modules, more_modules, programs, files, links, environment):
    """Writes the archive to `path`.

    `boot_modules` are loaded by init in order, `more_modules` only lie there for modprobe. `programs` maps paths in the guest to paths here,
    `files` to text (or bytes, which only root may read), `links` to targets.
    """
    archive = Archive()
    for folder in FOLDERS:
        archive.folder(folder)
    for folder in ("bin", "sbin", "lib", "lib64"):
        archive.link(folder, "usr/" + folder)
    archive.copy("usr/bin/busybox", busybox)
    archive.link("usr/bin/sh", "busybox")
    archive.copy("init", init)

    modules = Modules(kernel)
    for name in boot_modules:
        modules.want(name)
    boot = list(modules.order)
    for name in more_modules:
        modules.want(name)
    place = f"usr/lib/modules/{modules.version}"
    for name in modules.order:
        archive.file(f"{place}/{name}.ko", modules.content(name))
    archive.file(f"{place}/modules.dep", "".join(
        f"{name}.ko: {' '.join(f'{need}.ko' for need in modules.whole_chain(name))}\n" for name in modules.order).encode())
    archive.file("etc/boot-modules", "".join(name + "\n" for name in boot).encode())

    # Programs of this machine win over links of busybox: what is here first is not made again.
    for inside, outside in programs.items():
        archive.copy(inside, os.path.realpath(outside))
        for library in libraries(outside, environment):
            here = library
            for root in (environment.get("LD_LIBRARY_PATH", "").split(":")):
                if root and library.startswith(root):
                    here = "/usr/lib/x86_64-linux-gnu/" + os.path.basename(library)
            archive.copy(re.sub(r"^/(lib|lib64)/", r"/usr/\1/", here), library)
    for inside, text in files.items():
        archive.file(inside, *((text, 0o400) if isinstance(text, bytes) else (text.encode(),)))
    for inside, target in links.items():
        archive.link(inside, target)
    archive.write(path)
