"""A pair of daemons whose packets go through the relay.

Each node's configuration names the relay's port as the address of the other; everything else is the comparison's pair.
"""
import json
from dataclasses import dataclass

from compare_lib.peers import free_port
from compare_lib.replica import CONFIGURATION, Pair

# UDP payload of what goes through Ethernet unharmed.
PACKET_BYTES = 1472


@dataclass(frozen=True)
class Link:
    round_trip_ms: float
    megabits: int
    loss_percent: float = 0
    # What waits at the line before it overflows, in time.
    queue_ms: float = 25

    @property
    def bytes_per_second(self):
        return self.megabits * 125_000

    @property
    def queue_bytes(self):
        return max(int(self.bytes_per_second * self.queue_ms / 1000), 64 << 10)

    @property
    def name(self):
        loss = f", {self.loss_percent:g} % loss" if self.loss_percent else ""
        return f"{self.round_trip_ms:g} ms, {self.megabits} Mbit/s{loss}"


def distinct_ports(count):
    ports = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


class LinkPair(Pair):
    initial_sync = False
    numbers = 0

    def __init__(self, context, link, protocol="C"):
        # Short: sockets are below it.
        LinkPair.numbers += 1
        self.name = f"l{LinkPair.numbers}"
        self.title = f"protocol {protocol}, {link.name}"
        self.protocol = protocol
        self.link = link
        super().__init__(context)

    def start(self):
        alice, bob, for_alice, for_bob = distinct_ports(4)
        words = ["--ports", f"127.0.0.1:{for_alice}", f"127.0.0.1:{for_bob}", "--nodes", f"127.0.0.1:{alice}", f"127.0.0.1:{bob}"]
        words += ["--delay-us", int(self.link.round_trip_ms * 500), "--megabits", self.link.megabits, "--queue", self.link.queue_bytes]
        words += ["--packet", PACKET_BYTES, "--loss-ppm", int(self.link.loss_percent * 10_000)]
        self.spawn("relay", [self.program("qrbd-relay"), *words])
        seen = {"alice": (alice, for_alice), "bob": (for_bob, bob)}
        for node, (alice_port, bob_port) in seen.items():
            with open(self.path(f"{node}.conf"), "w", encoding="utf-8") as file:
                known = dict(alice_port=alice_port, bob_port=bob_port)
                text = CONFIGURATION.format(protocol=self.protocol, directory=self.directory, **known)
                # By default node-ids follow the addresses, which the two nodes see differently.
                for number, name in enumerate(seen):
                    text = text.replace(f"on {name} {{", f"on {name} {{\n        node-id {number};")
                file.write(text)
        super().start()

    def places(self, node):
        words = super().places(node)
        words[words.index("-c") + 1] = self.path(f"{node}.conf")
        return words

    def line(self):
        """What the relay counted: a list of (seconds since its start, totals from alice to bob), oldest first."""
        samples = []
        with open(self.context.processes.log_of(f"{self.name}.relay"), encoding="utf-8") as file:
            for text in file.read().splitlines():
                if text.startswith("{") and text.endswith("}"):
                    sample = json.loads(text)
                    samples.append((sample["seconds"], sample["alice_to_bob"]))
        return samples

    def disconnect(self):
        self.admin("bob", "disconnect", "r0")
        self.wait_until("alice is alone", lambda: self.state("alice")["replication"] == "Off")

    def stop(self):
        for process in list(self.processes.values()):
            self.context.processes.end(process)
