"""Tests in virtual machines: see --help and docs/testing-in-guests.md."""
import argparse
import os
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

import selftest  # noqa: E402 - the path comes first
from cases import ext4, others  # noqa: E402
from cases.stage import Stage  # noqa: E402
from harness.guest import GuestError  # noqa: E402
from harness.node import Wrong  # noqa: E402
from harness.packages import Missing  # noqa: E402
from harness.setting import Setting  # noqa: E402

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TESTS = ext4.TESTS + others.TESTS


def say(words):
    print(words, flush=True)


def interrupted(number, _frame):
    raise SystemExit(128 + number)


def main(arguments):
    target = os.path.abspath(os.environ.get("CARGO_TARGET_DIR") or os.path.join(REPOSITORY, "target"))
    parser = argparse.ArgumentParser(prog="scripts/test-vm", description=__doc__)
    parser.add_argument("--list", action="store_true", help="names of the tests")
    parser.add_argument("--only", action="append", metavar="NAME", help="this test (the beginning of its name is enough); may be repeated")
    parser.add_argument("--keep", action="store_true", help="keep images and logs of every pair")
    parser.add_argument("--programs", default=os.path.join(target, "debug"), metavar="DIR", help="where qrbdd, qrbdadm and qrbd-load are")
    parser.add_argument("--self-test", action="store_true", help="only check, without guests, that the judgements notice what is wrong")
    options = parser.parse_args(arguments)
    if options.self_test:
        return selftest.main()
    tests = [test for test in TESTS if not options.only or any(test.__name__.startswith(name) for name in options.only)]
    if options.list:
        for test in tests:
            print(test.__name__)
        return 0
    if not tests:
        print("test-vm: no test of that name; see --list", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)

    logs = os.path.join(target, "test-logs", "vm")
    os.makedirs(logs, exist_ok=True)
    stage = Stage(None, logs, options.keep)
    passed = failed = 0
    try:
        try:
            stage.setting = Setting(cache=os.path.join(target, "vm"), programs=os.path.abspath(options.programs), work=stage.folder, say=say)
        except Missing as error:
            print(f"test-vm: {error}", file=sys.stderr)
            return 1
        for test in tests:
            begin = time.monotonic()
            try:
                words = test(stage)
                right = True
            except (GuestError, Wrong) as error:
                right, words = False, str(error)
            except Exception:  # noqa: BLE001 - an error of the test itself is a failed test, and the next one is run
                right, words = False, traceback.format_exc()
            stage.after(test.__name__, right)
            passed, failed = passed + right, failed + (not right)
            seconds = time.monotonic() - begin
            if right:
                say(f"{test.__name__} ... passed ({seconds:.1f} s): {words}")
            else:
                say(f"{words}\n{test.__name__} ... FAILED ({seconds:.1f} s), logs in {os.path.join(logs, test.__name__)}")
    finally:
        stage.close()
    say(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
