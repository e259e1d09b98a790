"""Two machines: a replicated disk under systemd, through restarts, kills, hangs, shutdowns and a sudden death.

Each test gets the pair as stage.pair() describes it and leaves it so.
"""
import re
import time

from machine import Failure, cable, until
from stage import DEVICE, RESOURCE, connected, daemon, role, until_connected, until_new_daemon, until_up_to_date


def write(node, name, text):
    """A file whose contents are on stable storage when this returns."""
    node.write(f"/data/{name}", text)
    node.run("sync", f"/data/{name}")


def check_file(node, name, text):
    found = node.run("cat", f"/data/{name}", check=False).stdout
    if found != text:
        raise Failure(f"{node.name}: /data/{name} is '{found}', and was '{text}'")


def check_role(node, wanted):
    if role(node) != wanted:
        raise Failure(f"{node.name} is {role(node)} and should be {wanted}: {node.says('qrbdadm', 'status', check=False)}\n{node.journal()[-3000:]}")


def take_over(node):
    node.run("systemctl", "start", "data.mount", limit=120)
    check_role(node, "Primary")


def hand_over(node):
    """Everything above the resource is stopped by stopping the role."""
    node.run("systemctl", "stop", f"qrbd-promote@{RESOURCE}", limit=120)
    check_role(node, "Secondary")
    if node.run("mountpoint", "-q", "/data", check=False).returncode == 0:
        raise Failure(f"{node.name}: /data is mounted under a Secondary")


def start_again(node, peer):
    """Boots a machine that was off; its daemon is enabled, so the resource comes by itself."""
    node.boot()
    first, second = (node, peer) if node.name == "alice" else (peer, node)
    cable(first, "192.168.77.1/24", second, "192.168.77.2/24")
    until_connected(node)
    until_up_to_date(peer)
    check_role(node, "Secondary")


def test_two_empty_machines_become_a_replicated_file_system(stage):
    alice, bob = stage.pair()
    check_role(alice, "Primary")
    check_role(bob, "Secondary")
    until_up_to_date(bob)
    write(alice, "first", "written on alice\n")
    hand_over(alice)
    take_over(bob)
    check_file(bob, "first", "written on alice\n")
    write(bob, "second", "written on bob\n")
    hand_over(bob)
    take_over(alice)
    check_file(alice, "second", "written on bob\n")


def test_restart_of_a_daemon_leaves_the_resource_and_its_role(stage):
    alice, bob = stage.pair()
    for node, wanted in ((bob, "Secondary"), (alice, "Primary")):
        # A client of the socket, as nbdfuse is one, does not outlive the daemon: it is stopped before.
        node.run("systemctl", "stop", f"qrbd-device@{RESOURCE}")
        before = daemon(node)
        node.run("systemctl", "restart", "qrbd")
        if daemon(node) == before:
            raise Failure(f"{node.name}: the daemon is the same process as before")
        check_role(node, wanted)
        until_connected(node)
    until_up_to_date(bob)
    take_over(alice)


def test_killed_daemon_of_a_primary_is_primary_again(stage):
    alice, bob = stage.pair()
    write(alice, "before-kill", "acknowledged\n")
    before = daemon(alice)
    alice.run("kill", "-KILL", str(before))
    until_new_daemon(alice, before)
    check_role(alice, "Primary")
    until_up_to_date(alice)
    check_role(bob, "Secondary")
    # The file system lost its device with the process; a new one shows what was acknowledged.
    alice.run("systemctl", "stop", f"qrbd-device@{RESOURCE}", check=False, limit=90)
    take_over(alice)
    check_file(alice, "before-kill", "acknowledged\n")


def test_killed_daemon_stays_secondary_while_its_peer_is_away(stage):
    alice, bob = stage.pair()
    alice.run("systemctl", "stop", f"qrbd-device@{RESOURCE}")
    bob.run("ip", "link", "set", "lan", "down")
    before = daemon(alice)
    alice.run("kill", "-KILL", str(before))
    until_new_daemon(alice, before)
    # Meanwhile bob may be promoted, which alice cannot know.
    check_role(alice, "Secondary")
    if "may have been promoted meanwhile" not in alice.journal("-u", "qrbd.service"):
        raise Failure(f"the log of alice does not say why: {alice.journal('-u', 'qrbd.service')}")
    bob.run("ip", "link", "set", "lan", "up")
    until_connected(alice)
    alice.run("systemctl", "restart", f"qrbd-promote@{RESOURCE}", limit=120)
    until_up_to_date(bob)
    take_over(alice)


