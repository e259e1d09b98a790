"""Tests of the Pacemaker integration: agents, fail-over, fencing, the fence-peer handler. Each function is a test; its name is its claim."""

from client import Client
from lab import NODES, run, until
from pacemaker_lab import PacemakerLab

LAB = PacemakerLab


def other(node):
    return NODES[1 - NODES.index(node)]


def settled(lab, node):
    """Both nodes are in the cluster with whole data, and `node` is the Primary."""

    def condition():
        return (
            lab.promoted(node) == [node]
            and lab.unpromoted(node) == [other(node)]
            and lab.dstate(node) == "UpToDate/UpToDate"
            and lab.role(other(node)) == "Secondary"
        )

    until(f"{node} is promoted, {other(node)} is its copy", condition, 90)
    until("both have the best score", lambda: [lab.score(node, name) for name in NODES] == [10000, 10000], 60)


def settle_on(lab, node):
    """Moves the Primary to a node if it is not there."""
    if lab.promoted("nodea") != [node]:
        lab.move(node)
        until(f"{node} is promoted", lambda: lab.promoted(node) == [node], 60)
        lab.unmove(node)
    settled(lab, node)


def agents_pass_every_check(lab):
    lab.network()
    lab.configuration()
    for node in NODES:
        lab.start(node)
        lab.install(node, "pacemaker")
        lab.on(node, "mkdir", "-p", "/var/log/pacemaker", "/run/resource-agents")
    lab.prepare(formatted=False)
    for agent in ("qrbd", "device"):
        path = f"/usr/lib/ocf/resource.d/qrbd/{agent}"
        data = lab.directory / f"{agent}.xml"
        data.write_text(lab.on("nodea", path, "meta-data", env={"OCF_ROOT": "/usr/lib/ocf", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}).out)
        run(["xmllint", "--noout", "--dtdvalid", "/usr/share/resource-agents/ra-api-1.dtd", data])
        run(["xmllint", "--noout", "--relaxng", "/usr/share/resource-agents/metadata.rng", data])
        lab.say(f"{agent}: meta-data valid against DTD and RNG")
        lab.on("nodea", "crm_resource", "--validate", "--class", "ocf", "--provider", "qrbd", "--agent", agent, "--option", "qrbd_resource=r0")
    result = lab.on("nodea", "ocf-tester", "-n", "t", "-o", "qrbd_resource=r0", "-o", "wfc_timeout=1", "/usr/lib/ocf/resource.d/qrbd/qrbd", check=False, limit=120)
    lab.say(result.out.strip())
    assert result.code == 0 and "passed all tests" in result.out, str(result)
    lab.admin("nodea", "up", "r0")
    lab.admin("nodea", "primary", "r0")
    result = lab.on("nodea", "ocf-tester", "-n", "t", "-o", "qrbd_resource=r0", "/usr/lib/ocf/resource.d/qrbd/device", check=False, limit=120)
    lab.say(result.out.strip())
    assert result.code == 0 and "passed all tests" in result.out, str(result)
    lab.admin("nodea", "secondary", "r0")

    # Return codes, as scripts and Pacemaker read them.
    def agent(action, expected, **parameters):
        words = ["env", "OCF_ROOT=/usr/lib/ocf", "OCF_RESKEY_crm_feature_set=3.16.1", "OCF_RESOURCE_INSTANCE=disk"]
        words += [f"OCF_RESKEY_{name}={value}" for name, value in parameters.items()]
        result = lab.on("nodea", *words, "/usr/lib/ocf/resource.d/qrbd/qrbd", action, check=False)
        assert result.code == expected, f"expected {expected}: {result}"
        return result

    agent("monitor", 0, drbd_resource="r0")
    agent("promote", 0, drbd_resource="r0")
    agent("monitor", 8, drbd_resource="r0")
    agent("promote", 0, drbd_resource="r0")
    agent("demote", 0, drbd_resource="r0")
    agent("stop", 0, drbd_resource="r0")
    agent("stop", 0, drbd_resource="r0")
    agent("monitor", 7, drbd_resource="r0")
    agent("validate-all", 6)
    agent("validate-all", 6, qrbd_resource="r0", drbd_resource="r1")
    agent("validate-all", 6, qrbd_resource="r0", CRM_meta_clone_max="2", CRM_meta_notify="false")
    agent("validate-all", 0, qrbd_resource="r0", CRM_meta_clone_max="2", CRM_meta_notify="true")
    agent("validate-all", 6, qrbd_resource="r0", CRM_meta_clone_max="3", CRM_meta_notify="true")
    agent("validate-all", 5, qrbd_resource="unknown")
    agent("validate-all", 5, qrbd_resource="r0", qrbdconf="/etc/none.conf")
    agent("frobnicate", 3, qrbd_resource="r0")
    # A daemon that does not run is started, or its absence is said.
    lab.on("nodea", "pkill", "--exact", "qrbdd")
    until("qrbdd has ended", lambda: lab.on("nodea", "pgrep", "--exact", "qrbdd", check=False).code == 1)
    agent("monitor", 7, qrbd_resource="r0")
    agent("stop", 0, qrbd_resource="r0")
    said = agent("start", 1, qrbd_resource="r0", daemon="never")
    assert "does not run" in said.err, str(said)
    agent("start", 0, qrbd_resource="r0")
    agent("monitor", 0, qrbd_resource="r0")
    # A Secondary that is stopped beside a Primary outdates itself, if that is wanted.
    lab.admin("nodea", "wait-connect", "r0")
    lab.admin("nodeb", "primary", "r0")
    agent("stop", 0, qrbd_resource="r0", stop_outdates_secondary="true")
    until("the peer has it Outdated", lambda: lab.admin("nodea", "dstate", "r0", check=False).out.startswith("Outdated"))
    lab.admin("nodeb", "secondary", "r0")
    agent("start", 0, qrbd_resource="r0")
    # A configuration that broke must not keep it from being stopped.
    (lab.directory / "broken").write_text("resource r0 {\n")
    lab.on("nodea", "cp", lab.directory / "broken", "/etc/qrbd.d/r0.res")
    agent("stop", 0, qrbd_resource="r0")
    agent("monitor", 7, qrbd_resource="r0")


