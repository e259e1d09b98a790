"""One machine: what an installation does and does not do, and how it is taken away again."""
import os

from machine import Failure, run, until
from stage import MIB, daemon, role, until_new_daemon

UNITS = (
    "qrbd.service", "qrbd@r0.service", "qrbd@r0.target", "qrbd-promote@r0.service", "qrbd-services@r0.target", "qrbd-wait-connect@r0.service",
    "qrbd-wait-sync@r0.service", "qrbd-device@r0.service",
)
ALONE = """\
resource r0 {
    on solo  { disk /dev/sdb; meta-disk internal; address 127.0.0.1:7789; }
    on other { disk /dev/sdb; meta-disk internal; address 127.0.0.1:7790; }
}
"""


def test_installation_starts_nothing_and_its_units_are_clean(stage):
    solo = stage.machine("solo")
    said = stage.install(solo).stdout
    if any(word in said.lower() for word in ("warning", "error", "failed")):
        raise Failure(f"dpkg -i says: {said}")
    for state, wanted in (("is-active", "inactive"), ("is-enabled", "disabled")):
        found = solo.says("systemctl", state, "qrbd.service", check=False)
        if found != wanted:
            raise Failure(f"after the installation qrbd.service is {found}")
    said = solo.run("systemd-analyze", "verify", "--man=yes", *UNITS, check=False)
    if said.returncode != 0 or said.stdout.strip():
        raise Failure(f"systemd-analyze verify: {said.stdout}")
    if solo.says("stat", "-c", "%a %U", "/etc/qrbd", "/var/lib/qrbd", "/run/qrbd").split("\n") != ["700 root"] * 3:
        raise Failure(solo.says("ls", "-ld", "/etc/qrbd", "/var/lib/qrbd", "/run/qrbd"))
    # The configuration as it comes is one without resources, and no error.
    solo.run("qrbdadm", "sh-nop")
    # Started without a resource it stays, and says so.
    solo.run("systemctl", "start", "qrbd")
    if solo.says("systemctl", "is-active", "qrbd") != "active":
        raise Failure(solo.says("systemctl", "status", "qrbd", check=False))
    solo.close()


def test_completion_offers_commands_options_and_resources(stage):
    solo = stage.machine("solo")
    stage.install(solo)
    solo.write("/etc/qrbd.d/r0.res", ALONE)
    script = """\
. /usr/share/bash-completion/bash_completion
_completion_loader qrbdadm
complete_line() {
    COMP_WORDS=("$@")
    COMP_CWORD=$(($# - 1))
    COMPREPLY=()
    _qrbdadm "$1"
    printf '%s ' "${COMPREPLY[@]}"
    echo
}
complete_line qrbdadm wait-
complete_line qrbdadm up ""
complete_line qrbdadm primary --
complete_line qrbdadm --node solo up r
"""
    solo.write("/root/completion", script)
    lines = [line.split() for line in solo.says("bash", "/root/completion").split("\n")]
    wanted = [{"wait-connect", "wait-sync"}, {"r0", "all"}, {"--force", "--help"}, {"r0"}]
    if len(lines) != len(wanted) or any(not want <= set(line) for want, line in zip(wanted, lines)) or len(lines[3]) != 1:
        raise Failure(f"the completion offers {lines}")
    solo.close()


def test_daemon_that_ends_comes_back_with_its_resource(stage):
    solo = stage.machine("solo", [("sdb", 32 * MIB)])
    stage.install(solo)
    solo.write("/etc/qrbd.d/r0.res", ALONE)
    solo.write("/etc/default/qrbd", "QRBD_UP=\nQRBD_WAIT_CONNECT=1\n")
    solo.run("qrbdadm", "keygen")
    solo.run("qrbdadm", "create-md", "--force", "r0")
    # One resource at a time, without --up all: it is the unit that brings it up, and remembers.
    solo.run("systemctl", "enable", "--now", "qrbd@r0.target")
    check_up(solo, "after the start of qrbd@r0.target")
    for number in range(3):
        before = daemon(solo)
        solo.run("kill", "-KILL", str(before))
        until_new_daemon(solo, before)
        check_up(solo, f"after kill number {number + 1}")
    solo.run("systemctl", "stop", "qrbd@r0.target")
    until("r0 is down", 30, lambda: "r0 role:" not in solo.says("qrbdadm", "status", check=False))
    if solo.says("systemctl", "is-active", "qrbd.service", check=False) != "active":
        raise Failure(f"after the stop of qrbd@r0.target: {solo.says('systemctl', 'status', 'qrbd', check=False)}")
    # What was taken down stays down.
    solo.run("systemctl", "restart", "qrbd")
    if "r0 role:" in solo.says("qrbdadm", "status", check=False):
        raise Failure("a resource that was taken down is up after a restart of the daemon")
    solo.close()


