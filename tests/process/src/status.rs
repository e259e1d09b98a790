//! What `qrbdadm status --json` says of a resource with one volume and one peer.
//!
//! Fields are read by DRBD's names; one that is missing fails the test, since programs depend on them.

use serde_json::Value;

/// The report of one resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Status(Value);

impl Status {
    /// Reads the output for one resource; `None` if nothing is up.
    ///
    /// # Panics
    /// If the text is not what `drbdsetup status --json` prints.
    #[must_use]
    #[track_caller]
    pub fn parse(text: &str) -> Option<Status> {
        let value: Value = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("status is no JSON: {error}\n{text}"));
        let resources = value.as_array().expect("status is an array");
        assert!(resources.len() <= 1, "one resource expected: {text}");
        resources.first().cloned().map(Status)
    }

    /// The JSON object.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    fn device(&self) -> &Value {
        &self.0["devices"][0]
    }

    fn connection(&self) -> &Value {
        &self.0["connections"][0]
    }

    fn peer_device(&self) -> &Value {
        &self.connection()["peer_devices"][0]
    }

    fn text<'a>(&'a self, object: &'a Value, field: &str) -> &'a str {
        object[field]
            .as_str()
            .unwrap_or_else(|| panic!("no {field} in {}", self.0))
    }

    fn number(&self, object: &Value, field: &str) -> u64 {
        object[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {}", self.0))
    }

    /// Own role.
    #[must_use]
    pub fn role(&self) -> &str {
        self.text(&self.0, "role")
    }

    /// Own disk state.
    #[must_use]
    pub fn disk(&self) -> &str {
        self.text(self.device(), "disk-state")
    }

    /// Size of the volume, bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.number(self.device(), "size") * 1024
    }

    /// Whether a client has it open.
    #[must_use]
    pub fn open(&self) -> bool {
        self.device()["open"]
            .as_bool()
            .unwrap_or_else(|| panic!("no open in {}", self.0))
    }

    /// Connection state.
    #[must_use]
    pub fn connection_state(&self) -> &str {
        self.text(self.connection(), "connection-state")
    }

    /// The peer's role.
    #[must_use]
    pub fn peer_role(&self) -> &str {
        self.text(self.connection(), "peer-role")
    }

    /// Why there is no connection; empty if nothing is known.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.connection()["reason"].as_str().unwrap_or_default()
    }

    /// The peer's disk state.
    #[must_use]
    pub fn peer_disk(&self) -> &str {
        self.text(self.peer_device(), "peer-disk-state")
    }

    /// Replication state.
    #[must_use]
    pub fn replication(&self) -> &str {
        self.text(self.peer_device(), "replication-state")
    }

    /// What is out of sync, bytes.
    #[must_use]
    pub fn out_of_sync_bytes(&self) -> u64 {
        self.number(self.peer_device(), "out-of-sync") * 1024
    }

    /// What was sent to the peer, bytes.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.number(self.peer_device(), "sent") * 1024
    }

    /// What was received from the peer, bytes.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.number(self.peer_device(), "received") * 1024
    }

    /// Writes that wait for the peer.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.number(self.peer_device(), "pending")
    }

    /// Connected, both disks UpToDate, nothing running.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.connection_state() == "Connected"
            && self.replication() == "Established"
            && (self.disk(), self.peer_disk()) == ("UpToDate", "UpToDate")
            && self.out_of_sync_bytes() == 0
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}/{} {} {} {}/{} out of sync {} bytes",
            self.role(),
            self.connection_state(),
            self.peer_role(),
            self.reason(),
            self.replication(),
            self.disk(),
            self.peer_disk(),
            self.out_of_sync_bytes()
        )
    }
}
