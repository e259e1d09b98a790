//! The texts of typical mistakes, in full: place, line, carets, remedy.

mod support;

use support::{load_text, messages};

#[track_caller]
fn expect(text: &str, expected: &str) {
    assert_eq!(messages(&load_text(text)).trim_end(), expected.trim());
}

#[test]
fn a_misspelt_option_is_shown_with_the_right_one() {
    expect(
        r#"resource r0 {
    net {
        protcol C;
    }
}
"#,
        r#"
qrbd.conf:3:9: unknown word `protcol` in section `net`
  |
3 |         protcol C;
  |         ^^^^^^^
  = did you mean `protocol`?
  = allowed here: after-sb-0pri, after-sb-1pri, after-sb-2pri, allow-remote-read, allow-two-primaries, always-asbp, congestion-extents, congestion-fill, connect-int, cram-hmac-alg, csums-after-crash-only, csums-alg, data-integrity-alg, fencing, ko-count, load-balance-paths, max-buffers, max-epoch-size, on-congestion, ping-int, ping-timeout, protocol, rcvbuf-size, rr-conflict, shared-secret, sndbuf-size, socket-check-timeout, tcp-cork, timeout, tls, tls-certificate, tls-keyring, tls-privkey, transport, unplug-watermark, use-rle, verify-alg
"#,
    );
}

#[test]
fn a_misspelt_statement_is_underlined_behind_tabs() {
    expect(
        r#"resource r0 {
	on alice {
		dsik /dev/sdb;
	}
}
"#,
        r#"
qrbd.conf:3:3: unknown word `dsik` in `on alice`
  |
3 | 		dsik /dev/sdb;
  | 		^^^^
  = did you mean `disk`?
  = allowed here: address, device, disk, flexible-meta-disk, meta-disk, node-id, options, proxy, skip, volume
"#,
    );
}

#[test]
fn a_value_out_of_range_is_shown_with_the_range() {
    expect(
        r#"resource r0 {
    net { timeout 601; }
}
"#,
        r#"
qrbd.conf:2:19: `timeout` 601 is out of range
  |
2 |     net { timeout 601; }
  |                   ^^^
  = allowed: 1..600 (tenths of a second)
"#,
    );
}

#[test]
fn a_wrong_value_is_shown_with_the_allowed_ones() {
    expect(
        r#"resource r0 {
    net { fencing resource-and-stonit; }
}
"#,
        r#"
qrbd.conf:2:19: `fencing` cannot be `resource-and-stonit`
  |
2 |     net { fencing resource-and-stonit; }
  |                   ^^^^^^^^^^^^^^^^^^^
  = did you mean `resource-and-stonith`?
  = allowed values: dont-care, resource-only, resource-and-stonith
"#,
    );
}

#[test]
fn a_protocol_in_lower_case_is_corrected() {
    expect(
        r#"resource r0 {
    protocol c;
}
"#,
        r#"
qrbd.conf:2:14: `protocol` cannot be `c`
  |
2 |     protocol c;
  |              ^
  = did you mean `C`?
  = allowed values: A, B, C
"#,
    );
}

#[test]
fn seconds_with_a_suffix_are_explained() {
    expect(
        r#"resource r0 {
    net { ping-int 10s; }
}
"#,
        r#"
qrbd.conf:2:20: `ping-int` takes a number, not `10s`
  |
2 |     net { ping-int 10s; }
  |                    ^^^
  = the suffix `s` means sectors of 512 bytes, not seconds
  = allowed: 1..120 seconds, suffixes K, M, G
"#,
    );
}

#[test]
fn a_missing_semicolon_is_shown_where_it_belongs() {
    expect(
        r#"resource r0 {
    on alice {
        disk /dev/sdb
        address 10.0.0.1:7789;
    }
}
"#,
        r#"
qrbd.conf:3:22: `;` missing after `disk /dev/sdb`
  |
3 |         disk /dev/sdb
  |                      ^
"#,
    );
}

#[test]
fn a_missing_semicolon_before_a_brace_is_shown() {
    expect(
        r#"resource r0 {
    net { protocol C }
}
"#,
        r#"
qrbd.conf:2:21: `;` or `{` expected after `protocol C`
  |
2 |     net { protocol C }
  |                     ^
"#,
    );
}

