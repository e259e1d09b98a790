//! What an error costs: its resource, the rest of its file, or everything if the defaults are unknown.

mod support;

use qrbd_config::{ErrorKind, Loaded};
use support::{load_files, load_text, messages, summaries};

/// A sound resource whose device, disks and addresses are its own.
fn sound(name: &str, number: u8) -> String {
    format!(
        "resource {name} {{\n  device minor {number}; disk /dev/vg/{name};\n  on alice {{ address 10.0.{number}.1:7789; }}\n  on bob {{ address 10.0.{number}.2:7789; }}\n}}\n"
    )
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

fn broken(loaded: &Loaded) -> Vec<&str> {
    loaded
        .broken
        .iter()
        .map(|broken| broken.name.as_str())
        .collect()
}

#[test]
fn a_bad_option_costs_its_resource_alone() {
    let bad = sound("r1", 1).replace("device", "net { protcol C; } device");
    let loaded = load_text(&format!("{}{bad}{}", sound("r0", 0), sound("r2", 2)));
    assert_eq!(names(&loaded), ["r0", "r2"]);
    assert_eq!(broken(&loaded), ["r1"]);
    assert_eq!(loaded.errors_of("r1").count(), 1);
    assert_eq!(loaded.errors.len(), 1);
}

#[test]
fn all_bad_statements_of_a_resource_are_reported_at_once() {
    let bad = sound("r0", 0).replace("device", "net { protcol C; timeout 0; } dsik x; device");
    assert_eq!(load_text(&bad).errors.len(), 3);
}

#[test]
fn a_syntax_error_costs_the_text_up_to_the_matching_brace() {
    for mistake in [
        "net { ; }",
        "net { { } }",
        "\"open string\n",
        "net { timeout 10 }",
        "x {\u{1}} ",
    ] {
        let bad = sound("r1", 1).replace("device", &format!("{mistake} device"));
        let loaded = load_text(&format!("{}{bad}{}", sound("r0", 0), sound("r2", 2)));
        assert_eq!(
            names(&loaded),
            ["r0", "r2"],
            "{mistake}: {}",
            messages(&loaded)
        );
        assert_eq!(broken(&loaded), ["r1"]);
        assert_eq!(loaded.errors.len(), 1, "{}", messages(&loaded));
    }
}

#[test]
fn a_missing_brace_costs_the_resource_and_the_next_one_is_read() {
    let open = sound("r0", 0).replace("7789; }\n}", "7789; }\n");
    let loaded = load_text(&format!("{open}{}{}", sound("r1", 1), sound("r2", 2)));
    assert_eq!(names(&loaded), ["r1", "r2"]);
    assert_eq!(broken(&loaded), ["r0"]);
    let two_errors = sound("r0", 0)
        .replace("device", ";")
        .replace("7789; }\n}", "7789; }\n");
    let loaded = load_text(&format!("{two_errors}{}", sound("r1", 1)));
    assert_eq!(names(&loaded), ["r1"]);
}

#[test]
fn a_stray_brace_costs_the_rest_of_its_file_and_no_other_file() {
    let loaded = load_files(&[
        ("qrbd.conf", "common { }\ninclude \"*.res\";"),
        (
            "a.res",
            &format!("{}}}\n{}{}", sound("r0", 0), sound("r1", 1), sound("r2", 2)),
        ),
        ("b.res", &sound("r3", 3)),
    ]);
    assert_eq!(names(&loaded), ["r0", "r3"]);
    assert_eq!(broken(&loaded), ["r1", "r2"]);
    assert_eq!(summaries(&loaded), ["a.res:6:1: `}` without a `{`"]);
}

#[test]
fn an_unknown_top_level_word_costs_the_rest_of_its_file() {
    let loaded = load_text(&format!(
        "{}resorce r1 {{ }}\n{}",
        sound("r0", 0),
        sound("r2", 2)
    ));
    assert_eq!(names(&loaded), ["r0"]);
    assert_eq!(broken(&loaded), ["r2"]);
}

#[test]
fn a_file_of_garbage_costs_itself() {
    let loaded = load_files(&[
        ("qrbd.conf", "include \"*.res\";"),
        ("a.res", "\u{0}\u{1}{{{{;;;\"\"\"}}}}"),
        ("b.res", &sound("r0", 0)),
    ]);
    assert_eq!(names(&loaded), ["r0"]);
    assert_eq!(loaded.errors.len(), 1);
}

#[test]
fn an_error_in_common_costs_every_resource_that_inherits_it() {
    let loaded = load_files(&[
        (
            "qrbd.conf",
            &format!(
                "common {{ net {{ fencng resource-only; }} }}\n{}resource t {{ template-file t; {}",
                sound("r0", 0),
                &sound("t", 1)[12..]
            ),
        ),
        ("t", "common { }"),
    ]);
    assert_eq!(names(&loaded), ["t"]);
    assert_eq!(broken(&loaded), ["r0"]);
    assert_eq!(
        loaded
            .errors_of("r0")
            .map(|error| error.kind)
            .collect::<Vec<_>>(),
        [ErrorKind::Inherited]
    );
}

#[test]
fn a_common_section_lost_to_a_top_level_error_costs_every_resource() {
    let loaded = load_text(&format!("{}nonsense;\ncommon {{ }}\n", sound("r0", 0)));
    assert_eq!(names(&loaded), [] as [&str; 0]);
    let loaded = load_text(&format!(
        "common {{ }}\n{}nonsense;\ninclude \"*.res\";\n",
        sound("r0", 0)
    ));
    assert_eq!(
        names(&loaded),
        ["r0"],
        "there is only one common, and it was read"
    );
}

#[test]
fn a_missing_include_costs_nothing_else_if_common_is_known() {
    let loaded = load_text(&format!("common {{ }}\ninclude gone;\n{}", sound("r0", 0)));
    assert_eq!(names(&loaded), ["r0"]);
    let loaded = load_text(&format!("include gone;\n{}", sound("r0", 0)));
    assert_eq!(broken(&loaded), ["r0"], "the missing file may hold common");
}

#[test]
fn an_error_in_global_costs_no_resource() {
    let loaded = load_text(&format!(
        "global {{ usage-count perhaps; }}\n{}",
        sound("r0", 0)
    ));
    assert_eq!(names(&loaded), ["r0"]);
    assert_eq!(loaded.errors.len(), 1);
}

#[test]
fn a_second_common_is_an_error_and_the_first_counts() {
    let loaded = load_text(&format!(
        "common {{ net {{ timeout 10; }} }}\n{}common {{ }}",
        sound("r0", 0)
    ));
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:7:1: conflicting use of `common`: there is one already"]
    );
    assert_eq!(loaded.resources[0].connections[0].net.timeout_ms, 1000);
}

