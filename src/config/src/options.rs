//! Owns the table of options: every option's section, value, range, default, and what it does in this program.
//!
//! Ranges and defaults are DRBD's, with one exception: `auto-promote` is off, because an NBD client cannot tell reading from
//! writing when it opens. The table is the only place that knows a default; the typed options read it from here.
//! An option that has no meaning here, or whose value this version does not carry out, is checked like any other and reported once:
//! nobody may believe in a quorum or a fence that is not there.

/// A section that holds options.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Section {
    Net,
    Disk,
    Options,
    Startup,
    Handlers,
    Global,
}

impl Section {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Section::Net => "net",
            Section::Disk => "disk",
            Section::Options => "options",
            Section::Startup => "startup",
            Section::Handlers => "handlers",
            Section::Global => "global",
        }
    }

    pub(crate) fn table(self) -> &'static [Spec] {
        match self {
            Section::Net => NET,
            Section::Disk => DISK,
            Section::Options => OPTIONS,
            Section::Startup => STARTUP,
            Section::Handlers => HANDLERS,
            Section::Global => GLOBAL,
        }
    }

    /// The option called `name`, also by its older spelling.
    pub(crate) fn find(self, name: &str) -> Option<&'static Spec> {
        let name = match (self, name) {
            (Section::Handlers, "outdate-peer") => "fence-peer",
            (_, name) => name,
        };
        self.table().iter().find(|spec| spec.name == name)
    }
}

/// All sections, for the hint that a word belongs elsewhere.
pub(crate) const SECTIONS: [Section; 6] = [
    Section::Net,
    Section::Disk,
    Section::Options,
    Section::Startup,
    Section::Handlers,
    Section::Global,
];

/// What one base unit of an integer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// A bare number; the text names what is counted.
    Count(&'static str),
    /// Bytes; suffixes allowed.
    Bytes,
    /// Sectors of 512 bytes; suffixes give bytes.
    Sectors,
    /// KiB per second; suffixes give bytes per second.
    KibPerSecond,
}

impl Unit {
    /// Bytes in one base unit, 1 for counts.
    pub(crate) fn scale(self) -> u64 {
        match self {
            Unit::Count(_) | Unit::Bytes => 1,
            Unit::Sectors => 512,
            Unit::KibPerSecond => 1024,
        }
    }

    /// Words that follow a number of base units in an error.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Unit::Count(what) => what,
            Unit::Bytes => " bytes",
            Unit::Sectors => " sectors of 512 bytes",
            Unit::KibPerSecond => " KiB/s",
        }
    }
}

/// What values an option takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// `foo;`, `foo yes;`, `foo no;`, `no-foo;`.
    Boolean { default: bool },
    /// A number of `unit` with optional suffix, default in base units.
    Integer {
        min: u64,
        max: u64,
        default: u64,
        unit: Unit,
    },
    /// One of the words; the first is the default.
    Choice(&'static [&'static str]),
    /// A choice, or a word with this beginning and a node's name.
    ChoiceOrNode(&'static [&'static str], &'static str),
    /// A word or string of at most so many bytes; unset by default.
    Text(usize),
    /// off, majority, all or 1..=32; off by default.
    Quorum,
    /// A choice or `SIZE-striping`.
    ReadBalancing(&'static [&'static str]),
    /// RES, RES/VOL or none.
    ResyncAfter,
    /// IP:PORT.
    Address,
    /// One or more words.
    Names,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) effect: Effect,
}

/// What an option does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// What it says.
    Acts,
    /// Nothing: what it is about does not exist in this program. Reported once.
    None,
    /// What it says with these values; any other is not carried out and reported once. The first one says how the program acts then.
    Only(&'static [&'static str]),
}

const fn acts(name: &'static str, kind: Kind) -> Spec {
    Spec {
        name,
        kind,
        effect: Effect::Acts,
    }
}

const fn ignored(name: &'static str, kind: Kind) -> Spec {
    Spec {
        name,
        kind,
        effect: Effect::None,
    }
}

const fn only(values: &'static [&'static str], name: &'static str, kind: Kind) -> Spec {
    Spec {
        name,
        kind,
        effect: Effect::Only(values),
    }
}

/// Not carried out, whatever the value.
const fn later(name: &'static str, kind: Kind) -> Spec {
    only(&[], name, kind)
}

const fn yes() -> Kind {
    Kind::Boolean { default: true }
}

