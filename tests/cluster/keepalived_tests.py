"""Tests of the keepalived kit with a real keepalived. Each function is a test; its name is its claim."""

from client import Client
from keepalived_lab import KeepalivedLab
from lab import NODES, ROOT, run, until

LAB = KeepalivedLab


def other(node):
    return NODES[1 - NODES.index(node)]


def whole(lab, node):
    """`node` serves, and the other one is its copy."""

    def condition():
        return lab.serving() == node and lab.dstate(node) == "UpToDate/UpToDate" and lab.role(other(node)) == "Secondary"

    until(f"{node} serves and {other(node)} is its copy", condition, 90)


def standby_takes_over_from_a_node_that_stops_or_dies(lab):
    lab.pair()
    client = Client(lab)
    client.is_answered()
    lab.say("keepalived of nodea is stopped in order")
    lab.stop_keepalived("nodea")
    until("nodeb serves", lambda: lab.serving() == "nodeb")
    client.is_answered()
    lab.start_keepalived("nodea")
    whole(lab, "nodeb")
    until("nodea stands by", lambda: lab.state("nodea") == "released")

    lab.say("nodeb dies")
    lab.kill("nodeb")
    until("nodea serves", lambda: lab.serving() == "nodea")
    client.is_answered()
    lab.boot("nodeb")
    whole(lab, "nodea")
    client.is_answered()
    assert client.answered_by() == "nodea", "a node that comes back must not take the service away"

    lab.say("the service dies")
    lab.on("nodea", "pkill", "--full", "records.py serve")
    client.is_answered(limit=90)
    assert client.answered_by() == "nodeb", f"answered by {client.answered_by()}"
    whole(lab, "nodeb")

    lab.say("the daemon dies under the mounted file system")
    lab.on("nodeb", "pkill", "--signal", "KILL", "--exact", "qrbdd")
    client.is_answered(limit=90)
    assert client.answered_by() == "nodea", f"answered by {client.answered_by()}"
    until("nodeb has let go", lambda: lab.state("nodeb") == "released" and not lab.has_mount("nodeb"))
    lab.start_daemon("nodeb")
    whole(lab, "nodea")
    client.verify("nodea")


def node_that_is_cut_off_steps_down(lab):
    lab.pair()
    client = Client(lab)
    client.is_answered()
    lab.cut("nodea")
    until("nodeb serves", lambda: lab.has_address("nodeb") and lab.has_mount("nodeb"))
    client.is_answered()
    assert client.answered_by() == "nodeb"
    until("nodea has stepped down", lambda: lab.state("nodea") == "released" and lab.role("nodea") == "Secondary" and not lab.has_mount("nodea"))
    lab.heal("nodea")
    whole(lab, "nodeb")
    lab.say("the one that stands by is cut off: nothing changes for the clients, and it is not promoted")
    lab.cut("nodea")
    until("nodea has tried", lambda: "this node is cut off" in lab.log("nodea").rsplit("Secondary", 1)[-1])
    client.is_answered()
    assert lab.role("nodea") == "Secondary" and not lab.has_address("nodea")
    lab.heal("nodea")
    whole(lab, "nodeb")
    client.verify("nodeb")


def promotion_that_is_refused_gives_the_address_up(lab):
    lab.pair(promote_timeout=8, retry_after=5)
    client = Client(lab)
    client.is_answered()
    lab.say("keepalived of nodea is killed: nodea stays Primary, and keeps what it serves")
    lab.kill_keepalived("nodea")
    until("nodeb has given up", lambda: "cannot serve: not promoted within 8 s: nodea is Primary" in lab.log("nodeb"))
    until("nodeb says so to keepalived", lambda: "keepalived says FAULT" in lab.log("nodeb"))
    client.is_answered()
    assert client.answered_by() == "nodea" and lab.serving() == "nodea"
    lab.say("keepalived of nodea comes back and begins as BACKUP: it lets go, and one of them takes over")
    lab.start_keepalived("nodea")
    client.is_answered(limit=120)

    server = until("one serves", lab.serving)
    whole(lab, server)
    standby = other(server)
    lab.say(f"{standby} loses its place: its data are not whole")
    lab.admin(standby, "disconnect", "r0")
    lab.admin(standby, "outdate", "r0")
    until("check says so", lambda: "not UpToDate" in lab.on(standby, "qrbd-failover", "status", check=False).out)
    lab.stop_keepalived(server)
    until(f"{server} has let go", lambda: lab.state(server) == "released")
    assert not lab.has_address(standby) and lab.role(standby) == "Secondary"
    lab.start_keepalived(server)
    client.is_answered(limit=90)
    assert client.answered_by() == server
    lab.admin(standby, "connect", "r0")
    whole(lab, server)
    client.verify(server)


