"""One guest: an emulator process, its console in a file, commands in and answers out.

Owns the emulator's process and both ends of the command line. A guest is gone when `kill` was called, as by a power failure: what its
disks had taken is in their images, what was on the way is not.
"""
import json
import os
import socket
import subprocess
import threading
import time

BOOT_LIMIT_S = 300


class GuestError(Exception):
    """A guest did not do what it was told; holds the command, its output and the end of the console."""


class Command:
    """A command that runs in the guest."""

    def __init__(self, guest, script):
        self.guest, self.script = guest, script
        self.done = threading.Event()
        self.code, self.output = None, ""

    def result(self, limit_s=120):
        """(exit code, output); GuestError if there is none in time or the guest is gone."""
        if not self.done.wait(limit_s):
            raise GuestError(f"{self.guest.name}: no answer within {limit_s} s\n$ {self.script}\n{self.guest.console_end()}")
        if self.code is None:
            raise GuestError(f"{self.guest.name}: the guest ended under\n$ {self.script}\n{self.guest.console_end()}")
        return self.code, self.output


class Guest:
    def __init__(self, name, *, folder, emulator, environment, kernel, initramfs, address, disks, netdev, mac, shared, memory_mib, words=""):
        self.name, self.folder = name, folder
        self.console = os.path.join(folder, f"{name}.console")
        self.lock = threading.Lock()
        self.commands = {}
        # Never one that an earlier guest of this name used.
        self.shared = shared
        os.makedirs(os.path.join(shared, "commands"), exist_ok=True)
        self.number = max((int(file) for file in os.listdir(os.path.join(shared, "commands")) if file.isdigit()), default=0)
        self.ready = threading.Event()
        path = os.path.join(folder, f"{name}.line")
        if os.path.exists(path):
            os.unlink(path)
        names = ",".join(f"sd{chr(ord('a') + index)}" for index in range(len(disks)))
        line = f"console=ttyS0 panic=-1 quiet mitigations=off nokaslr no_timer_check vm.host={name} vm.address={address} vm.disks={names} {words}"
        command = [
            emulator, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", str(memory_mib),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", os.path.join(kernel, "vmlinuz"), "-initrd", initramfs, "-append", line,
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=line,path={path},server=on,wait=on",
            "-qmp", f"unix:{self.monitor()},server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=line,name=line",
            "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci,id=scsi",
            "-netdev", netdev, "-device", f"virtio-net-pci,netdev=n0,mac={mac}",
            "-virtfs", f"local,path={shared},mount_tag=shared,security_model=none,id=shared",
        ]
        for index, disk in enumerate(disks):
            command += ["-drive", f"file={disk},format=raw,if=none,id=d{index},cache=writeback,aio=threads,discard=unmap",
                        "-device", f"scsi-hd,bus=scsi.0,scsi-id={index},drive=d{index}"]
        self.begin = time.monotonic()
        with open(os.path.join(folder, f"{name}.qemu"), "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment)
        # The emulator waits for this connection, so that nothing of what the guest says is lost.
        self.line = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.line.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise GuestError(f"{name}: the emulator ended: " + self.emulator_log()) from None
                time.sleep(0.02)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def monitor(self):
        return os.path.join(self.folder, f"{self.name}.qmp")

    def grow_disk(self, index, size):
        """Makes a disk larger while the guest runs, as a storage system does it; the guest's kernel hears of it."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(60)
            line.connect(self.monitor())
            answers = line.makefile("r", encoding="utf-8")
            answers.readline()
            for command in ({"execute": "qmp_capabilities"},
                            {"execute": "block_resize", "arguments": {"device": f"d{index}", "size": size}}):
                line.sendall(json.dumps(command).encode() + b"\n")
                answer = {"event": None}
                while "event" in answer:
                    answer = json.loads(answers.readline())
                if "error" in answer:
                    raise GuestError(f"{self.name}: {command}: {answer['error']}")

    def command_file(self, number):
        return os.path.join(self.shared, "commands", str(number))

    def emulator_log(self):
        with open(os.path.join(self.folder, f"{self.name}.qemu"), errors="replace") as log:
            return log.read()[-2000:]

    def console_end(self, characters=3000):
        try:
            with open(self.console, errors="replace") as console:
                return f"--- console of {self.name}\n{console.read()[-characters:]}\n---"
        except FileNotFoundError:
            return f"--- no console of {self.name}"

    def read(self):
        pending = b""
        while True:
            try:
                data = self.line.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                if line == b"AGENT":
                    self.ready.set()
                    continue
                number, code = (int(word) for word in line.split())
                with self.lock:
                    command = self.commands.pop(number)
                with open(self.command_file(number) + ".output", errors="replace") as output:
                    command.output = output.read()
                command.code = code
                command.done.set()
        with self.lock:
            left, self.commands = self.commands, {}
        for command in left.values():
            command.done.set()

    def wait_ready(self, limit_s=BOOT_LIMIT_S):
        end = time.monotonic() + limit_s
        while not self.ready.wait(0.2):
            if self.process.poll() is not None or time.monotonic() > end:
                raise GuestError(f"{self.name}: not ready after {limit_s} s\n{self.emulator_log()}{self.console_end()}")
        return time.monotonic() - self.begin

    def start(self, script):
        """Begins a shell script in the guest."""
        command = Command(self, script)
        with self.lock:
            self.number += 1
            self.commands[self.number] = command
            number = self.number
        with open(self.command_file(number), "w", encoding="utf-8") as file:
            file.write(script + "\n")
        try:
            self.line.sendall(b"%d\n" % number)
        except OSError:
            raise GuestError(f"{self.name}: the guest is gone\n$ {script}\n{self.console_end()}") from None
        return command

    def run(self, script, limit_s=120):
        """Output of a script that must end with code 0."""
        code, output = self.start(script).result(limit_s)
        if code:
            raise GuestError(f"{self.name}: exit code {code}\n$ {script}\n{output}\n{self.console_end()}")
        return output

    def try_run(self, script, limit_s=120):
        """(exit code, output) of a script."""
        return self.start(script).result(limit_s)

    def until(self, what, condition, limit_s=120, show=""):
        """Runs the script `condition` until it ends with 0; `show` is a script whose output tells why it never did."""
        end = time.monotonic() + limit_s
        while True:
            code, output = self.try_run(condition, limit_s)
            if code == 0:
                return output
            if time.monotonic() > end:
                shown = self.try_run(show)[1] if show else ""
                raise GuestError(f"{self.name}: waited {limit_s} s until {what}\n$ {condition}\n{output}\n{shown}\n{self.console_end()}")
            time.sleep(0.2)

    def kill(self):
        """Ends the emulator at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        # close() alone leaves a thread that is in recv() where it is.
        try:
            self.line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.reader.join(10)
        self.line.close()
