"""What several tests begin with or end with."""
from harness.node import NOISE_BYTES, Node, demand
from harness.pair import MIB

# The commands of a user who knows DRBD: on both nodes, then on the one whose disk counts.
ON_BOTH = ("qrbdadm create-md r0", "qrbdadm up r0")
ON_ONE = ("qrbdadm -- --overwrite-data-of-peer primary r0", "mkfs.ext4 /dev/drbd0 && mount /dev/drbd0 /data")


def bring_up(pair, start=Node.start_daemon):
    """The user's commands, on a fresh pair. Gives (Primary with ext4 on /data, Secondary)."""
    nodes = [Node(pair, name) for name in ("node1", "node2")]
    for node in nodes:
        start(node)
    for command in ON_BOTH:
        for node in nodes:
            node.run(command)
    nodes[0].until_connected()
    for command in ON_ONE:
        nodes[0].run(command)
    return nodes


def give_up(node):
    """The file system and the role, in peace."""
    node.run("umount /data")
    node.run("qrbdadm secondary r0")


def take_over(node, command="mount /dev/drbd0 /data"):
    node.promote()
    node.run(command)


def hand_over_lines(one, two):
    """Every line that a load had made durable is there, here and after the other node took over. Gives their number."""
    one.demand_no_kernel_errors()
    one.until_equal()
    lines = one.demand_lines(one)
    give_up(one)
    take_over(two)
    two.demand_lines(one)
    return lines


def demand_equal_disks(pair, node):
    """Byte for byte, as far as the volume reaches. Both guests' disks are images here; what a guest wrote to its disk is in them."""
    size = node.area_bytes()
    demand(size > 0, "the volume has no size")
    different = pair.differences(size)
    demand(not different, f"the disks differ: {different}")
    return size


# What the disks grow by; what is left free in the old file system; what is written into the larger one, which it cannot hold but in what was
# added.
ADDED_MIB, LEFT_MIB, WRITTEN_MIB = 48, 8, 16


def device_bytes(node):
    return int(node.run("blockdev --getsize64 /dev/nbd0"))


def free_mib(node):
    return int(node.run("df -m /data | tail -n 1").split()[3])


def fill(node):
    """Room for the load and little more is left in the file system."""
    free = free_mib(node)
    if free > LEFT_MIB:
        node.run(f"fallocate -l {free - LEFT_MIB}M /data/ballast.{free} && sync")


def grow_under_load(pair, one, grow_file_system, dies=False):
    """docs/resizing.md, word for word, on the node that has a file system mounted under load. With `dies` the daemon is killed as soon as
    the volume has grown: most likely before the device has. Gives the new size of the device in bytes."""
    before, free = device_bytes(one), free_mib(one)
    demand(free < WRITTEN_MIB, f"{free} MiB are free: that there is more would not be noticed")
    pair.grow_disks(ADDED_MIB)
    demand(device_bytes(one) == before, "the device grew before the volume did")
    if dies:
        one.run("qrbdadm resize r0 && kill -9 $(cat /run/daemon.pid)")
        one.kill_daemon()
        one.start_daemon()
        one.until("the device goes on", "[ \"$(qrbdadm role r0)\" = Primary ]")
        one.until_connected()
    else:
        one.run("qrbdadm resize r0")
    one.run("qrbdadm wait-sync r0", 300)
    one.until("the device has grown", f"[ $(blockdev --getsize64 /dev/nbd0) -gt {before} ]")
    # Its metadata are a little larger than before.
    size = device_bytes(one)
    demand(size > before + (ADDED_MIB - 1) * MIB, f"the device grew from {before} bytes to {size} only")
    one.run(f"{grow_file_system} >/run/grown 2>&1 || {{ cat /run/grown; exit 1; }}", 300)
    grown = free_mib(one)
    demand(grown > free + ADDED_MIB // 2, f"of {ADDED_MIB} MiB more the file system offers {grown - free}")
    one.until_load_goes_on("the load goes on in the larger file system")
    return size


def write_more(node):
    """Files that the file system had no room for before it grew. Their checksums are known outside of it."""
    rounds = WRITTEN_MIB * MIB // NOISE_BYTES
    node.run(f"for round in $(seq {rounds}); do cat /host/noise; echo $round; done >/data/more && sync && md5sum /data/more >/host/more.sum", 300)


def demand_more(node, writer):
    """What `writer` wrote with `write_more` is there, read from the device and not from memory."""
    with open(node.host_file("expected.sum"), "w", encoding="utf-8") as file:
        file.write(writer.read_host("more.sum"))
    code, said = node.try_run("sync; echo 3 >/proc/sys/vm/drop_caches; md5sum -c /host/expected.sum", 300)
    demand(code == 0 and "OK" in said, f"what was written after the growth is wrong on {node.name}:\n{said}")
