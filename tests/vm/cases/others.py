"""Tests that need a pair of their own: a larger disk, systemd as the first process, a kernel without the driver."""
from harness.node import Node, demand

from .steps import (bring_up, demand_equal_disks, demand_more, device_bytes, fill, give_up, grow_under_load, hand_over_lines, take_over,
                    write_more)

# mkfs.xfs refuses less than 300 MB.
XFS_DISK_MIB = 320


def xfs_under_load_grows_and_is_handed_over_and_back(stage):
    pair = stage.another("xfs", disk_mib=XFS_DISK_MIB)
    pair.start()
    one, two = nodes = [Node(pair, name) for name in ("node1", "node2")]
    for node in nodes:
        node.start_daemon()
        node.run("qrbdadm create-md r0")
        node.run("qrbdadm up r0")
    one.until_connected()
    # Both disks are empty images: nothing needs to be copied.
    one.run("qrbdadm new-current-uuid --clear-bitmap r0/0")
    one.promote()
    one.run("mkfs.xfs -q /dev/drbd0 && mount -t xfs /dev/drbd0 /data", 300)
    size = None
    for here, there in ((one, two), (two, one)):
        here.start_load()
        code, said = here.try_run("qrbdadm secondary r0")
        demand(code == 11 and "held open by someone" in said and "/data" in said, f"secondary under load: {code}\n{said}")
        here.stop_load()
        here.demand_no_kernel_errors()
        give_up(here)
        take_over(there, "mount -t xfs /dev/drbd0 /data")
        lines = there.demand_lines(here)
        if size is None:
            # The first hand-over was of the volume as it was made, the second is of one that grew under load, twice.
            there.start_load()
            for dies in (False, True):
                fill(there)
                size = grow_under_load(pair, there, "xfs_growfs /data", dies)
            write_more(there)
            there.stop_load()
    demand(device_bytes(one) == size, f"the device has {size} bytes on {two.name}, {device_bytes(one)} on {one.name}")
    demand_more(one, two)
    one.run("umount /data && xfs_repair -n /dev/drbd0", 300)
    one.until_equal()
    one.run("qrbdadm secondary r0")
    demand_equal_disks(pair, one)
    return f"grew to {size >> 20} MiB; {lines} fsynced lines there, xfs_repair -n finds nothing, disks equal"


def kernel_without_nbd_is_named_and_the_socket_serves(stage):
    pair = stage.another("without", words="vm.without=nbd")
    pair.start("node1")
    one = Node(pair, "node1")
    one.start_daemon()
    one.run("qrbdadm create-md r0")
    said = one.run("qrbdadm up r0 2>&1; qrbdadm primary --force r0 2>&1; cat /host/qrbdd.log")
    demand("no NBD driver" in said and "nbd" in said, f"neither command nor log tells that the kernel has no driver:\n{said}")
    demand(one.run("qrbdadm role r0").startswith("Primary"), "not Primary")
    demand(one.try_run("ls /dev/drbd0")[0] != 0, "there is a /dev/drbd0 without a driver")
    one.run("qrbd-load run --socket /run/qrbd/nbd.sock --export r0 --journal /run/journal --writes 200 --flush-every 20 --quiet")
    one.run("qrbd-load verify --socket /run/qrbd/nbd.sock --export r0 --journal /run/journal --allow-foreign")
    return "named in words; 200 writes through the socket"


def systemd_keeps_the_sockets_over_a_restart_of_the_unit(stage):
    pair = stage.another("systemd", words="vm.systemd", initramfs=stage.setting.with_systemd())
    pair.start()
    one, two = bring_up(pair, Node.start_unit)
    one.start_load()
    lost = one.lost_sockets()
    for turn in (1, 2):
        one.run("systemctl restart qrbd")
        one.until_load_goes_on("the load goes on after the restart of the unit")
        one.demand_kept_socket(lost, turn)
    stall = one.longest_stall()
    # Whoever kills it finds it started again, with new sockets: those that are kept must not hide the death from the kernel.
    one.run("systemctl kill --kill-who=main --signal=KILL qrbd")
    one.until("systemd has started it again", "[ $(systemctl show --property=NRestarts --value qrbd) = 1 ] && qrbdadm status")
    one.until_load_goes_on("the load goes on after the death of the daemon")
    demand("new sockets" in one.read_host("qrbdd.log"), "after a death of the daemon the device did not get new sockets")
    one.stop_load()
    lines = hand_over_lines(one, two)
    pauses = ", ".join(f"{pause:.2f}" for pause in one.pauses())
    return (f"restarted twice: the device stood still for {pauses} s, longest stall {stall:.1f} s; killed once; {lines} fsynced lines there on "
            "both nodes")


TESTS = [xfs_under_load_grows_and_is_handed_over_and_back, systemd_keeps_the_sockets_over_a_restart_of_the_unit, kernel_without_nbd_is_named_and_the_socket_serves]
