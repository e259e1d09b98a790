//! The key file: mode, content, and that an existing one is safe.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::fixtures::qrbdadm;

#[test]
fn key_is_256_random_bits_readable_by_its_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (
        directory.path().join("deep/first"),
        directory.path().join("second"),
    );
    for path in [&first, &second] {
        let ran = qrbdadm(
            directory.path(),
            &["keygen", "--output", path.to_str().unwrap()],
        );
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o7777,
            0o400
        );
        let text = fs::read_to_string(path).unwrap();
        assert!(text.len() == 65 && text.ends_with('\n'), "{text:?}");
        assert!(text.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(
            !ran.stdout.contains(text.trim_end()),
            "the key is never printed"
        );
    }
    assert_ne!(fs::read(first).unwrap(), fs::read(second).unwrap());
}

#[test]
fn existing_key_is_replaced_only_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authkey");
    fs::write(&path, "old").unwrap();
    let output = path.to_str().unwrap();
    let ran = qrbdadm(directory.path(), &["keygen", "--output", output]);
    assert_eq!(ran.code, 20);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");

    assert_eq!(
        qrbdadm(directory.path(), &["keygen", "--force", "--output", output]).code,
        0
    );
    assert_ne!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o400
    );
    let left: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["authkey"], "no temporary file stays behind");
}