def flapping_ends_with_the_newest_wish(lab):
    lab.pair()
    client = Client(lab)
    client.is_answered()
    # As fast as they can be said, without waiting for any: what keepalived does when a link flaps.
    burst = "for i in 1 2 3 4 5 6 7 8; do qrbd-failover notify INSTANCE qrbd FAULT 150 & sleep 0.1; qrbd-failover notify INSTANCE qrbd MASTER 150 & sleep 0.2; done; wait"
    lab.on("nodea", "sh", "-c", burst, limit=120)
    until("nodea has come to rest", lambda: lab.state("nodea") == "serving", 90)
    whole(lab, "nodea")
    client.is_answered()
    lab.say("an older notify comes late: its process began before the newer one's")
    late = "sh -c 'sleep 1; exec qrbd-failover notify INSTANCE qrbd FAULT 150' & sleep 0.2; qrbd-failover notify INSTANCE qrbd MASTER 150; wait"
    lab.on("nodea", "sh", "-c", late)
    assert "keepalived says FAULT: overtaken by a newer wish" in lab.log("nodea"), lab.log("nodea")[-600:]
    whole(lab, "nodea")
    lab.say("the link flaps")
    for _ in range(4):
        lab.cut("nodea")
        until("nodeb is MASTER", lambda: lab.log("nodeb").rstrip().rsplit("keepalived says ", 1)[-1].startswith("MASTER"), 20)
        lab.heal("nodea")
    server = until("one serves", lab.serving, 90)
    whole(lab, server)
    client.is_answered()
    client.verify(server)


def unreachable_peer_is_judged_by_the_rule(lab):
    lab.pair(rule="refuse", promote_timeout=8, retry_after=2)
    lab.kill("nodea")
    until("nodeb refuses", lambda: "unreachable-peer = refuse" in lab.log("nodeb"))
    until("nodeb gives up", lambda: "keepalived says FAULT" in lab.log("nodeb"))
    assert lab.role("nodeb") == "Secondary" and not lab.has_address("nodeb")
    # A person has looked.
    lab.stop_keepalived("nodeb")
    until("nodeb is at rest", lambda: lab.state("nodeb") == "released")
    lab.on("nodeb", "qrbd-failover", "serve", "--peer-is-dead")
    assert lab.serving() == "nodeb"
    lab.on("nodeb", "qrbd-failover", "release")
    assert not lab.has_address("nodeb") and not lab.has_mount("nodeb") and lab.role("nodeb") == "Secondary"

    def rule(text):
        words = f"sed -i 's|^unreachable-peer = .*|unreachable-peer = {text}|' /etc/qrbd/failover.conf; qrbd-failover serve"
        result = lab.on("nodeb", "sh", "-c", words, check=False)
        served = lab.role("nodeb") == "Primary"
        lab.on("nodeb", "qrbd-failover", "release")
        assert served == (result.code == 0), str(result)
        return served

    assert not rule("fence /bin/false")
    assert rule("fence /bin/true")
    assert not rule("witness 10.77.0.77")
    assert rule("witness 10.77.0.77 10.77.0.254")
    assert rule("promote")
    # A configuration that cannot be understood is not guessed at.
    result = lab.on("nodeb", "sh", "-c", "sed -i 's|^unreachable-peer = .*|unreachable-peer = maybe|' /etc/qrbd/failover.conf; qrbd-failover check", check=False)
    assert result.code == 2 and "maybe" in result.err, str(result)


def heartbeat_script_keeps_drbddisk_manners(lab):
    lab.pair(start=False)
    for node in NODES:
        lab.install(node, "heartbeat")

    def disk(node, *words):
        return lab.on(node, "/etc/ha.d/resource.d/qrbddisk", *words, check=False)

    assert (disk("nodea", "r0", "status").code, disk("nodea", "r0", "status").out) == (3, "stopped\n")
    assert disk("nodea", "r0", "start").code == 0
    assert disk("nodea", "r0", "start").code == 0
    assert (disk("nodea", "r0", "status").code, disk("nodea", "r0", "status").out) == (0, "running\n")
    refused = disk("nodeb", "r0", "start")
    assert refused.code == 20 and "Multiple primaries" in refused.err, str(refused)
    assert disk("nodea", "r0", "stop").code == 0
    assert disk("nodeb", "start").code == 0 and lab.role("nodeb") == "Primary"
    # A Primary that dies is not waited for by hand.
    lab.kill("nodeb")
    assert disk("nodea", "r0", "start").code == 0 and lab.role("nodea") == "Primary"
    assert disk("nodea", "stop").code == 0 and lab.role("nodea") == "Secondary"
    lab.admin("nodea", "outdate", "r0")
    begun = disk("nodea", "r0", "start")
    assert begun.code == 20 and "UpToDate" in begun.err, str(begun)
    lab.on("nodea", "pkill", "--exact", "qrbdd")
    until("qrbdd has ended", lambda: lab.on("nodea", "pgrep", "--exact", "qrbdd", check=False).code == 1)
    assert disk("nodea", "r0", "stop").code == 0 and disk("nodea", "r0", "status").code == 3
    assert disk("nodea", "r0", "frobnicate").code == 1 and disk("nodea", "status").code == 10


def scripts_pass_shellcheck(lab):
    del lab
    scripts = [ROOT / "scripts/test-cluster", ROOT / "tests/cluster/node-init", ROOT / "tests/cluster/pacemaker-boot"]
    for name in ("install", "qrbd-device", "ocf/qrbd", "ocf/device", "heartbeat/qrbddisk"):
        scripts.append(ROOT / "scripts/cluster" / name)
    run(["shellcheck", "--severity=warning", *scripts])


TESTS = [
    scripts_pass_shellcheck,
    standby_takes_over_from_a_node_that_stops_or_dies,
    node_that_is_cut_off_steps_down,
    promotion_that_is_refused_gives_the_address_up,
    flapping_ends_with_the_newest_wish,
    unreachable_peer_is_judged_by_the_rule,
    heartbeat_script_keeps_drbddisk_manners,
]
