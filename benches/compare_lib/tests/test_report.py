"""Statistics, tables, goals, picture and document, from records that are written here."""
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from xml.dom import minidom

from compare_lib import document, extras, figures, goals, loads, main, memory, replica, table
from compare_lib.peers import GUARANTEES
from compare_lib.picture import picture
from compare_lib.processes import Processes, StepFailed


def sample(iops, bytes_per_second=0, p50=100.0):
    return {"iops": iops, "bytes_per_second": bytes_per_second, "latency_us": {"mean": p50, "p50": p50, "p99": 2 * p50}}


def record(**changes):
    """Protocol C beside plain: 3 rounds."""
    peers = [("plain", "plain: qemu-nbd", "unreplicated"), ("qrbd-c", "QRBD, protocol C", "qrbd")]
    whole = {
        "environment": {
            "processor": "A & B <fast>", "cores": 2, "kernel": "6.1", "file system": "ext4", "qrbd": "abc", "fio": "fio-3",
            "qemu": "qemu-nbd 10", "nbdkit": "nbdkit 1", "date": "2030-01-01", "load at the start": 0.1,
        },
        "options": {"rounds": 5, "runtime": 3, "size_bytes": 1 << 30},
        "peers": [
            {"name": name, "title": title, "kind": kind, "guarantees": {word: f"{word} of {name}" for word in GUARANTEES}}
            for name, title, kind in peers
        ],
        "loads": {
            "write-4k-1": {
                "plain": [sample(7000), sample(5000), sample(9000)],
                "qrbd-c": [sample(3000), sample(3500), sample(90000)],
            },
            "write-1m-8": {"plain": [sample(1, 2e9)], "qrbd-c": [sample(1, 5e8)]},
        },
        "failures": [],
    }
    whole.update(changes)
    return whole


# A disk of 4 GB/s and a resync of 1 GB/s.
IN_MEMORY = {"disk": [sample(1, 4e9)], "resync": [{"bytes": 10**9, "seconds": 1}]}


def named(found):
    return {goal.name: goal for goal in found}


class Statistics(unittest.TestCase):
    def test_the_median_of_an_even_number_lies_between_the_middle_two(self):
        self.assertEqual(figures.Figures([4, 1, 3, 2]).median, 2.5)

    def test_one_wild_round_moves_the_spread_and_not_the_median(self):
        wild = figures.Figures([10, 11, 12, 13, 1000])
        self.assertEqual((wild.median, wild.least, wild.most), (12, 10, 1000))

    def test_no_samples_are_an_error_and_not_a_zero(self):
        with self.assertRaises(ValueError):
            figures.Figures([])

    def test_a_ratio_to_nothing_is_none(self):
        self.assertIsNone(figures.ratio(1, 0))
        self.assertIsNone(figures.ratio(1, None))
        self.assertIsNone(figures.ratio(None, 1))
        self.assertEqual(figures.ratio(1, 2), 0.5)

    def test_numbers_have_three_digits(self):
        shown = [figures.number(value) for value in (None, 0.5, 9.876, 98.76, 987.6, 98765.4)]
        self.assertEqual(shown, ["-", "0.50", "9.88", "98.8", "988", "98 765"])


class Fio(unittest.TestCase):
    TEXT = (
        'fio: connected to NBD server\n{"jobs": [{"error": 0, "write": {"total_ios": 9, "iops": 7.5, "bw_bytes": 30720, "lat_ns": '
        '{"mean": 2000.0}, "clat_ns": {"percentile": {"50.000000": 1500, "99.000000": 9000}}}, "read": {"total_ios": 0}}]}'
    )
    WRITE, READ = loads.LOADS[0], loads.LOADS[4]

    def test_figures_are_found_behind_lines_for_people(self):
        found = loads.read_sample(self.TEXT, self.WRITE)
        self.assertEqual((found["iops"], found["bytes_per_second"]), (7.5, 30720))
        self.assertEqual(found["latency_us"], {"mean": 2.0, "p50": 1.5, "p99": 9.0})

    def test_a_run_that_did_nothing_is_a_failure(self):
        for text in (self.TEXT.replace('"total_ios": 9', '"total_ios": 0'), self.TEXT.replace('"error": 0', '"error": 5'), "", "{}"):
            with self.assertRaises(StepFailed):
                loads.read_sample(text, self.WRITE)
        with self.assertRaises(StepFailed):
            loads.read_sample(self.TEXT, self.READ)

    def test_of_several_jobs_the_mean_counts(self):
        job = self.TEXT[self.TEXT.index('{"error'):-2]
        both = self.TEXT.replace(job, job + ", " + job.replace("7.5", "8.5").replace("30720", "40960").replace("1500", "2500"))
        found = loads.read_sample(both, self.WRITE)
        self.assertEqual((found["iops"], found["bytes_per_second"]), (8.0, 35840))
        self.assertEqual(found["latency_us"], {"mean": 2.0, "p50": 2.0, "p99": 9.0})
        with self.assertRaises(StepFailed):
            loads.read_sample(both.replace('"error": 0', '"error": 5', 1), self.WRITE)

    def test_a_load_with_flushes_says_so_to_fio(self):
        for load in loads.LOADS:
            command = loads.fio_command(load, [], 1 << 20, 1.5, "out", 1)
            self.assertEqual("--fsync=1" in command, "flush" in load.name)
            self.assertIn("--runtime=1500ms", command)


