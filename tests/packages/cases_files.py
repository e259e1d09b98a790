"""The packages as files: what is in them, and what happens when something is missing."""
import os
import re
import shutil
import subprocess

from machine import Failure, run

PACKAGED_PROGRAMS = ("/usr/sbin/qrbdd", "/usr/sbin/qrbdadm", "/usr/bin/qrbd-load")


def deb_files(file):
    listed = run("dpkg-deb", "--contents", file).stdout.splitlines()
    files = {}
    for line in listed:
        mode, owner, _, _, _, name = line.split(maxsplit=5)
        name, _, target = name.partition(" -> ")
        if not mode.startswith("d"):
            files[name.removeprefix(".")] = (mode, owner, target)
    return files


def rpm_files(file):
    query = "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}|%{FILELINKTOS}\n]"
    files = {}
    for line in run("rpm", "-qp", "--queryformat", query, file).stdout.splitlines():
        mode, owner, name = line.split(maxsplit=2)
        name, _, target = name.partition("|")
        if not mode.startswith("d"):
            files[name] = (mode, owner, target)
    return files


def test_deb_and_rpm_hold_the_same_files(stage):
    packages = stage.packages()
    for deb, rpm in ((packages["deb"], packages["rpm"]), (packages["compat_deb"], packages["compat_rpm"])):
        left, right = deb_files(deb), rpm_files(rpm)
        if left != right:
            different = {name: (left.get(name), right.get(name)) for name in left.keys() | right.keys() if left.get(name) != right.get(name)}
            raise Failure(f"{os.path.basename(deb)} and {os.path.basename(rpm)} differ: {different}")
        if not left:
            raise Failure(f"{deb} holds no file")
    held = deb_files(packages["deb"])
    for program in PACKAGED_PROGRAMS:
        if held.get(program, ("",))[0] != "-rwxr-xr-x":
            raise Failure(f"{program} is not there as an executable: {held.get(program)}")
    if any("drbd" in os.path.basename(name).replace("qrbd", "") for name in held):
        raise Failure(f"the package qrbd holds a file with one of DRBD's names: {sorted(held)}")


def test_configuration_is_marked_as_the_administrators(stage):
    packages = stage.packages()
    wanted = {"/etc/qrbd.conf", "/etc/qrbd.d/global_common.conf", "/etc/default/qrbd"}
    deb = set(run("dpkg-deb", "--info", packages["deb"], "conffiles").stdout.split())
    rpm = set(run("rpm", "-qp", "--configfiles", packages["rpm"]).stdout.split())
    if deb != wanted or rpm != wanted:
        raise Failure(f"wanted {wanted}, the deb marks {deb}, the rpm {rpm}")


