"""A two-node Pacemaker cluster in the lab, and how to look at it.

Owns corosync's configuration, the first CIB, the fence agent (which asks the lab to kill a node, as a power switch would), and the
questions that tests ask of the cluster. What is tested is in the tests.
"""

import re
import shutil
import threading
import time

from lab import HERE, NODES, ROOT, SERVICE_ADDRESS, Lab, run, until

CIB_OPTIONS = {"dc-deadtime": "2s", "stonith-enabled": "false", "cluster-recheck-interval": "30s"}
# Timers of the test's resource: a peer that is gone is noticed within three seconds.
TIMERS = "        ping-int 2;\n        ping-timeout 10;\n        timeout 19;\n        connect-int 2;\n"

FENCE_AGENT = """#!/bin/sh
# Asks the lab to end a node. Parameters come as lines name=value.
while IFS='=' read -r key value; do
    case $key in action | option) action=$value ;; port | plug | nodename) node=$value ;; esac
done
case $action in
metadata)
    cat <<XML
<?xml version="1.0"?>
<resource-agent name="fence_lab" shortdesc="ends a node of the lab">
<longdesc>Ends a node of the lab.</longdesc><vendor-url>none</vendor-url>
<parameters>
<parameter name="action" unique="0" required="1"><getopt mixed="-o"/><content type="string" default="off"/><shortdesc lang="en">Action</shortdesc></parameter>
<parameter name="plug" unique="0" required="1"><getopt mixed="-n"/><content type="string"/><shortdesc lang="en">Node</shortdesc></parameter>
</parameters>
<actions><action name="on" automatic="0"/><action name="off"/><action name="reboot"/><action name="status"/><action name="list"/>
<action name="monitor"/><action name="metadata"/></actions>
</resource-agent>
XML
    ;;
off | reboot)
    mkdir "@directory@/$node" 2>/dev/null
    turns=200
    until [ -e "@directory@/$node/done" ]; do
        turns=$((turns - 1)); [ $turns -gt 0 ] || exit 1
        sleep 0.1
    done
    ;;
list) printf 'nodea\\nnodeb\\n' ;;
esac
"""

COROSYNC = """totem {
  version: 2
  cluster_name: lab
  transport: knet
  token: 1000
  crypto_cipher: none
  crypto_hash: none
}
nodelist {
  node {
    ring0_addr: 10.77.0.1
    name: nodea
    nodeid: 1
  }
  node {
    ring0_addr: 10.77.0.2
    name: nodeb
    nodeid: 2
  }
}
quorum {
  provider: corosync_votequorum
  two_node: 1
  wait_for_all: 1
}
logging {
  to_stderr: yes
  to_syslog: no
  to_logfile: no
  timestamp: hires
}
"""


HANDLERS = """    handlers {
        fence-peer "/usr/local/lib/qrbd/crm-fence-peer";
        unfence-peer "/usr/local/lib/qrbd/crm-unfence-peer";
    }
"""