def check_up(machine, when):
    status = machine.says("qrbdadm", "status", "r0", check=False)
    if not status.startswith("r0 role:Secondary"):
        raise Failure(f"{when} r0 is not up: {status}\n{machine.journal('-u', 'qrbd*')}")


def test_removal_is_refused_for_a_primary_and_leaves_the_configuration(stage):
    solo = stage.machine("solo", [("sdb", 32 * MIB)])
    stage.install(solo)
    solo.write("/etc/qrbd.d/r0.res", ALONE)
    solo.write("/etc/default/qrbd", "QRBD_UP=all\nQRBD_WAIT_CONNECT=1\n# mine\n")
    solo.run("qrbdadm", "keygen")
    solo.run("qrbdadm", "create-md", "--force", "r0")
    solo.run("systemctl", "enable", "--now", "qrbd")
    solo.run("qrbdadm", "primary", "--force", "r0")
    refused = solo.run("dpkg", "--remove", "qrbd", check=False)
    if refused.returncode == 0 or "r0 is Primary on this node" not in refused.stdout:
        raise Failure(f"the removal under a Primary: {refused.stdout}")
    if role(solo, "r0") != "Primary":
        raise Failure("the refused removal took the role away")
    solo.run("qrbdadm", "secondary", "r0")
    solo.run("dpkg", "--remove", "qrbd")
    gone = solo.says("sh", "-c", "pgrep -x qrbdd; systemctl is-active qrbd.service; ls /usr/sbin/qrbd* 2>&1", check=False)
    if "inactive" not in gone.split() or "/usr/sbin/qrbdd\n" in gone or gone.split()[0].isdigit():
        raise Failure(f"after the removal: {gone}")
    for file in ("/etc/qrbd.conf", "/etc/qrbd.d/r0.res", "/etc/qrbd/authkey", "/etc/default/qrbd"):
        solo.run("test", "-s", file)
    # Installed again it is as configured as before, and still enabled.
    stage.install(solo)
    solo.run("grep", "-q", "# mine", "/etc/default/qrbd")
    solo.run("systemctl", "start", "qrbd")
    until("r0 is up again", 20, lambda: solo.says("qrbdadm", "status", "r0", check=False).startswith("r0 role:Secondary"))
    solo.run("dpkg", "--purge", "qrbd")
    left = solo.says("sh", "-c", "find /etc -name '*qrbd*' -o -path '/etc/qrbd*' -type f | sort").split()
    if not {"/etc/qrbd.d/r0.res", "/etc/qrbd/authkey"} <= set(left) or {"/etc/qrbd.conf", "/etc/default/qrbd"} & set(left):
        raise Failure(f"after the purge there is {left}")
    if any("systemd" in file for file in left):
        raise Failure(f"units of the purged package: {left}")
    solo.close()


def test_drbd_names_are_never_installed_beside_drbd(stage):
    solo = stage.machine("solo")
    stage.install(solo)
    stage.install(solo, "compat_deb")
    version = solo.says("qrbdadm", "--version").split()[1]
    for name in ("drbdadm", "drbdsetup"):
        if os.path.basename(solo.says("readlink", "-f", f"/usr/sbin/{name}")) != "qrbdadm" or version not in solo.says(name, "--version"):
            raise Failure(f"{name} is not QRBD's")
    folder = os.path.join(stage.folder, "drbd-utils")
    os.makedirs(os.path.join(folder, "DEBIAN"))
    os.makedirs(os.path.join(folder, "usr/sbin"))
    with open(os.path.join(folder, "usr/sbin/drbdadm"), "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\necho somebody else\n")
    os.chmod(os.path.join(folder, "usr/sbin/drbdadm"), 0o755)
    with open(os.path.join(folder, "DEBIAN/control"), "w", encoding="utf-8") as file:
        file.write("Package: drbd-utils\nVersion: 9.22.0-1\nArchitecture: all\nMaintainer: nobody <n@invalid>\nDescription: stands for DRBD's\n")
    other = os.path.join(stage.folder, "drbd-utils.deb")
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", folder, other)
    stage.made["drbd_utils"] = other
    refused = stage.install(solo, "drbd_utils", check=False)
    if refused.returncode == 0 or "conflict" not in refused.stdout.lower():
        raise Failure(f"DRBD's tools beside the names: {refused.stdout}")
    if os.path.basename(solo.says("readlink", "-f", "/usr/sbin/drbdadm")) != "qrbdadm":
        raise Failure("the refused installation changed drbdadm")
    solo.run("dpkg", "--purge", "qrbd-drbd-compat")
    stage.install(solo, "drbd_utils")
    refused = stage.install(solo, "compat_deb", check=False)
    if refused.returncode == 0 or "conflict" not in refused.stdout.lower():
        raise Failure(f"the names beside DRBD's tools: {refused.stdout}")
    if solo.says("drbdadm") != "somebody else":
        raise Failure("the refused installation changed drbdadm")
    solo.close()
