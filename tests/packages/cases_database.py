"""PostgreSQL, as Debian packages it, on a replicated volume between two machines: docs/postgresql.md, step by step."""
import subprocess

from cases_pair import check_role, start_again
from machine import Failure, until
from stage import MIB, RESOURCE, connected

DATABASE = "postgresql@15-main"
# The service needs the file system, which needs the device, which needs the role.
DROP_IN = "[Unit]\nRequiresMountsFor=/data\n"


def query(node, text):
    return node.says("runuser", "-u", "postgres", "--", "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", text)


def commit_until_it_dies(node, after):
    """Commits numbers one after the other and calls `after` when 50 of them are acknowledged; returns the last acknowledged one."""
    process = subprocess.Popen(
        [*node.enter(), "runuser", "-u", "postgres", "--", "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
    )
    acknowledged = 0
    while True:
        try:
            process.stdin.write(f"INSERT INTO ledger VALUES ({acknowledged + 1}) RETURNING number;\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            break
        # psql prints it when the whole answer is there, and the answer comes when the commit is durable.
        if answer.strip() != str(acknowledged + 1):
            break
        acknowledged += 1
        if acknowledged == 50:
            after()
    process.kill()
    process.wait(30)
    return acknowledged


def check_ledger(node, acknowledged):
    count, most = map(int, query(node, "SELECT count(*), max(number) FROM ledger").split("|"))
    # One commit may be there whose answer was lost.
    if count != most or count not in (acknowledged, acknowledged + 1):
        raise Failure(f"{node.name}: {acknowledged} commits were acknowledged, the ledger has {count} up to {most}")


def test_postgresql_goes_where_the_role_goes_and_keeps_every_commit(stage):
    alice, bob = stage.pair(("postgresql",), 192 * MIB)
    for node in (alice, bob):
        node.run("systemctl", "stop", DATABASE)
        node.run("pg_dropcluster", "15", "main")
    alice.run("pg_createcluster", "15", "main", "--datadir", "/data/postgresql", "--start-conf", "manual", "--", "--data-checksums")
    configuration = alice.run("sh", "-c", "tar -C / -c etc/postgresql | base64").stdout
    bob.write("/root/configuration", configuration)
    bob.run("sh", "-c", "base64 -d /root/configuration | tar -C / -x")
    for node in (alice, bob):
        node.write(f"/etc/systemd/system/{DATABASE}.service.d/replicated.conf", DROP_IN)
        node.run("systemctl", "daemon-reload")
    alice.run("systemctl", "start", DATABASE, limit=120)
    query(alice, "CREATE TABLE ledger (number int PRIMARY KEY)")

    acknowledged = commit_until_it_dies(alice, alice.kill)
    if acknowledged < 50:
        raise Failure(f"only {acknowledged} commits before the end")
    until("bob sees that alice is gone", 60, lambda: not connected(bob))
    # One command: role, device, mount, recovery, service.
    bob.run("systemctl", "start", DATABASE, limit=180)
    check_role(bob, "Primary")
    check_ledger(bob, acknowledged)
    count = int(query(bob, "SELECT count(*) FROM ledger"))
    query(bob, f"INSERT INTO ledger VALUES ({count + 1})")

    start_again(alice, bob)
    # And one command for the orderly way back: everything above the role is stopped before it.
    bob.run("systemctl", "stop", f"qrbd-promote@{RESOURCE}", limit=180)
    check_role(bob, "Secondary")
    alice.run("systemctl", "start", DATABASE, limit=180)
    check_ledger(alice, count + 1)
    if "not properly shut down" in alice.says("tail", "-n", "20", "/var/log/postgresql/postgresql-15-main.log"):
        raise Failure("PostgreSQL had to recover after an orderly hand-over")