#[test]
fn of_two_resources_in_conflict_the_first_stays() {
    let cases = [
        (
            "minor 1",
            "minor 0",
            "8:10",
            "device minor 0 on node `alice`",
        ),
        ("vg/r1", "vg/r0", "8:24", "/dev/vg/r0 on node `alice`"),
        ("10.0.1.2", "10.0.0.2", "10:20", "address 10.0.0.2:7789"),
        (
            "disk /dev",
            "meta-disk /dev/vg/r0; disk /dev",
            "8:29",
            "/dev/vg/r0 on node `alice`",
        ),
    ];
    for (from, to, place, what) in cases {
        let second = sound("r1", 1).replace(from, to);
        let loaded = load_text(&format!("{}\n{second}", sound("r0", 0)));
        assert_eq!(names(&loaded), ["r0"]);
        assert_eq!(broken(&loaded), ["r1"]);
        let expected = format!("qrbd.conf:{place}: {what} is already used by resource `r0`");
        assert_eq!(summaries(&loaded), [expected]);
        let note = &loaded.errors[0].notes[0];
        assert!(
            note.starts_with("first used at ") && note.contains("qrbd.conf:"),
            "{note}"
        );
    }
}

#[test]
fn a_resource_that_is_defined_twice_names_both_places() {
    let loaded = load_files(&[
        ("qrbd.conf", "include \"*.res\";"),
        ("a.res", &sound("r0", 0)),
        ("b.res", &sound("r0", 1)),
    ]);
    assert_eq!(
        summaries(&loaded),
        ["b.res:1:10: resource `r0` is defined twice"]
    );
    assert!(messages(&loaded).contains("a.res:1:10"));
    assert_eq!(loaded.resources.len(), 1);
}