class Report(unittest.TestCase):
    def test_the_table_has_medians_spreads_and_ratios_to_plain(self):
        lines = [line.split() for line in table.table(record()).splitlines()]
        row = next(line for line in lines if line[:3] == ["QRBD,", "protocol", "C"] and line[-2:] == ["100", "200"])
        self.assertEqual(row[3:], ["3", "500", "3", "000", "90", "000", "0.50", "x", "100", "200"])

    def test_without_plain_there_are_figures_and_no_ratios(self):
        alone = record()
        for load in alone["loads"].values():
            del load["plain"]
        rows = table.load_rows(alone, loads.LOADS[0])
        self.assertEqual([(peer["name"], found.median, to_plain) for peer, found, to_plain, _, _ in rows], [("qrbd-c", 3500, None)])

    def test_the_table_says_what_each_guarantees_and_what_failed(self):
        shown = table.table(record(failures=["nbdkit file: it burns"]))
        for text in ("FLUSH makes durable of plain", "encrypted of qrbd-c", "nbdkit file: it burns"):
            self.assertIn(text, shown)

    def test_what_one_disk_allows_for_two_copies_is_told_beside_what_was_reached(self):
        rounds = [{"written_bytes_per_second": rate * 1e6, "copied_bytes_per_second": rate * 5e5} for rate in (900, 1000, 1100)]
        shown = table.table(record(copies=rounds, resync=[{"bytes": 1 << 30, "seconds": 2}]))
        for text in ("each 1 000 MB/s (900 .. 1 100)", "to another one there: 500 MB/s (450 .. 550)", "resync of 1024 MiB"):
            self.assertIn(text, shown)

    def test_a_resync_in_memory_is_told_with_its_disk(self):
        shown = table.table(record(**{"resync-memory": IN_MEMORY}))
        self.assertIn("a disk in memory, 1 MiB sequential: 4 000 MB/s (4 000 .. 4 000)", shown)
        self.assertIn("both disks in memory: resync of 953 MiB, from connect to both whole: 1 000 MB/s", shown)

    def test_a_machine_without_room_in_memory_is_named_and_is_no_failure(self):
        whole = record(**{"resync-memory": {"not_measured": "/dev/shm is missing"}})
        shown = table.table(whole)
        self.assertIn("resync with both disks in memory: not measured: /dev/shm is missing", shown)
        self.assertNotIn("NOT MEASURED", shown)
        self.assertNotIn("P6m", named(goals.goals(whole)))

    def test_a_short_run_says_that_it_is_not_for_quoting(self):
        short = record(options={"rounds": 1, "runtime": 1, "size_bytes": 1 << 20})
        self.assertIn("not for quoting", table.table(short))
        self.assertNotIn("not for quoting", table.table(record()))

    def test_the_picture_is_xml_with_a_bar_for_each_measurement(self):
        drawn = minidom.parseString(picture(record()))
        bars = [bar for bar in drawn.getElementsByTagName("rect") if bar.getAttribute("height") == "14"]
        self.assertEqual(len(bars), 4)
        widths = [float(bar.getAttribute("width")) for bar in bars]
        self.assertAlmostEqual(widths[2] / widths[3], 4, places=1)