class PacemakerLab(Lab):
    """See the module's text."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.fenced = []
        self.fencing = None
        self.stopping = threading.Event()
        (self.directory / "fence").mkdir()

    def boot(self, node):
        """A node with corosync and Pacemaker; the CIB it gets if it has none makes the first election quick."""
        etc = self.home(node) / "etc"
        (etc / "corosync").mkdir(parents=True, exist_ok=True)
        (etc / "corosync/corosync.conf").write_text(COROSYNC)
        cib = self.home(node) / "cib.xml"
        pairs = "".join(f'<nvpair id="o-{name}" name="{name}" value="{value}"/>' for name, value in CIB_OPTIONS.items())
        empty = run(["cibadmin", "--empty"]).out.replace('admin_epoch="0"', 'admin_epoch="1"')
        options = f'<crm_config><cluster_property_set id="cib-bootstrap-options">{pairs}</cluster_property_set></crm_config>'
        cib.write_text(empty.replace("<crm_config/>", options))
        self.start(node, HERE / "pacemaker-boot", cib)
        self.install(node, "pacemaker")
        fence = self.home(node) / "fence_lab"
        fence.write_text(FENCE_AGENT.replace("@directory@", str(self.directory / "fence")))
        self.on(node, "install", "-m", "0755", fence, "/usr/sbin/fence_lab")
        self.on(node, "mkdir", "-p", "/mnt/r0", "/etc/init.d")
        self.install_service(node, "/etc/init.d/records-service")

    def configuration_of_cluster(self, service, constraints):
        """The file that is shipped, with this lab's names and shorter intervals."""
        text = (ROOT / "scripts/cluster/pacemaker/r0.crm").read_text()
        for old, new in (
            ("/srv/r0", "/mnt/r0"),
            ("192.168.1.100", SERVICE_ADDRESS),
            ("nic=eth0", "nic=v0"),
            ("systemd:shop", "lsb:records-service"),
            ("role=Promoted interval=10s timeout=20s", "role=Promoted interval=2s timeout=40s"),
            ("role=Unpromoted interval=20s timeout=20s", "role=Unpromoted interval=3s timeout=40s"),
            ("monitor interval=20s", "monitor interval=4s"),
            ("monitor interval=10s", "monitor interval=3s"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        if not constraints:
            text = text.replace("fence_peer=true unfence_if_all_uptodate=true", "")
        if not service:
            text = text[: text.index("primitive device")]
        return text

    def cluster(self, service=False, stonith=None, constraints=True, fencing=False):
        """Both nodes with a synchronised resource, formatted for the service, under Pacemaker.

        `stonith`: pcmk_delay_base, who loses a duel. `constraints`: the agent calls the fencing handlers. `fencing`: the daemon does, and
        there is no policy that would hide a split brain.
        """
        self.network()
        if fencing:
            self.configuration(net=TIMERS + "        fencing resource-and-stonith;\n", more=HANDLERS)
        else:
            self.configuration(net=TIMERS + "        after-sb-1pri discard-secondary;\n")
        for node in NODES:
            self.boot(node)
        self.prepare(service)
        for node in NODES:
            until("both nodes are online", lambda node=node: self.online(node) == set(NODES), 120)
        text = self.configuration_of_cluster(service, constraints)
        if stonith:
            text += (
                "property stonith-enabled=true stonith-timeout=30s\n"
                # Whom the duel of two halves ends first.
                f'primitive power stonith:fence_lab params pcmk_host_list="nodea nodeb" pcmk_delay_base="{stonith}" op monitor interval=60s timeout=30s\n'
            )
            self.serve_fencing()
        (self.directory / "cluster.crm").write_text(text)
        self.crm("nodea", "configure", "load", "update", self.directory / "cluster.crm")
        until("one node is promoted", lambda: self.promoted("nodea"), 90)
        if service:
            until("the service runs", lambda: self.serving(), 90)

    def prepare(self, formatted):
        """What an administrator does once: metadata, the first generation, a file system."""
        for node in NODES:
            self.admin(node, "create-md", "r0")
            self.start_daemon(node)
        self.admin("nodea", "wait-connect", "r0")
        self.admin("nodea", "new-current-uuid", "--clear-bitmap", "r0")
        if formatted:
            self.admin("nodea", "primary", "r0")
            device = self.on("nodea", "qrbd-device", "attach", "r0").out.strip()
            self.on("nodea", "mkfs.ext4", "-q", device)
            self.on("nodea", "qrbd-device", "detach", "r0")
            self.admin("nodea", "secondary", "r0")

    def crm(self, node, *words, check=True):
        return self.on(node, "crm", *words, check=check)

    # ---- looking

    def mon(self, node):
        return self.on(node, "crm_mon", "-1", "--inactive", check=False, limit=30).out

    def online(self, node):
        found = re.search(r"Online: \[ (.*) \]", self.mon(node))
        return set(found.group(1).split()) if found else set()

    def promoted(self, node):
        """Who is promoted, as this node sees it."""
        found = re.findall(r"\* Promoted: \[ (.*) \]", self.mon(node))
        return found[0].split() if found else []

    def unpromoted(self, node):
        found = re.findall(r"\* Unpromoted: \[ (.*) \]", self.mon(node))
        return found[0].split() if found else []

    def score(self, node, of):
        result = self.on(node, "crm_attribute", "--promotion=disk", "--node", of, "--lifetime", "reboot", "--query", "--quiet", check=False)
        return int(result.out.strip()) if result.code == 0 and result.out.strip() not in ("", "(null)") else None

    def serving(self):
        """The node with the service, if it is one."""

        def serve():
            return [node for node in NODES if self.alive(node) and self.has_address(node) and self.has_mount(node)]

        found = serve()
        # The nodes are looked at one after the other, and the service may have moved in between.
        if len(found) > 1 and len(serve()) > 1:
            # Fatal, not a condition to wait for.
            raise AssertionError(f"two nodes serve: {found}")
        return found[0] if len(found) == 1 else None

    # ---- doing

    def move(self, target):
        """Asks for the Primary to be on a node; no harm if it is there already."""
        words = ["crm_resource", "--move", "--resource", "disk-clone", "--promoted", "--node", target]
        self.on("nodeb" if self.alive("nodeb") else "nodea", *words, check=False)

    def unmove(self, node):
        self.on(node, "crm_resource", "--clear", "--resource", "disk-clone")

    def serve_fencing(self):
        """The power switch: a directory named like a node asks for its end."""

        def serve():
            while not self.stopping.is_set():
                for request in (self.directory / "fence").iterdir():
                    if not (request / "done").exists():
                        self.kill(request.name)
                        self.fenced.append(request.name)
                        self.say(f"{request.name} is fenced")
                        (request / "done").touch()
                time.sleep(0.05)

        self.fencing = threading.Thread(target=serve, daemon=True)
        self.fencing.start()

    def power_on(self, node):
        """A node that was fenced may be fenced again."""
        shutil.rmtree(self.directory / "fence" / node, ignore_errors=True)
        self.say(f"{node} is started again")
        self.boot(node)

    def close(self):
        self.stopping.set()
        if self.fencing:
            self.fencing.join(30)
        super().close()