def service_moves_and_survives_the_loss_of_its_node(lab):
    lab.cluster(service=True)
    first = lab.serving()
    settled(lab, first)
    client = Client(lab)
    client.is_answered()
    lab.say(f"moving the service away from {first}")
    second = other(first)
    lab.move(second)
    until("the service has moved", lambda: lab.serving() == second)
    lab.unmove(second)
    client.is_answered()
    assert client.answered_by() == second, f"answered by {client.answered_by()}"
    settled(lab, second)

    lab.say(f"{second} is lost")
    lab.kill(second)
    until("the service is taken over", lambda: lab.serving() == first, 90)
    client.is_answered()
    lab.power_on(second)
    settled(lab, first)
    assert lab.serving() == first, "the return of a node must not move the service"
    client.is_answered()

    lab.say(f"the daemon of {first} is killed under the mounted file system")
    lab.on(first, "pkill", "--signal", "KILL", "--exact", "qrbdd")
    client.is_answered(limit=120)
    lab.say(f"served by {lab.serving()}")
    until("both nodes are whole", lambda: lab.dstate(lab.serving() or "nodea") == "UpToDate/UpToDate", 90)
    client.verify(until("the service runs", lab.serving))


def served_after_a_cut(lab, **options):
    """A cluster whose Primary, nodea, was cut off and fenced, since it loses every duel: nodeb serves the client that is given back."""
    lab.cluster(service=True, stonith="nodea:0s;nodeb:4s", **options)
    settle_on(lab, "nodea")
    until("the service follows", lambda: lab.serving() == "nodea")
    client = Client(lab)
    client.is_answered()

    lab.cut("nodea")
    until("nodea is fenced", lambda: "nodea" in lab.fenced)
    until("nodeb has the service", lambda: lab.serving() == "nodeb", 90)
    client.is_answered()
    return client


