"""What several tests begin with or end with."""
from harness.node import Node, demand

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