const fn no() -> Kind {
    Kind::Boolean { default: false }
}

const fn count(min: u64, max: u64, default: u64, unit: &'static str) -> Kind {
    Kind::Integer {
        min,
        max,
        default,
        unit: Unit::Count(unit),
    }
}

const fn size(min: u64, max: u64, default: u64, unit: Unit) -> Kind {
    Kind::Integer {
        min,
        max,
        default,
        unit,
    }
}

const TENTHS: &str = " (tenths of a second)";
const SECONDS: &str = " seconds";
const ALGORITHM: Kind = Kind::Text(64);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

pub(crate) const AFTER_SB_0PRI: &[&str] = &[
    "disconnect",
    "discard-younger-primary",
    "discard-older-primary",
    "discard-zero-changes",
    "discard-least-changes",
    "discard-local",
    "discard-remote",
];
pub(crate) const AFTER_SB_1PRI: &[&str] = &[
    "disconnect",
    "consensus",
    "violently-as0p",
    "discard-secondary",
    "call-pri-lost-after-sb",
];
pub(crate) const AFTER_SB_2PRI: &[&str] =
    &["disconnect", "violently-as0p", "call-pri-lost-after-sb"];
pub(crate) const RR_CONFLICT: &[&str] = &[
    "disconnect",
    "violently",
    "call-pri-lost",
    "retry-connect",
    "auto-discard",
];
pub(crate) const FENCING: &[&str] = &["dont-care", "resource-only", "resource-and-stonith"];
pub(crate) const ON_CONGESTION: &[&str] = &["block", "pull-ahead", "disconnect"];
pub(crate) const ON_IO_ERROR: &[&str] = &["detach", "pass_on", "call-local-io-error"];
pub(crate) const READ_BALANCING: &[&str] = &[
    "prefer-local",
    "prefer-remote",
    "round-robin",
    "least-pending",
    "when-congested-remote",
];

/// Options of one connection.
const NET: &[Spec] = &[
    acts("protocol", Kind::Choice(&["C", "A", "B"])),
    acts("timeout", count(1, 600, 60, TENTHS)),
    acts("ko-count", count(0, 200, 7, "")),
    acts("ping-int", count(1, 120, 10, SECONDS)),
    acts("ping-timeout", count(1, 300, 5, TENTHS)),
    acts("connect-int", count(1, 120, 10, SECONDS)),
    ignored("socket-check-timeout", count(0, 300, 0, TENTHS)),
    acts("max-buffers", count(32, 131_072, 2048, " pages of 4 KiB")),
    acts("max-epoch-size", count(1, 20_000, 2048, " writes")),
    ignored("sndbuf-size", size(0, 128 * MIB, 0, Unit::Bytes)),
    ignored("rcvbuf-size", size(0, 128 * MIB, 0, Unit::Bytes)),
    ignored("tcp-cork", yes()),
    ignored("unplug-watermark", count(1, 131_072, 128, "")),
    only(&["no"], "allow-two-primaries", no()),
    only(&["yes"], "allow-remote-read", yes()),
    ignored("cram-hmac-alg", ALGORITHM),
    acts("shared-secret", Kind::Text(64)),
    ignored("data-integrity-alg", ALGORITHM),
    later("verify-alg", ALGORITHM),
    later("csums-alg", ALGORITHM),
    only(&["no"], "csums-after-crash-only", no()),
    ignored("use-rle", yes()),
    acts(
        "after-sb-0pri",
        Kind::ChoiceOrNode(AFTER_SB_0PRI, "discard-node-"),
    ),
    acts("after-sb-1pri", Kind::Choice(AFTER_SB_1PRI)),
    acts("after-sb-2pri", Kind::Choice(AFTER_SB_2PRI)),
    acts("always-asbp", no()),
    only(
        &["disconnect", "call-pri-lost"],
        "rr-conflict",
        Kind::Choice(RR_CONFLICT),
    ),
    acts("fencing", Kind::Choice(FENCING)),
    only(&["block"], "on-congestion", Kind::Choice(ON_CONGESTION)),
    only(
        &["0s"],
        "congestion-fill",
        size(0, 10 << 21, 0, Unit::Sectors),
    ),
    later("congestion-extents", count(67, 65_534, 1237, " extents")),
    ignored("transport", Kind::Choice(&["tcp", "lb-tcp", "rdma"])),
    ignored("load-balance-paths", no()),
    ignored("tls", no()),
    ignored("tls-keyring", Kind::Text(255)),
    ignored("tls-privkey", Kind::Text(255)),
    ignored("tls-certificate", Kind::Text(255)),
];

