"""The user's file, an ext4 on it, and everything that may happen to the node that has it mounted."""
import time

from harness.node import demand

from .steps import (demand_equal_disks, demand_more, device_bytes, fill, give_up, grow_under_load, hand_over_lines, take_over,
                    write_more)

# Without the daemon's setting the kernel sends again what was under way after 30 s. The setting is looked at, not the stall: how long a
# daemon takes to start is a matter of the machine.
REQUEST_TIMER_LIMIT_MS = 5000


def demand_soon_sent_again(node):
    timer = int(node.run("cat /sys/block/nbd0/queue/io_timeout"))
    demand(0 < timer <= REQUEST_TIMER_LIMIT_MS, f"requests under way at a restart are sent again after {timer} ms only")


def the_commands_of_r0_res_give_an_ext4_that_fails_over(stage):
    one, two = stage.mounted()
    demand(one.run("grep ' /data ' /proc/mounts").split()[2] == "ext4", "no ext4 on /data")
    one.run("dd if=/dev/urandom of=/data/file bs=64k count=32 && md5sum /data/file >/data/sum && sync")
    one.until_equal()
    code, said = two.try_run("qrbdadm primary r0")
    demand(code != 0 and "Multiple primaries" in said, f"a second Primary was not refused: {code} {said}")
    give_up(one)
    take_over(two)
    two.run("cd / && md5sum -c /data/sum")
    stage.swap()
    return "mkfs, mount, secondary here, primary there"


def mounted_device_is_not_given_up(stage):
    one, _ = stage.mounted()
    for command in ("qrbdadm secondary r0", "qrbdadm down r0"):
        code, said = one.try_run(command)
        demand(code == 11, f"{command} with a mounted file system: exit code {code}\n{said}")
        demand("held open by someone" in said, f"{command} does not say that it is held open:\n{said}")
        demand("/data" in said, f"{command} does not name the mount:\n{said}")
    one.run("dd if=/dev/zero of=/data/still bs=4k count=1 conv=fsync")
    return "secondary and down refused, naming /data"


def killed_daemon_costs_a_mounted_ext4_nothing_but_time(stage):
    one, two = stage.mounted()
    one.start_load()
    one.kill_daemon()
    # Long enough that the file system has run into it.
    time.sleep(2)
    one.start_daemon()
    one.until_load_goes_on("the load goes on after the daemon's restart")
    one.stop_load()
    stall = one.longest_stall()
    demand_soon_sent_again(one)
    lines = hand_over_lines(one, two)
    stage.swap()
    return f"{lines} fsynced lines there on both nodes, longest stall {stall:.1f} s"


def planned_restart_under_a_mounted_ext4_costs_nothing_but_time(stage):
    one, _ = stage.mounted()
    one.start_load()
    lost, kept = one.lost_sockets(), len(one.pauses())
    for turn in (1, 2):
        begun = one.read_host("qrbdd.log").count("control socket")
        one.run("kill -USR2 $(cat /run/daemon.pid)")
        one.until("the daemon has replaced itself", f"[ $(grep -c 'control socket' /host/qrbdd.log) -gt {begun} ] && qrbdadm status")
        one.until_load_goes_on("the load goes on after the daemon replaced itself")
        one.demand_kept_socket(lost, kept + turn)
    replaced, lines = one.longest_stall(), len(one.acknowledged())
    # Without a service manager there is nobody to keep the socket.
    one.restart_daemon()
    one.until_load_goes_on("the load goes on after the daemon was stopped and started")
    one.stop_load()
    stopped = one.longest_stall(lines)
    demand_soon_sent_again(one)
    one.demand_no_kernel_errors()
    one.until_equal()
    lines = one.demand_lines(one)
    pauses = ", ".join(f"{pause:.2f}" for pause in one.pauses()[kept:])
    return (f"replaced itself twice: the device stood still for {pauses} s, longest stall {replaced:.1f} s; then stopped and started: "
            f"longest stall {stopped:.1f} s; {lines} fsynced lines there")