def nodea_returns(lab):
    lab.heal("nodea")
    lab.power_on("nodea")
    settled(lab, "nodeb")


def cut_node_is_fenced_and_nothing_answered_is_lost(lab):
    client = served_after_a_cut(lab)
    nodea_returns(lab)

    lab.say("the same again, with the Secondary as the loser: the service stays where it is")
    lab.fenced.clear()
    lab.cut("nodea")
    until("nodea is fenced", lambda: "nodea" in lab.fenced)
    client.is_answered()
    assert lab.serving() == "nodeb"
    nodea_returns(lab)
    client.verify("nodeb")
    assert "nodeb" not in lab.fenced


def cut_primary_waits_for_fencing_and_is_no_split_brain(lab):
    # Its daemon calls the handlers. No policy resolves a split brain.
    client = served_after_a_cut(lab, constraints=False, fencing=True)
    assert constraints(lab, "nodeb") == 1, "the handler's constraint stands while nodea is away"
    nodea_returns(lab)
    until("the constraint is removed", lambda: constraints(lab, "nodeb") == 0, 60)
    client.is_answered()
    client.verify("nodeb")


def handler(lab, node, name="crm-fence-peer", arguments=(), **environment):
    """Calls a handler as the daemon would, and gives its exit code."""
    words = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DRBD_RESOURCE=r0", "DRBD_NODE_ID_0=nodea", "DRBD_NODE_ID_1=nodeb"]
    words += [f"DRBD_PEER_NODE_ID={1 - NODES.index(node)}", f"DRBD_PEER={other(node)}"]
    words += [f"{key}={value}" for key, value in environment.items()]
    result = lab.on(node, *words, f"/usr/local/lib/qrbd/{name}", *arguments, check=False, limit=120)
    lab.say(f"{name} on {node}: exit code {result.code}: {result.err.strip()}")
    return result.code


def constraints(lab, node):
    return lab.on(node, "cibadmin", "--query", "--scope", "constraints").out.count("drbd-fence-by-handler-r0-disk-clone\"")


def fence_peer_handler_keeps_its_contract(lab):
    lab.cluster(stonith="nodea:0s;nodeb:4s", constraints=False)
    settle_on(lab, "nodea")
    # 6: the peer is promoted; nothing is placed.
    assert handler(lab, "nodeb") == 6
    assert constraints(lab, "nodea") == 0
    # 1: nothing can be concluded.
    assert handler(lab, "nodea", DRBD_RESOURCE="unknown") == 1
    assert handler(lab, "nodea", arguments=("--frobnicate",)) == 1
    assert handler(lab, "nodea", DRBD_NODE_ID_1="nodec", DRBD_PEER="nodec") == 1
    assert handler(lab, "nodea", name="crm-unfence-peer") == 0
    # 1: the peer is a member still, but it does not answer: it may be dead or cut off, and not know of the constraint.
    lab.on("nodeb", "pkill", "--signal", "STOP", "--exact", "pacemaker-based")
    assert handler(lab, "nodea", arguments=("--timeout", "4", "--dc-timeout", "6")) == 1
    lab.on("nodeb", "pkill", "--signal", "CONT", "--exact", "pacemaker-based")
    # 4: the peer is a member and obeys. Twice is as good as once.
    assert handler(lab, "nodea") == 4
    assert constraints(lab, "nodea") == 1
    assert handler(lab, "nodea", UP_TO_DATE_NODES="0x1") == 4
    # Who is fenced cannot fence the other.
    lab.crm("nodea", "node", "standby", "nodea", check=False)
    lab.on("nodea", "crm_standby", "-N", "nodea", "-v", "on")
    until("nobody is promoted", lambda: lab.promoted("nodeb") == [])
    until("nodea is down", lambda: lab.unpromoted("nodeb") == ["nodeb"])
    assert handler(lab, "nodeb") == 1
    # The constraint holds: nodeb has whole data and is not promoted. Seen in the policy, not by waiting.
    until("the cluster is idle", lambda: lab.on("nodeb", "crm_resource", "--wait", "--timeout", "60", check=False).code == 0)
    assert lab.promoted("nodeb") == [], "the constraint did not keep nodeb from being promoted"
    assert handler(lab, "nodea", name="crm-unfence-peer") == 0
    assert constraints(lab, "nodeb") == 0
    until("nodeb is promoted without the constraint", lambda: lab.promoted("nodeb") == ["nodeb"], 60)
    lab.on("nodeb", "crm_standby", "-N", "nodea", "-D")
    settled(lab, "nodeb")
    # 7: the cluster has fenced it. The handler is called at once and waits for that.
    lab.kill("nodea")
    assert handler(lab, "nodeb") == 7
    assert lab.fenced == ["nodea"]
    lab.power_on("nodea")
    settled(lab, "nodeb")
    assert handler(lab, "nodeb", name="crm-unfence-peer") == 0
    # 5: it is gone, and nobody fences.
    lab.on("nodeb", "crm_attribute", "--type", "crm_config", "--name", "stonith-enabled", "--update", "false")
    lab.on("nodeb", "crm_resource", "--wait", "--timeout", "60", check=False)
    lab.kill("nodea")
    until("nodeb misses nodea", lambda: lab.online("nodeb") == {"nodeb"})
    assert handler(lab, "nodeb") == 5
    # 1: there is no cluster at all.
    lab.on("nodeb", "pkill", "--signal", "KILL", "pacemakerd")
    lab.on("nodeb", "pkill", "--signal", "KILL", "--exact", "corosync")
    assert handler(lab, "nodeb", arguments=("--timeout", "5", "--dc-timeout", "5")) == 1