/// Options of one device, and of one device on one connection (those of [`PEER_DEVICE`]).
const DISK: &[Spec] = &[
    only(
        &["detach", "call-local-io-error"],
        "on-io-error",
        Kind::Choice(ON_IO_ERROR),
    ),
    only(&["0s"], "size", size(0, 1 << 41, 0, Unit::Sectors)),
    acts("al-extents", count(7, 65_534, 1237, " extents")),
    only(&["yes"], "al-updates", yes()),
    ignored("disk-barrier", no()),
    acts("disk-flushes", yes()),
    only(&["yes"], "disk-drain", yes()),
    only(&["yes"], "md-flushes", yes()),
    only(&["0"], "disk-timeout", count(0, 6000, 0, TENTHS)),
    only(
        &["prefer-local"],
        "read-balancing",
        Kind::ReadBalancing(READ_BALANCING),
    ),
    only(&["none"], "resync-after", Kind::ResyncAfter),
    only(
        &["0"],
        "rs-discard-granularity",
        size(0, MIB, 0, Unit::Bytes),
    ),
    only(&["yes"], "discard-zeroes-if-aligned", yes()),
    ignored("disable-write-same", no()),
    ignored("max-bio-size", size(512, MIB, MIB, Unit::Bytes)),
    ignored("block-size", size(512, 4096, 512, Unit::Bytes)),
    ignored("discard-granularity", size(0, 128 * MIB, 0, Unit::Bytes)),
    ignored("diskless", no()),
    only(&["yes"], "bitmap", yes()),
    later("resync-rate", size(1, 8 * MIB, 250, Unit::KibPerSecond)),
    later("c-plan-ahead", count(0, 300, 20, TENTHS)),
    later("c-delay-target", count(1, 100, 10, TENTHS)),
    later("c-fill-target", size(0, MIB, 100, Unit::Sectors)),
    later(
        "c-max-rate",
        size(0, 4 * MIB, 100 * KIB, Unit::KibPerSecond),
    ),
    later("c-min-rate", size(0, 4 * MIB, 250, Unit::KibPerSecond)),
    ignored("resync-without-replication", yes()),
    only(&["yes"], "peer-tiebreaker", yes()),
];

/// The options of `disk` that belong to one device on one connection: legal in `connection { disk { } }`.
pub(crate) const PEER_DEVICE: &[&str] = &[
    "bitmap",
    "resync-rate",
    "c-plan-ahead",
    "c-delay-target",
    "c-fill-target",
    "c-max-rate",
    "c-min-rate",
    "resync-without-replication",
    "peer-tiebreaker",
];

/// Options of one resource.
const OPTIONS: &[Spec] = &[
    only(&["no"], "auto-promote", no()),
    later("auto-promote-timeout", count(0, 600, 20, TENTHS)),
    ignored("cpu-mask", Kind::Text(256)),
    only(
        &["io-error"],
        "on-no-data-accessible",
        Kind::Choice(&["io-error", "suspend-io"]),
    ),
    only(&["off"], "quorum", Kind::Quorum),
    only(&["off"], "quorum-minimum-redundancy", Kind::Quorum),
    later("on-no-quorum", Kind::Choice(&["suspend-io", "io-error"])),
    only(
        &["disconnect"],
        "on-suspended-primary-outdated",
        Kind::Choice(&["disconnect", "force-secondary"]),
    ),
    ignored("peer-ack-window", size(2048, 204_800, 4096, Unit::Sectors)),
    ignored("peer-ack-delay", count(1, 10_000, 100, " milliseconds")),
    ignored("twopc-timeout", count(50, 600, 300, TENTHS)),
    ignored("twopc-retry-timeout", count(1, 50, 1, TENTHS)),
    ignored("max-io-depth", count(4, u32::MAX as u64, 8000, "")),
    acts("nbd-listen", Kind::Address),
];

const STARTUP: &[Spec] = &[
    acts("wfc-timeout", count(0, 300_000, 0, SECONDS)),
    later("degr-wfc-timeout", count(0, 300_000, 0, SECONDS)),
    later("outdated-wfc-timeout", count(0, 300_000, 0, SECONDS)),
    only(&["no"], "wait-after-sb", no()),
    later("become-primary-on", Kind::Names),
    ignored("stacked-timeouts", no()),
];