#[test]
fn a_missing_brace_is_found_at_the_next_resource() {
    expect(
        r#"resource r0 {
    on alice {
        disk /dev/sdb;
}
resource r1 {
}
"#,
        r#"
qrbd.conf:5:1: `resource r1` inside `resource r0`
  |
5 | resource r1 {
  | ^^^^^^^^
  = a `}` is missing before this line; `resource r0` begins at qrbd.conf:1:1
qrbd.conf:5:1: resource `r1` has no `on` section
  |
5 | resource r1 {
  | ^^^^^^^^
  = write `on HOST { … }` for each node
"#,
    );
}

#[test]
fn a_file_that_ends_too_early_names_the_open_section() {
    expect(
        r#"resource r0 {
    protocol C;
"#,
        r#"
qrbd.conf:1:1: `resource r0` is not closed: the file ends before its `}`
  |
1 | resource r0 {
  | ^^^^^^^^
"#,
    );
}

#[test]
fn a_string_without_end_is_shown() {
    expect(
        r#"resource r0 {
    handlers { fence-peer "/bin/true; }
}
"#,
        r#"
qrbd.conf:2:27: this string has no closing quote on its line
  |
2 |     handlers { fence-peer "/bin/true; }
  |                           ^^^^^^^^^^^^^
"#,
    );
}

#[test]
fn an_equals_sign_is_explained() {
    expect(
        r#"resource r0 {
    net { timeout=60; protocol = C; }
}
"#,
        r#"
qrbd.conf:2:11: unknown word `timeout=60` in section `net`
  |
2 |     net { timeout=60; protocol = C; }
  |           ^^^^^^^^^^
  = values are written without `=`: `timeout VALUE;`
  = allowed here: after-sb-0pri, after-sb-1pri, after-sb-2pri, allow-remote-read, allow-two-primaries, always-asbp, congestion-extents, congestion-fill, connect-int, cram-hmac-alg, csums-after-crash-only, csums-alg, data-integrity-alg, fencing, ko-count, load-balance-paths, max-buffers, max-epoch-size, on-congestion, ping-int, ping-timeout, protocol, rcvbuf-size, rr-conflict, shared-secret, sndbuf-size, socket-check-timeout, tcp-cork, timeout, tls, tls-certificate, tls-keyring, tls-privkey, transport, unplug-watermark, use-rle, verify-alg
qrbd.conf:2:32: values are written without `=`
  |
2 |     net { timeout=60; protocol = C; }
  |                                ^
  = write `protocol VALUE;`
"#,
    );
}

#[test]
fn an_option_in_the_wrong_section_is_sent_to_the_right_one() {
    expect(
        r#"resource r0 {
    disk { max-buffers 8000; }
}
"#,
        r#"
qrbd.conf:2:12: unknown word `max-buffers` in section `disk`
  |
2 |     disk { max-buffers 8000; }
  |            ^^^^^^^^^^^
  = `max-buffers` belongs in section `net`
  = allowed here: al-extents, al-updates, bitmap, block-size, c-delay-target, c-fill-target, c-max-rate, c-min-rate, c-plan-ahead, disable-write-same, discard-granularity, discard-zeroes-if-aligned, disk-barrier, disk-drain, disk-flushes, disk-timeout, diskless, fencing, max-bio-size, md-flushes, on-io-error, peer-tiebreaker, read-balancing, resync-after, resync-rate, resync-without-replication, rs-discard-granularity, size
"#,
    );
}

#[test]
fn an_unknown_word_at_the_top_level_is_corrected() {
    expect(
        r#"resorce r0 {
}
"#,
        r#"
qrbd.conf:1:1: unknown word `resorce` at the top level
  |
1 | resorce r0 {
  | ^^^^^^^
  = did you mean `resource`?
  = allowed here: common, global, include, resource, skip
  = the rest of this file is not read
"#,
    );
}

#[test]
fn an_address_without_port_is_explained() {
    expect(
        r#"resource r0 {
    on alice { address 10.0.0.1; }
}
"#,
        r#"
qrbd.conf:2:24: the address `10.0.0.1` has no port
  |
2 |     on alice { address 10.0.0.1; }
  |                        ^^^^^^^^
  = write IP:PORT, for example 192.168.1.10:7789 or [fd00::1]:7789; host names are not resolved
"#,
    );
}

#[test]
fn a_host_name_as_address_is_refused() {
    expect(
        r#"resource r0 {
    on alice { address alice:7789; }
}
"#,
        r#"
qrbd.conf:2:24: `alice:7789` is not an address
  |
2 |     on alice { address alice:7789; }
  |                        ^^^^^^^^^^
  = write IP:PORT, for example 192.168.1.10:7789 or [fd00::1]:7789; host names are not resolved
"#,
    );
}

#[test]
fn a_line_with_a_secret_is_not_shown() {
    expect(
        r#"resource r0 {
    net { shared-secret hunter2 hunter3; }
}
"#,
        r#"
qrbd.conf:2:33: unexpected second word after `shared-secret`
  |
2 | (a line with a secret is not shown)
  = is a `;` missing before it?
"#,
    );
}

#[test]
fn a_secret_never_appears_in_a_message() {
    for text in [
        "shared-secret hunter2 hunter3;",
        "shared-secret\nhunter2\nhunter3;",
        "shared-secret hunter2\nverify-alg sha1;",
        "shared-secret hunter2 }",
        "shared-secret\n\"hunter2\n;",
        "shared-secret=hunter2;",
        "shared-secrt hunter2;",
        "shared-secret a; shared-secret hunter2;",
    ] {
        let loaded = load_text(&format!("resource r0 {{ net {{ {text} }} }}"));
        assert!(!loaded.errors.is_empty(), "{text}");
        assert!(
            !messages(&loaded).contains("hunter"),
            "{}",
            messages(&loaded)
        );
    }
}

#[test]
fn a_long_line_is_cut_around_the_mistake() {
    let text = format!(
        "resource r0 {{ {} net {{ bad; }} {} }}",
        "net { } ".repeat(100),
        "net { } ".repeat(100)
    );
    let message = messages(&load_text(&text));
    let line = message.lines().nth(2).expect("the line");
    let carets = message.lines().nth(3).expect("the carets");
    assert!(line.chars().count() < 180, "{line}");
    let at = carets.chars().position(|c| c == '^').expect("carets");
    assert_eq!(line.chars().skip(at).take(3).collect::<String>(), "bad");
}