def idle(lab, node):
    until("the cluster is idle", lambda: lab.on(node, "crm_resource", "--wait", "--timeout", "60", check=False).code == 0, 90)


def node_with_old_data_is_not_promoted(lab):
    lab.cluster(service=True)
    newer = lab.serving()
    older = other(newer)
    settled(lab, newer)
    client = Client(lab)
    client.is_answered()
    lab.say(f"replication to {older} ends, the cluster is whole")
    lab.admin(older, "disconnect", "r0")
    until("the constraint is placed", lambda: constraints(lab, newer) == 1, 60)
    client.is_answered()
    lab.say(f"{newer} is lost; {older} takes its own data for UpToDate, and they are old")
    lab.kill(newer)
    until(f"{older} misses {newer}", lambda: lab.online(older) == {older})
    idle(lab, older)
    assert lab.dstate(older).startswith("UpToDate")
    assert lab.promoted(older) == [] and lab.serving() is None, "old data were promoted"
    lab.power_on(newer)
    until(f"{newer} serves again", lambda: lab.serving() == newer, 120)
    lab.admin(older, "connect", "r0")
    settled(lab, newer)
    until("the constraint is removed", lambda: constraints(lab, newer) == 0, 60)

    lab.say(f"{older} is lost, then {newer}; {older} comes back first, with a cluster configuration as old as its data")
    lab.kill(older)
    client.is_answered()
    lab.kill(newer)
    lab.power_on(older)
    until(f"{older} is in a cluster of its own", lambda: lab.online(older) == {older}, 90)
    idle(lab, older)
    assert lab.promoted(older) == [] and lab.serving() is None, "old data were promoted"
    lab.power_on(newer)
    # Which one is the cluster's choice: before anybody was promoted, the older copy was made equal to the newer one.
    final = until("somebody serves again", lab.serving, 120)
    settled(lab, final)
    client.verify(final)


TESTS = [
    agents_pass_every_check,
    service_moves_and_survives_the_loss_of_its_node,
    cut_node_is_fenced_and_nothing_answered_is_lost,
    cut_primary_waits_for_fencing_and_is_no_split_brain,
    fence_peer_handler_keeps_its_contract,
    node_with_old_data_is_not_promoted,
]