const COMMAND: Kind = Kind::Text(4096);

const HANDLERS: &[Spec] = &[
    acts("pri-on-incon-degr", COMMAND),
    acts("pri-lost-after-sb", COMMAND),
    acts("pri-lost", COMMAND),
    acts("fence-peer", COMMAND),
    acts("unfence-peer", COMMAND),
    acts("local-io-error", COMMAND),
    acts("initial-split-brain", COMMAND),
    acts("split-brain", COMMAND),
    acts("before-resync-target", COMMAND),
    acts("before-resync-source", COMMAND),
    acts("after-resync-target", COMMAND),
    later("out-of-sync", COMMAND),
    later("quorum-lost", COMMAND),
    acts("disconnected", COMMAND),
];

/// `usage-count` counts as acting: this program never reports its usage, whatever the value.
const GLOBAL: &[Spec] = &[
    acts("usage-count", Kind::Choice(&["ask", "no", "yes"])),
    ignored("dialog-refresh", count(0, 600, 1, SECONDS)),
    ignored("disable-ip-verification", no()),
    ignored("minor-count", count(1, 1 << 20, 32, "")),
    acts("cmd-timeout-short", count(0, 900, 5, SECONDS)),
    acts("cmd-timeout-medium", count(0, 900, 121, SECONDS)),
    acts("cmd-timeout-long", count(0, 900, 600, SECONDS)),
    ignored("udev-always-use-vnr", no()),
];

/// Where DRBD 8.3 options of `syncer { }` and of other sections live now: old section, old name, new section, new name.
pub(crate) const MOVED: &[(&str, &str, Section, &str)] = &[
    ("syncer", "rate", Section::Disk, "resync-rate"),
    ("syncer", "after", Section::Disk, "resync-after"),
    ("syncer", "al-extents", Section::Disk, "al-extents"),
    ("syncer", "c-plan-ahead", Section::Disk, "c-plan-ahead"),
    ("syncer", "c-delay-target", Section::Disk, "c-delay-target"),
    ("syncer", "c-fill-target", Section::Disk, "c-fill-target"),
    ("syncer", "c-max-rate", Section::Disk, "c-max-rate"),
    ("syncer", "c-min-rate", Section::Disk, "c-min-rate"),
    ("syncer", "verify-alg", Section::Net, "verify-alg"),
    ("syncer", "csums-alg", Section::Net, "csums-alg"),
    ("syncer", "use-rle", Section::Net, "use-rle"),
    ("syncer", "cpu-mask", Section::Options, "cpu-mask"),
    (
        "syncer",
        "on-no-data-accessible",
        Section::Options,
        "on-no-data-accessible",
    ),
    ("disk", "fencing", Section::Net, "fencing"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_does_is_the_default_wherever_a_value_is_not_carried_out() {
        for spec in SECTIONS.iter().flat_map(|section| section.table()) {
            let Effect::Only([first, ..]) = spec.effect else {
                continue;
            };
            let default = match spec.kind {
                Kind::Boolean { default: true } => "yes".to_string(),
                Kind::Boolean { default: false } => "no".to_string(),
                Kind::Integer { default, unit, .. } => match unit {
                    Unit::Sectors => format!("{default}s"),
                    Unit::Count(_) | Unit::Bytes | Unit::KibPerSecond => default.to_string(),
                },
                Kind::Choice(words) | Kind::ReadBalancing(words) => words[0].to_string(),
                Kind::Quorum => "off".to_string(),
                _ => "none".to_string(),
            };
            assert_eq!(**first, *default, "{}", spec.name);
        }
    }

    #[test]
    fn every_default_is_within_its_range() {
        for spec in SECTIONS.iter().flat_map(|section| section.table()) {
            if let Kind::Integer {
                min, max, default, ..
            } = spec.kind
            {
                assert!((min..=max).contains(&default), "{}", spec.name);
            }
        }
    }

    #[test]
    fn no_option_stands_twice_in_a_section() {
        for section in SECTIONS {
            let mut names: Vec<_> = section.table().iter().map(|spec| spec.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), section.table().len(), "{section:?}");
        }
    }

    #[test]
    fn moved_and_peer_device_options_exist() {
        for (_, _, section, name) in MOVED {
            assert!(section.find(name).is_some(), "{name}");
        }
        for name in PEER_DEVICE {
            assert!(Section::Disk.find(name).is_some(), "{name}");
        }
    }
}
