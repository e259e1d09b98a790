#!/usr/bin/env python3
"""A service whose acknowledgements can be checked afterwards.

    records.py serve --listen ADDRESS:PORT --file FILE      each number that comes is appended to FILE, flushed, then answered
    records.py write --connect ADDRESS:PORT --journal FILE  sends numbers until it is killed; what was answered stands in the journal
    records.py check --journal FILE --file FILE             every answered number is in the file, once, in order

A number counts as acknowledged when the client has the answer, and not before: the client is the one that would be lied to.
"""

import argparse
import os
import socket
import sys
import time


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def serve(options):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address(options.listen))
    listener.listen()
    name = os.uname().nodename
    with open(options.file, "ab", buffering=0) as file:
        while True:
            connection, _ = listener.accept()
            # A client whose connection broke is not waited for.
            connection.settimeout(3)
            with connection:
                try:
                    for line in connection.makefile("rb"):
                        file.write(line.strip() + b" " + name.encode() + b"\n")
                        os.fsync(file.fileno())
                        connection.sendall(name.encode() + b"\n")
                except (TimeoutError, ConnectionError):
                    pass


def write(options):
    number = 0
    with open(options.journal, "a", buffering=1) as journal:
        while True:
            try:
                with socket.create_connection(address(options.connect), timeout=1) as connection:
                    connection.settimeout(2)
                    answers = connection.makefile("rb")
                    while True:
                        number += 1
                        connection.sendall(b"%d\n" % number)
                        answer = answers.readline().strip()
                        if not answer:
                            break
                        journal.write(f"{number} {answer.decode()}\n")
                        time.sleep(options.pause)
            except OSError:
                time.sleep(0.05)


def check(options):
    acknowledged = [line.split()[0] for line in open(options.journal)]
    # What an unfinished write of a crash left at the end of a line is not a record.
    lines = [line.split() for line in open(options.file, errors="replace")]
    kept = [line[0] for line in lines if line]
    missing = sorted(set(acknowledged) - set(kept), key=int)
    print(f"acknowledged {len(acknowledged)}, kept {len(kept)}, missing {len(missing)}")
    if missing:
        print("missing:", " ".join(missing[:20]))
        return 1
    if len(kept) != len(set(kept)):
        print("records stand twice")
        return 1
    return 0


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve")
    command.add_argument("--listen", required=True)
    command.add_argument("--file", required=True)
    command = commands.add_parser("write")
    command.add_argument("--connect", required=True)
    command.add_argument("--journal", required=True)
    command.add_argument("--pause", type=float, default=0.02)
    command = commands.add_parser("check")
    command.add_argument("--journal", required=True)
    command.add_argument("--file", required=True)
    options = parser.parse_args()
    return {"serve": serve, "write": write, "check": check}[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
