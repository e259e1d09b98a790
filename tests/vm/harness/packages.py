"""Programs and a kernel from Debian's packages, unpacked into a folder of ours.

Owns that folder. Nothing is installed on this machine: installing an emulator may remove newer packages, and needs root; unpacking
does neither. A program that the machine has already is taken from there. Downloads are kept, so that a second run asks nobody.
"""
import os
import re
import shutil
import subprocess

LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd", "lib/x86_64-linux-gnu", "usr/lib", "lib")
PROGRAM_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")


class Missing(Exception):
    """Something that is needed is not here and cannot be fetched; the text says what and how to get it."""


class Packages:
    def __init__(self, cache, say):
        self.cache = os.path.abspath(cache)
        self.root = os.path.join(self.cache, "packages")
        self.kernel_root = os.path.join(self.cache, "kernel")
        self.say = say
        self.updated = False

    # ---- programs ----

    def program(self, name, package):
        """Path of a program: this machine's, else the one of `package`, which is unpacked if need be."""
        found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or self.unpacked(name)
        if found:
            return found
        self.unpack(package)
        found = self.unpacked(name)
        if not found:
            raise Missing(f"the package {package} holds no program {name}")
        return found

    def unpacked(self, name):
        for folder in PROGRAM_FOLDERS:
            path = os.path.join(self.root, folder, name)
            if os.path.exists(path):
                return path
        return None

    def file(self, path, package):
        """A file of a package by its path: this machine's, else the package's."""
        if os.path.exists(path):
            return path
        # Newer packages have everything below /usr.
        inside = [self.root + path, self.root + "/usr" + path]
        if not any(os.path.exists(place) for place in inside):
            self.unpack(package)
        for place in inside:
            if os.path.exists(place):
                return place
        raise Missing(f"the package {package} holds no {path}")

    def environment(self):
        """Environment in which programs of the folder find the libraries that came with them."""
        folders = [os.path.join(self.root, folder) for folder in LIBRARY_FOLDERS]
        ours = ":".join(folder for folder in folders if os.path.isdir(folder))
        before = os.environ.get("LD_LIBRARY_PATH", "")
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(part for part in (ours, before) if part)}

    # ---- packages ----

    def unpack(self, package):
        self.say(f"unpacking {package} and what it needs into {self.root}")
        for archive in self.download(self.closure(package), self.cache):
            subprocess.run(["dpkg-deb", "-x", archive, self.root], check=True)

    def closure(self, package):
        """The package and those that it needs and this machine lacks."""
        simulated = self.apt("install", "--simulate", "--no-install-recommends", package)
        names = re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)
        # Installed, but asked for: its files are wanted all the same.
        return names if package in names else [*names, package]

    def download(self, names, folder):
        os.makedirs(folder, exist_ok=True)
        archives = []
        for name in names:
            kept = sorted(file for file in os.listdir(folder) if file.startswith(f"{name}_") and file.endswith(".deb"))
            if not kept:
                self.apt("download", name, folder=folder)
                kept = sorted(file for file in os.listdir(folder) if file.startswith(f"{name}_") and file.endswith(".deb"))
            if not kept:
                raise Missing(f"apt-get download {name} left no file in {folder}")
            archives.append(os.path.join(folder, kept[-1]))
        return archives

    def apt(self, *arguments, folder=None):
        if not shutil.which("apt-get"):
            raise Missing("this is not Debian or Ubuntu: qemu-system-x86, busybox-static and a kernel package come from apt-get")
        command = ["apt-get", "-q", *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode and not self.updated:
            # Old or no package lists: one attempt to renew them.
            self.updated = True
            root = [] if os.geteuid() == 0 else ["sudo", "-n"]
            try:
                subprocess.run([*root, "apt-get", "-q", "update"], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
            except FileNotFoundError:
                pass
            done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    # ---- kernel ----

    def kernel(self):
        """Folder of an unpacked kernel package: `vmlinuz` and `modules/VERSION/…`."""
        if os.path.exists(os.path.join(self.kernel_root, "vmlinuz")):
            return self.kernel_root
        depends = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True).stdout
        found = re.search(r"Depends: (linux-image-\d\S*amd64)", depends)
        if not found:
            self.apt("install", "--simulate", "--no-install-recommends", "linux-image-amd64")
            depends = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True).stdout
            found = re.search(r"Depends: (linux-image-\d\S*amd64)", depends)
        if not found:
            raise Missing("no package linux-image-amd64 is known here: the tests take Debian's kernel")
        self.say(f"fetching {found[1]}")
        archive = self.download([found[1]], self.cache)[0]
        whole = os.path.join(self.cache, "kernel.unpacking")
        shutil.rmtree(whole, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", archive, whole], check=True)
        partly = os.path.join(whole, "result")
        os.makedirs(partly)
        images = [name for name in os.listdir(os.path.join(whole, "boot")) if name.startswith("vmlinuz-")]
        shutil.copy(os.path.join(whole, "boot", images[0]), os.path.join(partly, "vmlinuz"))
        modules = os.path.join(whole, "usr/lib/modules" if os.path.isdir(os.path.join(whole, "usr/lib/modules")) else "lib/modules")
        shutil.move(modules, os.path.join(partly, "modules"))
        shutil.rmtree(self.kernel_root, ignore_errors=True)
        os.rename(partly, self.kernel_root)
        shutil.rmtree(whole)
        return self.kernel_root