def test_dependencies_are_the_ones_of_the_programs(stage):
    packages = stage.packages()
    needed = run("objdump", "-p", os.path.join(stage.programs, "qrbdd")).stdout
    newest = max((tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([0-9.]+)", needed)))
    declared = run("dpkg-deb", "--field", packages["deb"], "Depends").stdout
    found = re.search(r"libc6 \(>= ([0-9.]+)", declared)
    if not found or tuple(map(int, found.group(1).split("."))) < newest:
        raise Failure(f"the programs need glibc {newest}, the deb says {declared}")
    required = run("rpm", "-qp", "--requires", packages["rpm"]).stdout
    if f"libc.so.6(GLIBC_{'.'.join(map(str, newest))})" not in required:
        raise Failure(f"the programs need glibc {newest}, the rpm says {required}")


def test_same_sources_give_the_same_packages(stage):
    again = os.path.join(stage.folder, "again")
    run(os.path.join(stage.root, "scripts/package"), "--programs", stage.programs, "--output", again, "--fast", limit=300)
    for file in stage.packages().values():
        with open(file, "rb") as first, open(os.path.join(again, os.path.basename(file)), "rb") as second:
            if first.read() != second.read():
                raise Failure(f"{os.path.basename(file)} is another file when it is built again")


def test_missing_program_stops_the_build_and_is_named(stage):
    programs = os.path.join(stage.folder, "incomplete")
    os.makedirs(programs)
    for name in ("qrbdd", "qrbd-load"):
        shutil.copy("/bin/true", os.path.join(programs, name))
    output = os.path.join(stage.folder, "incomplete-packages")
    done = subprocess.run(
        [os.path.join(stage.root, "scripts/package"), "--programs", programs, "--output", output],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )
    if done.returncode == 0 or f"{programs}/qrbdadm is missing" not in done.stdout or os.listdir(output):
        raise Failure(f"exit code {done.returncode}, {os.listdir(output)}: {done.stdout}")


def test_rpm_installs_runs_and_goes_in_a_root_of_its_own(stage):
    rpm = stage.packages()["rpm"]
    root = os.path.join(stage.folder, "rpm-root")
    # A copy of the machine's files by hard links would be changed by what is written: a copy proper of what is needed.
    for part in ("bin", "sbin", "lib", "lib64"):
        os.makedirs(root, exist_ok=True)
        os.symlink(f"usr/{part}", os.path.join(root, part))
    for file in ("usr/bin/dash", "usr/bin/rm", "usr/bin/mkdir", "usr/bin/seq", "usr/bin/sleep"):
        copy_program(stage.unpacked_image(), root, file)
    os.symlink("dash", os.path.join(root, "usr/bin/sh"))
    for library in ("libgcc_s.so.1", "libm.so.6"):
        copy_program(stage.unpacked_image(), root, f"usr/lib/x86_64-linux-gnu/{library}")
    run("rpm", "--root", root, "--initdb")
    run("rpm", "--root", root, "-i", "--test", "--nodeps", rpm)
    if os.path.exists(os.path.join(root, "usr/sbin/qrbdadm")):
        raise Failure("rpm -i --test installed something")
    run("rpm", "--root", root, "-i", "--nodeps", rpm)
    said = run("chroot", root, "/usr/sbin/qrbdadm", "--version").stdout
    version = run("rpm", "--root", root, "-q", "--queryformat", "%{VERSION}", "qrbd").stdout
    if said.strip() != f"qrbdadm {version}":
        raise Failure(f"qrbdadm --version says '{said.strip()}', the package is {version}")
    changed = run("rpm", "--root", root, "-V", "--nodeps", "qrbd", check=False).stdout
    if changed.strip():
        raise Failure(f"rpm -V: {changed}")
    with open(os.path.join(root, "etc/qrbd.d/global_common.conf"), "a", encoding="utf-8") as file:
        file.write("# mine\n")
    run("rpm", "--root", root, "-e", "qrbd")
    left = sorted(os.listdir(os.path.join(root, "etc/qrbd.d")))
    if left != ["global_common.conf.rpmsave"] or os.path.exists(os.path.join(root, "usr/sbin/qrbdd")):
        raise Failure(f"after the removal there is {left}")


def copy_program(image, root, file):
    """A file of the image with the libraries that it is linked to."""
    target = os.path.join(root, file)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy(os.path.realpath(os.path.join(image, file)), target)
    os.chmod(target, 0o755)
    linked = run("chroot", image, "/usr/bin/ldd", "/" + file, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        real = library if library.startswith("/usr/") else "/usr" + library
        place = root + real
        if not os.path.exists(place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            shutil.copy(os.path.realpath(image + real), place)


def test_manual_pages_are_clean_and_know_every_command_and_option(stage):
    pages = {}
    for page in ("qrbdd.8", "qrbdadm.8", "qrbd.conf.5"):
        file = os.path.join(stage.root, "docs/man", page)
        done = subprocess.run(["groff", "-ww", "-b", "-man", "-Tutf8", "-z", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        if done.returncode != 0 or done.stdout.strip():
            raise Failure(f"{page}: {done.stdout}")
        with open(file, encoding="utf-8") as text:
            pages[page] = re.sub(r"\\(f[BIRP]|&)", "", text.read()).replace("\\-", "-")

    def helped(*words):
        return run(os.path.join(stage.programs, words[0]), *words[1:], "--help").stdout

    missing = [option for option in sorted(set(re.findall(r"--[a-z][a-z-]+", helped("qrbdd")))) if option not in pages["qrbdd.8"]]
    commands = re.findall(r"^  ([a-z][a-z0-9-]+) ", re.search(r"^Commands:\n(.*?)\n\n", helped("qrbdadm"), re.DOTALL | re.MULTILINE).group(1), re.MULTILINE)
    if len(commands) < 30:
        raise Failure(f"commands of qrbdadm as its help names them: {commands}")
    for command in commands:
        if not re.search(rf"^\.B[RI]? +{command}(?![a-z-])", pages["qrbdadm.8"], re.MULTILINE):
            missing.append(f"qrbdadm {command}")
        for option in re.findall(r"^ +(?:-[a-z], |    )(--[a-z][a-z-]+)", helped("qrbdadm", command) if command != "help" else "", re.MULTILINE):
            if option not in pages["qrbdadm.8"]:
                missing.append(f"qrbdadm {command} {option}")
    with open(os.path.join(stage.root, "src/config/src/options.rs"), encoding="utf-8") as table:
        options = re.findall(r'\b(?:acts|ignored|later|only)\(\s*(?:&\[[^\]]*\],\s*)?"([a-z0-9-]+)"', table.read())
    if len(options) < 60:
        raise Failure(f"options of the configuration, as src/config/src/options.rs names them: {options}")
    missing += [f"{option} (qrbd.conf.5)" for option in options if not re.search(rf"(?<![a-z-]){option}(?![a-z-])", pages["qrbd.conf.5"])]
    if missing:
        raise Failure(f"not in the manual (docs/man): {missing}")