def demand_resynced(pair, one):
    """The peer is back under load: both disks become equal, byte for byte. The file system is mounted again afterwards."""
    one.until_connected()
    one.until_load_goes_on("the load goes on with the peer")
    one.stop_load()
    one.demand_no_kernel_errors()
    one.until_equal()
    give_up(one)
    demand_equal_disks(pair, one)
    one.promote()
    one.run("mount /dev/drbd0 /data")


def killed_daemon_of_the_secondary_is_not_noticed(stage):
    one, two = stage.mounted()
    one.start_load()
    two.kill_daemon()
    one.until_load_goes_on("the load goes on without the peer")
    two.start_daemon()
    demand_resynced(stage.pair, one)
    return "resynced, both disks equal"


def cut_link_is_survived_and_resynced(stage):
    one, two = stage.mounted()
    one.start_load()
    stage.pair.cut()
    one.until("the silence is noticed", "[ \"$(qrbdadm cstate r0)\" != Connected ]")
    two.until("the silence is noticed", "[ \"$(qrbdadm cstate r0)\" != Connected ]")
    one.until_load_goes_on("the load goes on without the peer")
    stage.pair.heal()
    demand_resynced(stage.pair, one)
    return "no error, resynced, both disks equal"


def power_failure_of_the_primary_loses_nothing(stage):
    one, two = stage.mounted()
    one.until_equal()
    one.start_load()
    stage.pair.kill(one.name)
    one.load = []
    take_over(two)
    lines = two.demand_lines(one)
    two.run("umount /data")
    two.demand_clean_ext4()
    two.run("mount /dev/drbd0 /data")
    two.start_load()
    two.stop_load()
    stage.pair.start(one.name)
    one.start_daemon("--up all")
    two.until_equal()
    give_up(two)
    size = demand_equal_disks(stage.pair, two)
    take_over(one)
    one.demand_lines(two)
    one.demand_lines(one)
    return f"{lines} fsynced lines there, e2fsck clean, {size >> 20} MiB equal after the return"


def ext4_grows_under_load_and_stays_grown(stage):
    one, two = stage.mounted()
    one.until_equal()
    fill(one)
    one.start_load()
    size = grow_under_load(stage.pair, one, "resize2fs /dev/nbd0")
    write_more(one)
    # A daemon that is started on the grown device has to know how large it is now.
    one.kill_daemon()
    one.start_daemon()
    one.until_load_goes_on("the load goes on after the daemon's restart")
    demand(device_bytes(one) == size, f"the device has {device_bytes(one)} bytes after the daemon's restart, {size} before")
    demand_more(one, one)
    one.run("rm /data/more")
    write_more(one)
    one.stop_load()
    lines = hand_over_lines(one, two)
    demand(device_bytes(two) == size, f"the device has {size} bytes on {one.name}, {device_bytes(two)} on {two.name}")
    demand_more(two, one)
    give_up(two)
    demand_equal_disks(stage.pair, two)
    two.promote()
    two.demand_clean_ext4()
    two.run("mount /dev/drbd0 /data && rm /data/ballast.* /data/more")
    stage.swap()
    return f"{size >> 20} MiB on both nodes and after the death of the daemon, {lines} fsynced lines there, disks equal, e2fsck clean"


TESTS = [
    the_commands_of_r0_res_give_an_ext4_that_fails_over,
    mounted_device_is_not_given_up,
    killed_daemon_costs_a_mounted_ext4_nothing_but_time,
    planned_restart_under_a_mounted_ext4_costs_nothing_but_time,
    killed_daemon_of_the_secondary_is_not_noticed,
    cut_link_is_survived_and_resynced,
    power_failure_of_the_primary_loses_nothing,
    ext4_grows_under_load_and_stays_grown,
]