class Goals(unittest.TestCase):
    def test_only_what_was_measured_is_judged(self):
        found = named(goals.goals(record()))
        self.assertEqual(set(found), {"P1", "P3"})
        self.assertEqual((found["P1"].value, found["P1"].met), (0.5, False))
        self.assertEqual(found["P3"].value, 0.25)

    def test_a_ratio_must_be_high_and_a_duration_low(self):
        quick = named(goals.goals(record(failover=[{"seconds": 0.1, "requests": 1}])))["P11"]
        slow = named(goals.goals(record(failover=[{"seconds": 0.9, "requests": 1}])))["P11"]
        self.assertEqual((quick.met, slow.met), (True, False))
        self.assertTrue(goals.Goal("", "", 1.5, 1.0, "x").met)
        self.assertFalse(goals.Goal("", "", 1.5, 1.1, "x at most").met)

    def test_a_resync_is_held_against_the_slower_of_disk_and_network(self):
        whole = record(resync=[{"bytes": 10**9, "seconds": 1}], quinn={"8972": [{"bytes_per_second": 2e9, "latency_us": {"p50": 20}}]})
        whole["loads"]["write-1m-8"]["raw"] = [sample(1, 4e9)]
        self.assertEqual(named(goals.goals(whole))["P6"].value, 0.5)
        whole["loads"]["write-1m-8"]["raw"] = [sample(1, 1.25e9)]
        self.assertEqual(named(goals.goals(whole))["P6"].value, 0.8)

    def test_a_resync_in_memory_is_held_against_the_slower_of_that_disk_and_network(self):
        whole = record(quinn={"8972": [{"bytes_per_second": 2e9, "latency_us": {"p50": 20}}]}, **{"resync-memory": IN_MEMORY})
        found = named(goals.goals(whole))
        self.assertEqual((found["P6m"].value, found["P6m"].wanted), (0.5, 0.9))
        self.assertNotIn("P6", found)
        slow = {**IN_MEMORY, "disk": [sample(1, 1.25e9)]}
        self.assertEqual(named(goals.goals({**whole, "resync-memory": slow}))["P6m"].value, 0.8)

    def test_both_resyncs_are_judged_by_nine_tenths_and_what_a_copy_reaches_changes_no_verdict(self):
        whole = record(
            resync=[{"bytes": 10**9, "seconds": 2}], quinn={"8972": [{"bytes_per_second": 2e9, "latency_us": {"p50": 20, "p99": 40}}]},
            copies=[{"written_bytes_per_second": 9e8, "copied_bytes_per_second": 5.2e8}], **{"resync-memory": IN_MEMORY},
        )
        whole["loads"]["write-1m-8"]["raw"] = [sample(1, 2e9)]
        shown = [line for line in table.table(whole).splitlines() if line.startswith("  P6")]
        self.assertEqual(len(shown), 2)
        self.assertIn("0.25 x    at least 0.90: not reached; a copy from file to file on this device 0.26 x", shown[0])
        self.assertTrue(shown[1].startswith("  P6m  P6 in memory"))
        self.assertTrue(shown[1].endswith("0.50 x    at least 0.90: not reached"))

    def test_added_latency_is_held_against_the_sum_of_its_parts(self):
        whole = record(quinn={"8972": [{"bytes_per_second": 2e9, "latency_us": {"p50": 20}}]})
        whole["loads"]["write-4k-1"].update({"raw": [sample(1, p50=50)], "nbdkit-memory": [sample(1, p50=30)]})
        self.assertEqual(named(goals.goals(whole))["P8"].value, 1.0)


class Document(unittest.TestCase):
    def test_what_is_between_the_markers_is_exchanged_and_nothing_else(self):
        old = f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n"
        self.assertEqual(document.between_markers(old, "new\n"), f"before\n{document.BEGIN}\nnew\n{document.END}\nafter\n")

    def test_a_document_without_its_markers_is_refused(self):
        for broken in ("", document.BEGIN, f"{document.END}{document.BEGIN}", (document.BEGIN + document.END) * 2):
            with self.assertRaises(StepFailed):
                document.between_markers(broken, "new")

    def test_the_document_of_the_repository_has_its_markers(self):
        with open(os.path.join(document.ROOT, document.DOCUMENT), encoding="utf-8") as file:
            self.assertIn("new\n", document.between_markers(file.read(), "new\n"))


class CommandLine(unittest.TestCase):
    def refused(self, *words):
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
            main.arguments(words)
        return said.getvalue()

    def test_unknown_loads_and_peers_are_refused_with_the_known_ones(self):
        self.assertIn("write-4k-32", self.refused("--loads", "fast"))
        self.assertIn("qrbd-c", self.refused("--peers", "plain,drdb"))
        self.assertIn("1 .. 1000", self.refused("--rounds", "0"))

    def test_quick_is_a_default_and_no_limit(self):
        quick = main.arguments(["--quick", "--rounds", "7"])
        self.assertEqual((quick.rounds, quick.runtime), (7, 0.4))
        self.assertEqual(main.arguments([]).rounds, 5)