#[test]
fn slots_of_one_metadata_device_are_shared_and_the_same_slot_is_not() {
    let with_slot = |name: &str, number: u8, slot: &str| {
        sound(name, number).replace("disk /dev", &format!("meta-disk /dev/md{slot}; disk /dev"))
    };
    let loaded = load_text(&format!(
        "{}{}",
        with_slot("r0", 0, "[0]"),
        with_slot("r1", 1, "[1]")
    ));
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    for slot in ["[0]", ""] {
        let loaded = load_text(&format!(
            "{}{}",
            with_slot("r0", 0, "[0]"),
            with_slot("r1", 1, slot)
        ));
        assert_eq!(names(&loaded), ["r0"], "{slot}");
    }
}

#[test]
fn a_disk_that_two_volumes_of_a_resource_share_is_refused() {
    let loaded = load_text(
        "resource r0 { volume 0 { disk /dev/sdb; } volume 1 { disk /dev//sdb; }
            on alice { address 10.0.0.1:1; } on bob { address 10.0.0.2:1; } }",
    );
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:1:59: /dev/sdb on node `alice` is used twice in this resource"]
    );
}

#[test]
fn nodes_of_one_resource_cannot_share_an_address() {
    let loaded = load_text(
        "resource r0 { disk /dev/sdb;\non alice { address 10.0.0.1:1; }\non bob { address 10.0.0.1:1; } }",
    );
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:3:18: address 10.0.0.1:1 is already that of node `alice`"]
    );
}

#[test]
fn the_same_minor_and_disk_on_different_nodes_are_no_conflict() {
    let other = sound("r1", 1)
        .replace("minor 1", "minor 0")
        .replace("vg/r1", "vg/r0")
        .replace("alice", "carl")
        .replace("bob", "dora");
    let loaded = load_text(&format!("{}{other}", sound("r0", 0)));
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert_eq!(loaded.local_resources().count(), 1);
}

#[test]
fn resync_after_must_name_an_existing_volume_and_must_not_go_round() {
    let after = |name: &str, number: u8, target: &str| {
        sound(name, number).replace(
            "device",
            &format!("disk {{ resync-after {target}; }} device"),
        )
    };
    let fine = load_text(&format!("{}{}", after("r0", 0, "r1"), sound("r1", 1)));
    assert!(fine.errors.is_empty(), "{}", messages(&fine));
    assert_eq!(
        fine.resources[0].volumes()[0].options.resync_after,
        Some(("r1".into(), 0))
    );
    let unknown = load_text(&format!("{}{}", after("r0", 0, "r9"), sound("r1", 1)));
    assert_eq!(names(&unknown), ["r1"]);
    let no_volume = load_text(&format!("{}{}", after("r0", 0, "r1/5"), sound("r1", 1)));
    assert_eq!(names(&no_volume), ["r1"]);
    let round = load_text(&format!(
        "{}{}{}",
        after("r0", 0, "r1"),
        after("r1", 1, "r2"),
        after("r2", 2, "r0")
    ));
    assert_eq!(names(&round), ["r0", "r1"]);
    assert!(round.errors[0].message.contains("goes round in a circle"));
    let itself = load_text(&after("r0", 0, "r0"));
    assert!(itself.errors[0].message.contains("goes round in a circle"));
}

#[test]
fn resync_after_a_broken_resource_is_legal() {
    let bad = sound("r1", 1).replace("device", "bad-word x; device");
    let first = sound("r0", 0).replace("device", "disk { resync-after r1/0; } device");
    assert_eq!(names(&load_text(&format!("{first}{bad}"))), ["r0"]);
}

#[test]
fn thousands_of_errors_are_counted_not_stored() {
    let text: String = (0..2000)
        .map(|number| format!("resource r{number} {{ bad; }}\n"))
        .collect();
    let loaded = load_text(&text);
    assert_eq!(loaded.errors.len(), 501);
    assert!(
        loaded.errors[500]
            .message
            .ends_with("more errors are not shown")
    );
    assert_eq!(loaded.broken.len(), 2000);
}

#[test]
fn one_resource_reports_at_most_twenty_errors() {
    let loaded = load_text(&format!("resource r0 {{ {} }}", "bad; ".repeat(10_000)));
    assert_eq!(loaded.errors.len(), 20);
}

#[test]
fn deep_braces_are_an_error_not_an_overflow() {
    let loaded = load_text(&format!("resource r0 {{ {}", "a { ".repeat(200_000)));
    assert_eq!(loaded.errors.len(), 1);
    assert!(
        loaded.errors[0].message.contains("nested deeper"),
        "{}",
        messages(&loaded)
    );
}
