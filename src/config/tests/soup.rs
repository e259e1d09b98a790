//! No input makes the loader panic, hang, or load something from a resource with an error.

mod support;

use proptest::prelude::*;
use support::{load_text, messages};

const WORDS: &[&str] = &[
    "{",
    "}",
    ";",
    "{",
    "}",
    ";",
    ";",
    "\n",
    "#",
    "\"",
    "\"x y\"",
    "resource",
    "r0",
    "r1",
    "common",
    "global",
    "include",
    "skip",
    "on",
    "alice",
    "bob",
    "floating",
    "connection",
    "connection-mesh",
    "host",
    "hosts",
    "path",
    "volume",
    "0",
    "1",
    "65535",
    "device",
    "/dev/drbd0",
    "minor",
    "disk",
    "/dev/sdb",
    "none",
    "meta-disk",
    "internal",
    "/dev/x[0]",
    "flexible-meta-disk",
    "[1]",
    "address",
    "ipv4",
    "10.0.0.1:7789",
    "[::1]:1",
    ":",
    "port",
    "via",
    "node-id",
    "net",
    "options",
    "handlers",
    "startup",
    "proxy",
    "syncer",
    "protocol",
    "C",
    "A",
    "timeout",
    "10",
    "99999999999999999999",
    "10K",
    "s",
    "yes",
    "no-disk-flushes",
    "after-sb-0pri",
    "discard-node-",
    "resync-after",
    "r0/0",
    "stacked-on-top-of",
    "template-file",
    "qrbd.conf",
    "*",
    "[",
    "=",
    "\\",
    "\u{0}",
    "é",
    "quorum",
    "nbd-listen",
    "require-drbd-module-version-ge",
    "shared-secret",
    "fencing",
];

/// Pieces of a sound file, so that the soup gets past the first statement.
const PIECES: &[&str] = &[
    "resource r0 { on alice { address 10.0.0.1:1; disk /dev/a; } on bob { address 10.0.0.2:1; disk /dev/a; } }",
    "on alice { address 10.0.0.1:1; disk /dev/a; }",
    "on bob { address 10.0.0.2:1; disk /dev/a; }",
    "connection { host alice; host bob; }",
    "net { protocol A; }",
    "volume 1 { disk /dev/b; }",
    "resource r1 {",
    "common { net { timeout 5; } }",
];

fn check(text: &str) {
    let loaded = load_text(text);
    for error in &loaded.errors {
        assert!(!error.message.is_empty());
        assert!(!error.to_string().contains(['\0', '\u{1b}']), "{error}");
    }
    for resource in &loaded.resources {
        // What is wrong with a second definition of the name leaves the first one as it is.
        let definitions = text
            .matches(&format!("resource {} ", resource.name))
            .count();
        assert!(
            definitions > 1 || loaded.errors_of(&resource.name).next().is_none(),
            "{}\n{text}",
            messages(&loaded)
        );
        let text = qrbd_config::dump_resource(resource);
        let again = load_text(&text);
        assert!(
            again
                .errors
                .iter()
                .all(|error| error.message.contains("resync-after")),
            "{}\n{text}",
            messages(&again)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn token_soup_never_panics(tokens in prop::collection::vec(prop::sample::select(WORDS), 0..120)) {
        check(&tokens.join(" "));
    }

    #[test]
    fn soup_inside_a_resource_never_panics(
        tokens in prop::collection::vec(prop_oneof![prop::sample::select(WORDS), prop::sample::select(PIECES)], 0..40)
    ) {
        check(&format!("resource r0 {{ {} }}", tokens.join(" ")));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,300}") {
        check(&text);
    }

    #[test]
    fn a_sound_file_with_one_byte_changed_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let text = format!("common {{ net {{ timeout 50; }} }}\n{}\n", PIECES[0]);
        let mut bytes = text.into_bytes();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qrbd.conf");
        std::fs::write(&path, bytes).expect("a file");
        let loaded = support::load_as(&path, "alice");
        prop_assert!(loaded.resources.len() <= 1);
    }

    #[test]
    fn every_prefix_of_a_sound_file_is_an_error_or_sound(length in 0..PIECES[0].len()) {
        let loaded = load_text(&PIECES[0][..length]);
        prop_assert!(loaded.resources.is_empty());
        prop_assert_eq!(loaded.errors.is_empty(), length == 0);
    }
}

#[test]
fn broken_second_definition_leaves_the_first_one() {
    check(
        "resource r0 { resource r1 { on alice { address 10.0.0.1:1; disk /dev/a; } } resource r1 { ; }",
    );
}

/// Texts of a megabyte that would show time or memory growing faster than the text.
#[test]
fn a_megabyte_of_anything_is_read_within_seconds() {
    let repeat = |piece: &str| piece.repeat((1 << 20) / piece.len());
    let numbered = |piece: fn(usize) -> String| {
        let mut text = String::new();
        for number in 0.. {
            let next = piece(number);
            if text.len() + next.len() > 1 << 20 {
                return text;
            }
            text.push_str(&next);
        }
        text
    };
    let mesh: String = (0..32)
        .map(|node| {
            format!(
                "on n{node} {{ node-id {node}; address 10.0.0.{}:1; }} ",
                node + 1
            )
        })
        .chain((0..64).map(|volume| format!("volume {volume} {{ disk /dev/v{volume}; }} ")))
        .collect();
    let hosts: String = (0..32).map(|node| format!(" n{node}")).collect();
    let mesh = format!("{mesh} connection-mesh {{ hosts{hosts}; }}");
    let mut meshes = String::new();
    for number in 0..200 {
        let own = mesh
            .replace("10.0.0.", &format!("10.0.{number}."))
            .replace("/dev/v", &format!("/dev/{number}-"));
        meshes.push_str(&format!("resource r{number} {{ {own} }}\n"));
    }
    let texts = [
        repeat("a "),
        repeat("{"),
        repeat("}"),
        repeat("\""),
        repeat("#"),
        repeat("resource a{x;}"),
        repeat("resource a {\n"),
        repeat("net { x; } "),
        format!(
            "resource r0 {{ {} }}",
            &repeat("net { timeout 9; } ")[..1_000_000]
        ),
        format!(
            "resource r0 {{ {} }}",
            &repeat("connection { host a; host b; } ")[..1_000_000]
        ),
        numbered(|number| format!("resource r{number} {{ bad; worse; worst; }} ")),
        numbered(|number| {
            format!(
                "resource r{number} {{ disk {{ resync-after r{}; }} disk /dev/r{number}; on alice {{ address 10.0.0.1:{}; }} }} ",
                number + 1,
                number % 65_535 + 1
            )
        }),
        meshes,
    ];
    for text in &texts {
        let start = std::time::Instant::now();
        let loaded = load_text(text);
        let passed = start.elapsed();
        let begin: String = text.chars().take(60).collect();
        assert!(
            passed.as_secs() < 20,
            "{passed:?} for {} bytes of {begin}",
            text.len()
        );
        assert!(messages(&loaded).len() < 4 << 20, "{begin}");
    }
}