def alive_in_group(group):
    """Processes of a group that still run; what only waits to be collected by its parent does not."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8") as file:
            state, _, its_group = file.read().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(name)
    return found


class Started(unittest.TestCase):
    def test_what_was_started_is_ended_with_its_children(self):
        processes = Processes("/tmp")
        child = processes.start("qrbd-compare-test", ["sh", "-c", "sleep 60 & echo started; wait"])
        processes.wait_until("it has a child", lambda: "started" in processes.end_of_log(child.name), process=child)
        self.assertEqual(len(alive_in_group(child.pid)), 2)
        processes.end_all()
        os.unlink(processes.log_of("qrbd-compare-test"))
        self.assertIsNotNone(child.returncode)
        # Killed is not yet gone.
        end = time.monotonic() + 10
        while alive_in_group(child.pid) and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual(alive_in_group(child.pid), [])

    def test_a_command_that_hangs_is_ended_and_named(self):
        processes = Processes("/tmp")
        with self.assertRaisesRegex(StepFailed, "sleeper did not end within 0.2 s"):
            processes.run("sleeper", ["sleep", "60"], 0.2)
        self.assertEqual(processes.running, [])

    def test_a_status_without_a_connection_is_understood(self):
        state = replica.read_status('[{"role": "Primary", "devices": [{"disk-state": "UpToDate"}], "connections": []}]')
        self.assertEqual((state["replication"], state["out_of_sync"]), ("Off", 0))


class InMemory(unittest.TestCase):
    def test_a_place_that_cannot_hold_the_disks_is_named(self):
        self.assertEqual(memory.why_not(1, "/nowhere"), "/nowhere is missing")
        self.assertRegex(memory.why_not(1, "/proc"), "/proc is no tmpfs")

    @unittest.skipUnless(memory.why_not(0) is None, "no room in memory")
    def test_more_than_there_is_is_not_taken(self):
        self.assertRegex(memory.why_not(1 << 60), "free, .* MiB needed")

    def test_what_is_free_is_within_what_the_machine_has(self):
        self.assertLess(0, memory.available_bytes())
        self.assertLess(memory.available_bytes(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

    def test_limits_of_control_groups_count_and_caches_do_not(self):
        groups = "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/c\n"
        found = list(memory.control_groups(groups, "/r"))
        self.assertEqual([place for place, _ in found], ["/r/memory/a/b", "/r/memory/a", "/r/memory", "/r/c", "/r"])
        with tempfile.TemporaryDirectory() as group:
            for names, limit, left in ((memory.VERSION_1, "1000", 450), (memory.VERSION_2, "1000", 450), (memory.VERSION_2, "max", None)):
                for name, contents in zip(names, (limit, "600", None)):
                    if contents:
                        with open(os.path.join(group, name), "w", encoding="ascii") as file:
                            file.write(contents + "\n")
                with open(os.path.join(group, "memory.stat"), "w", encoding="ascii") as file:
                    file.write(f"other 7\n{names[2]} 50\n")
                self.assertEqual(memory.left_in(group, names), left)
            self.assertIsNone(memory.left_in("/nowhere", memory.VERSION_2))

    def test_a_machine_without_room_gets_a_reason_and_no_figures(self):
        context = main.Context(None, "/nowhere", "/nowhere", 1 << 60)
        self.assertEqual(list(extras.resync_in_memory(context, 1, 1)), ["not_measured"])

    def test_the_folder_is_gone_after_any_end_of_what_is_done_there(self):
        with tempfile.TemporaryDirectory() as parent:
            for error in (KeyboardInterrupt, StepFailed):
                with self.assertRaises(error), memory.folder(parent) as directory:
                    os.makedirs(os.path.join(directory, "alice"))
                    self.assertEqual(os.listdir(parent), [os.path.basename(directory)])
                    raise error
                self.assertEqual(os.listdir(parent), [])

    def test_the_folder_is_gone_after_its_owner_was_killed(self):
        script = "import sys, time; from compare_lib import memory\nwith memory.folder(sys.argv[1]) as path: print(path, flush=True); time.sleep(60)"
        with tempfile.TemporaryDirectory() as parent:
            owner = subprocess.Popen(
                [sys.executable, "-B", "-c", script, parent], stdout=subprocess.PIPE, cwd=os.path.join(document.ROOT, "benches"), start_new_session=True
            )
            self.assertEqual(os.path.dirname(owner.stdout.readline().decode().strip()), parent)
            os.killpg(owner.pid, signal.SIGKILL)
            owner.communicate()
            end = time.monotonic() + 60
            while os.listdir(parent) and time.monotonic() < end:
                time.sleep(0.05)
            self.assertEqual(os.listdir(parent), [])


if __name__ == "__main__":
    unittest.main()