def test_daemon_that_hangs_is_ended_by_the_watchdog_and_comes_back(stage):
    _, bob = stage.pair()
    if bob.says("systemctl", "show", "--property=WatchdogUSec", "--value", "qrbd.service") != "30s":
        raise Failure("qrbd.service has no watchdog of 30 s")
    # The same with less patience.
    bob.write("/etc/systemd/system/qrbd.service.d/impatient.conf", "[Service]\nWatchdogSec=2\n")
    bob.run("systemctl", "daemon-reload")
    bob.run("systemctl", "restart", "qrbd")
    until_connected(bob)
    before = daemon(bob)
    # It lives for longer than that as long as it works.
    time.sleep(4)
    if daemon(bob) != before:
        raise Failure(f"a daemon that worked was ended: {bob.journal('-u', 'qrbd.service')[-3000:]}")
    bob.run("kill", "-STOP", str(before))
    until_new_daemon(bob, before)
    if "Watchdog timeout" not in bob.journal("-u", "qrbd.service"):
        raise Failure(f"it was not the watchdog: {bob.journal('-u', 'qrbd.service')[-3000:]}")
    check_role(bob, "Secondary")
    until_connected(bob)
    until_up_to_date(bob)
    bob.run("rm", "/etc/systemd/system/qrbd.service.d/impatient.conf")
    bob.run("systemctl", "daemon-reload")
    bob.run("systemctl", "restart", "qrbd")
    until_up_to_date(bob)


def test_shutdown_unmounts_first_and_the_network_goes_last(stage):
    alice, bob = stage.pair()
    # The network of a real machine is a unit like this one.
    alice.write("/etc/systemd/system/lan.service", """\
[Unit]
Before=network.target network-online.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'pgrep -x qrbdd >/dev/null && echo qrbdd is still there; ip link set lan down; echo network is down'
[Install]
WantedBy=network-online.target
""")
    alice.run("systemctl", "daemon-reload")
    alice.run("systemctl", "enable", "--now", "lan.service")
    # In the page cache only: the shutdown has to bring it to both disks.
    alice.write("/data/last", "written just before the end\n")
    alice.power_off()
    journal = alice.journal("-o", "cat", "-b")
    steps = [r"Unmounted (data\.mount|/data)", rf"Stopped qrbd-device@{RESOURCE}", rf"Stopped qrbd-promote@{RESOURCE}", r"^stopped$|INFO stopped", r"Stopped qrbd\.service",
             r"network is down"]
    places = [[match.start() for match in re.finditer(step, journal, re.MULTILINE)] for step in steps]
    if not all(places) or sorted(last := [place[-1] for place in places]) != last:
        raise Failure(f"not in this order: {steps}: {places}\n{journal[-5000:]}")
    if "qrbdd is still there" in journal:
        raise Failure("the network went before the daemon")
    # Demoted in order, so nothing is to be copied but what bob writes now, and the file system needs no recovery.
    bob.run("systemctl", "start", f"qrbd-device@{RESOURCE}", limit=120)
    features = bob.says("dumpe2fs", "-h", DEVICE)
    if "needs_recovery" in features:
        raise Failure(f"the file system was not unmounted: {features}")
    take_over(bob)
    check_file(bob, "last", "written just before the end\n")
    start_again(alice, bob)
    hand_over(bob)
    take_over(alice)


def test_sudden_death_of_the_primary_loses_nothing_and_it_comes_back_as_a_copy(stage):
    alice, bob = stage.pair()
    write(alice, "synced", "before it died\n")
    alice.kill()
    until("bob sees that alice is gone", 60, lambda: not connected(bob))
    take_over(bob)
    check_file(bob, "synced", "before it died\n")
    write(bob, "alone", "while alice was away\n")
    start_again(alice, bob)
    check_role(bob, "Primary")
    hand_over(bob)
    take_over(alice)
    check_file(alice, "alone", "while alice was away\n")
