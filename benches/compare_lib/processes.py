"""Every process that the comparison starts, and its end.

Holds at every moment: whatever was started is in `Processes` and is ended by `end_all`, also after Ctrl-C, and dies by itself
when this program is killed. Each has a session of its own, so that Ctrl-C on the terminal reaches this program alone.
"""
import os
import signal
import subprocess
import time

END_SECONDS = 5
# Whoever is started dies with us, even if we are killed.
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]


class StepFailed(Exception):
    """Something that the comparison needs did not work; the text says what and where to look."""


class Interrupted(Exception):
    """SIGTERM or SIGHUP."""


def interrupt_on_signals():
    def interrupt(number, _frame):
        raise Interrupted(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


class Processes:
    def __init__(self, directory):
        """Logs go to files in `directory`."""
        self.directory = directory
        self.running = []

    def log_of(self, name):
        return os.path.join(self.directory, f"{name}.log")

    def start(self, name, command):
        """Starts `command`; its output is appended to the log of `name`."""
        with open(self.log_of(name), "ab") as log:
            process = subprocess.Popen(
                DIE_WITH_US + [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.directory,
            )
        process.name = name
        self.running.append(process)
        return process

    def run(self, name, command, limit_seconds):
        """Runs `command` to its end and returns what it printed; fails if it fails or takes longer."""
        process = subprocess.Popen(
            DIE_WITH_US + [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self.directory,
        )
        process.name = name
        self.running.append(process)
        try:
            output, _ = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            raise StepFailed(f"{name} did not end within {limit_seconds} s: {words(command)}") from None
        finally:
            self.end(process, gently=False)
        output = output.decode(errors="replace")
        if process.returncode != 0:
            raise StepFailed(f"{name} ended with {process.returncode}: {words(command)}\n{output.strip()[-2000:]}")
        return output

    def end(self, process, gently=True):
        """Ends the process and whatever it started; does nothing if it has ended."""
        if process in self.running:
            self.running.remove(process)
        if process.poll() is None and gently:
            signal_group(process, signal.SIGTERM)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        signal_group(process, signal.SIGKILL)
        process.wait()

    def end_all(self):
        kept = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        # The last one started is the first to go: clients before servers.
        for process in reversed(list(self.running)):
            self.end(process)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), kept):
            signal.signal(number, handler)

    def wait_until(self, what, condition, limit_seconds=20, process=None, pause_seconds=0.05):
        """Calls `condition` until it is true. Fails after the limit, or at once if `process` has ended."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            if process is not None and process.poll() is not None:
                raise StepFailed(f"{process.name} ended while waiting until {what}:\n{self.end_of_log(process.name)}")
            if time.monotonic() > deadline:
                raise StepFailed(f"waited {limit_seconds} s until {what}")
            time.sleep(pause_seconds)

    def end_of_log(self, name):
        try:
            with open(self.log_of(name), "rb") as log:
                return log.read()[-1500:].decode(errors="replace")
        except OSError:
            return ""


def signal_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def words(command):
    return " ".join(str(word) for word in command)
