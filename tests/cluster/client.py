"""Somebody outside who uses the service all the time and remembers every answer."""

import signal

from lab import HERE, PORT, SERVICE_ADDRESS, until


class Client:
    """See the module's text."""

    def __init__(self, lab):
        self.lab = lab
        self.journal = lab.directory / "journal"
        words = lab.outside(HERE / "records.py", "write", "--connect", f"{SERVICE_ADDRESS}:{PORT}", "--journal", self.journal)
        self.process = lab.spawn("client", words, lab.directory / "client.log")

    def lines(self):
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def answers(self):
        return len(self.lines())

    def is_answered(self, more=20, limit=90):
        """Waits for further answers."""
        before = self.answers()
        until("the client is answered", lambda: self.answers() >= before + more, limit)

    def answered_by(self):
        lines = self.lines()
        return lines[-1].split()[1] if lines else None

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def verify(self, node):
        """Nothing that was answered is missing on the node that serves."""
        self.stop()
        result = self.lab.on(node, HERE / "records.py", "check", "--journal", self.journal, "--file", "/mnt/r0/records", check=False)
        self.lab.say(result.out.strip())
        assert result.code == 0, str(result)
        assert self.answers() > 0, "nothing was answered, so nothing is proved"
