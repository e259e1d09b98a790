"""A pair under keepalived in the lab, and how to look at it. What is tested is in the tests."""

import re

from lab import NODES, ROOT, ROUTER, SERVICE_ADDRESS, Lab, until

TIMERS = "        ping-int 2;\n        ping-timeout 10;\n        timeout 19;\n        connect-int 2;\n        after-sb-1pri discard-secondary;\n"

FAILOVER = f"""resource = r0
mount = /mnt/r0
service = /usr/local/sbin/records-service
address = {SERVICE_ADDRESS}/24 v0
unreachable-peer = %s
promote-timeout = %d
retry-after = %d
settle-time = 6
log-file = /var/log/qrbd-failover.log
"""

class KeepalivedLab(Lab):
    """See the module's text."""

    def boot(self, node, keepalived=True):
        self.start(node)
        self.install(node, "keepalived")
        self.install_service(node, "/usr/local/sbin/records-service")
        if keepalived:
            self.start_daemon(node)
            self.start_keepalived(node)

    def pair(self, rule=f"witness {ROUTER}", promote_timeout=30, retry_after=3, start=True):
        """Both nodes with a formatted, synchronised resource, under keepalived; nodea has the service."""
        self.network()
        self.configuration(net=TIMERS)
        for node in NODES:
            etc = self.home(node) / "etc"
            (etc / "keepalived").mkdir(parents=True, exist_ok=True)
            (etc / "qrbd/failover.conf").write_text(FAILOVER % (rule, promote_timeout, retry_after))
            # The file that is shipped, with this lab's interface and shorter intervals.
            text = (ROOT / "scripts/cluster/keepalived/keepalived.conf").read_text()
            text = text.replace("router_id node1", f"router_id {node}").replace("eth0", "v0")
            text = re.sub(r"advert_int 1\b", "advert_int 0.5", re.sub(r"interval 2\b", "interval 1", text))
            (etc / "keepalived/keepalived.conf").write_text(text)
            (etc / "keepalived/keepalived.conf").chmod(0o644)
        for node in NODES:
            self.boot(node, keepalived=False)
            self.admin(node, "create-md", "r0")
            self.start_daemon(node)
        self.admin("nodea", "wait-connect", "r0")
        self.admin("nodea", "new-current-uuid", "--clear-bitmap", "r0")
        self.admin("nodea", "primary", "r0")
        device = self.on("nodea", "qrbd-device", "attach", "r0").out.strip()
        self.on("nodea", "mkfs.ext4", "-q", device)
        self.on("nodea", "qrbd-device", "detach", "r0")
        self.admin("nodea", "secondary", "r0")
        if start:
            self.start_keepalived("nodea")
            until("nodea serves", lambda: self.serving() == "nodea")
            self.start_keepalived("nodeb")
            until("nodeb stands by", lambda: "keepalived says BACKUP" in self.log("nodeb") and self.state("nodeb") == "released")

    def start_keepalived(self, node):
        words = "keepalived --dont-fork --log-console --vrrp --pid /run/keepalived.pid --vrrp_pid /run/keepalived_vrrp.pid"
        self.on(node, "sh", "-c", f"{words} </dev/null >>/var/log/keepalived.log 2>&1 &")

    def stop_keepalived(self, node):
        """As systemd does with the drop-in that is shipped: keepalived does not wait long for its last notify, ExecStopPost does."""
        self.on(node, "sh", "-c", "kill $(cat /run/keepalived.pid)")
        until(f"keepalived of {node} has ended", lambda: self.on(node, "pgrep", "--exact", "keepalived", check=False).code == 1)
        self.on(node, "qrbd-failover", "release")

    def kill_keepalived(self, node):
        """Without a farewell to the other node: the parent cannot do anything about the child's end."""
        self.on(node, "sh", "-c", "kill -STOP $(cat /run/keepalived.pid); kill -KILL $(cat /run/keepalived_vrrp.pid); kill -KILL $(cat /run/keepalived.pid)")

    def log(self, node):
        path = self.home(node) / "log/qrbd-failover.log"
        return path.read_text() if path.exists() else ""

    def state(self, node):
        result = self.on(node, "qrbd-failover", "status", check=False)
        found = re.match(r"r0: (\w+)", result.out)
        return found.group(1) if found else None

    def addresses_are_earned(self):
        """No node has the address without being a Primary that has the file system mounted."""
        for node in NODES:
            if not self.alive(node):
                continue
            # One look, in the order in which things go away: the address first.
            words = f"ip -4 -o address show dev v0 | grep -q ' {SERVICE_ADDRESS}/' || exit 0; findmnt /mnt/r0 >/dev/null && [ \"$(qrbdadm role r0)\" = Primary ] && exit 0; ip -4 -o address show dev v0 | grep -q ' {SERVICE_ADDRESS}/' || exit 0; exit 7"
            if self.on(node, "sh", "-c", words, check=False).code == 7:
                raise AssertionError(f"{node} has the address, but has not earned it")

    def serving(self):
        """The node with the service, if it is one."""
        self.addresses_are_earned()
        found = [node for node in NODES if self.alive(node) and self.has_address(node)]
        return found[0] if len(found) == 1 else None
