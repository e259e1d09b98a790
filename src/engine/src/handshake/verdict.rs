//! What two sides' facts mean for a volume: in sync, source, target, or no connection.
//!
//! Changes nothing but what it reports; both sides reach mirrored verdicts because both look at what was sent.

use alloc::format;
use alloc::string::{String, ToString};

use crate::api::{Effect, Payload};
use crate::engine::Engine;
use crate::generation::{DiskLevel, Extent, History, Outcome, Side, compare};
use crate::split_brain::{self, Resolution, SplitBrainSide};
use crate::state::{DiskState, Role};
use crate::units::NodeId;
use crate::wire::VolumeHello;

pub(super) fn level(disk: DiskState) -> DiskLevel {
    match disk {
        DiskState::UpToDate => DiskLevel::UpToDate,
        DiskState::Consistent => DiskLevel::Consistent,
        DiskState::Outdated => DiskLevel::Outdated,
        _ => DiskLevel::Inconsistent,
    }
}

fn side<'a>(
    node_id: NodeId,
    hello: &'a VolumeHello,
    role: Role,
    protocol: crate::wire::message::Protocol,
) -> Side<'a> {
    Side {
        node_id,
        current: hello.current,
        bitmap: hello.bitmap,
        history: &hello.history,
        crashed_primary: hello.crashed_primary,
        still_running_since_contact: hello.running_since_contact,
        role_primary: role == Role::Primary && !hello.attached_anew,
        disk: level(hello.disk),
        full_sync_requested: hello.full_sync,
        sync_target: hello.sync_target,
        bits: hello.bits,
        protocol,
    }
}

impl<P: Payload> Engine<P> {
    /// What the two sides' facts mean for the volume; an error forbids the connection. `first`: the first time that these facts
    /// are looked at, so that a split brain is reported once.
    pub(super) fn verdict(
        &mut self,
        p: usize,
        v: usize,
        first: bool,
    ) -> Result<(Outcome, &'static str), (&'static str, String)> {
        let device = &self.peers[p].devices[v];
        let (Some(mine), Some(theirs)) = (device.mine.clone(), device.theirs.clone()) else {
            return Ok((Outcome::NoSource, "no-volume"));
        };
        if mine.disk == DiskState::Diskless || theirs.disk == DiskState::Diskless {
            return Ok((Outcome::NoSource, "diskless"));
        }
        let size = agreed_size(&mine, &theirs).map_err(|text| ("incompatible-size", text))?;
        let (my_role, their_role) = match (&self.peers[p].hello_sent, &self.peers[p].hello_received)
        {
            (Some(my_hello), Some(their_hello)) if mine.round == 1 => {
                (my_hello.role, their_hello.role)
            }
            _ => (self.role, self.peers[p].role),
        };
        let config = &self.peers[p].config;
        let (node, protocol) = (config.node_id, config.protocol);
        let mut me = side(self.node_id, &mine, my_role, protocol);
        let mut peer = side(node, &theirs, their_role, protocol);
        if me.bits == 0 && peer.bits == 0 {
            // A resize was cut short when one side had noted the new size: what is added there counts as marked at the other one.
            let grows =
                |hello: &VolumeHello| hello.effective_bytes != 0 && hello.effective_bytes < size;
            me.bits = grows(&mine).into();
            peer.bits = grows(&theirs).into();
        }
        let verdict = compare(&me, &peer);
        let rule = verdict.rule.name();
        let outcome = match verdict.outcome {
            Outcome::SplitBrain(History::Bitmap) if mine.bits == 0 || theirs.bits == 0 => {
                // One side went on alone and the other one only got ready to: nothing is lost by following the one that wrote.
                let me_source = match (mine.bits > 0, theirs.bits > 0) {
                    (false, false) if my_role != their_role => my_role == Role::Primary,
                    (false, false) => self.node_id < node,
                    (wrote, _) => wrote,
                };
                if me_source {
                    Outcome::Source(Extent::Bitmap)
                } else {
                    Outcome::Target(Extent::Bitmap)
                }
            }
            Outcome::SplitBrain(history) => self.resolve_split_brain(
                p, v, history, &mine, &theirs, my_role, their_role, rule, first,
            )?,
            Outcome::Unrelated => return Err((rule, String::from("Unrelated data, aborting!"))),
            Outcome::Refuse(refusal) => return Err((rule, refusal.text().to_string())),
            other => other,
        };
        // A Primary whose own data are not good works on its peer's anyway, and goes on with the resync that makes them good.
        let conflict = |role, hello: &VolumeHello| {
            role == Role::Primary
                && !hello.attached_anew
                && level(hello.disk) >= DiskLevel::Consistent
        };
        if matches!(outcome, Outcome::Target(_)) && conflict(my_role, &mine)
            || matches!(outcome, Outcome::Source(_)) && conflict(their_role, &theirs)
        {
            if first && matches!(outcome, Outcome::Target(_)) {
                self.effect(Effect::Handler {
                    name: "pri-lost",
                    peer: Some(node),
                    volume: Some(self.volumes[v].number),
                });
            }
            let text = String::from(
                "the Primary would have to become target of a resync (rr-conflict): make it Secondary, then connect",
            );
            return Err(("rr-conflict", text));
        }
        Ok((outcome, rule))
    }

    #[allow(clippy::too_many_arguments)]
    fn resolve_split_brain(
        &mut self,
        p: usize,
        v: usize,
        history: History,
        mine: &VolumeHello,
        theirs: &VolumeHello,
        my_role: Role,
        their_role: Role,
        rule: &'static str,
        first: bool,
    ) -> Result<Outcome, (&'static str, String)> {
        let (Some(hello), Some(peer_hello)) =
            (&self.peers[p].hello_sent, &self.peers[p].hello_received)
        else {
            return Err((rule, String::from("split brain")));
        };
        let me = SplitBrainSide {
            node_id: self.node_id,
            primary_now: my_role == Role::Primary,
            bits: mine.bits,
            bitmap_generation: mine.bitmap,
            inconsistent: level(mine.disk) == DiskLevel::Inconsistent,
            discard_my_data: hello.discard_my_data,
            policies: hello.policies,
        };
        let peer = SplitBrainSide {
            node_id: self.peers[p].config.node_id,
            primary_now: their_role == Role::Primary,
            bits: theirs.bits,
            bitmap_generation: theirs.bitmap,
            inconsistent: level(theirs.disk) == DiskLevel::Inconsistent,
            discard_my_data: peer_hello.discard_my_data,
            policies: peer_hello.policies,
        };
        let (node, number) = (peer.node_id, self.volumes[v].number);
        let losses = format!(
            "this node has {} KiB that the peer does not have, the peer has {} KiB that this node does not have",
            mine.bits * 4,
            theirs.bits * 4
        );
        if first {
            self.effect(Effect::Handler {
                name: "initial-split-brain",
                peer: Some(node),
                volume: Some(number),
            });
        }
        let decision = split_brain::resolve(&me, &peer, history);
        let by = decision.decided_by.word();
        let text = match decision.resolution {
            Resolution::IAmSource(extent) => {
                if first {
                    let text = format!(
                        "Split-Brain detected ({rule}), solved: this node's data survive; {losses}"
                    );
                    self.decision(Some(p), Some(v), by, text);
                }
                return Ok(Outcome::Source(extent));
            }
            Resolution::IAmTarget(extent) => {
                if first {
                    let text = format!(
                        "Split-Brain detected ({rule}), solved: this node's data are discarded; {losses}"
                    );
                    self.decision(Some(p), Some(v), by, text);
                }
                return Ok(Outcome::Target(extent));
            }
            Resolution::IMustDemote(_) => {
                self.effect(Effect::Handler {
                    name: "pri-lost-after-sb",
                    peer: Some(node),
                    volume: Some(number),
                });
                "the Primary loses and must become Secondary first"
            }
            Resolution::PeerMustDemote(_) => {
                "the peer loses, but is Primary and must become Secondary first"
            }
            Resolution::Unresolved { text } | Resolution::ConfigurationError { text } => text,
        };
        self.effect(Effect::Handler {
            name: "split-brain",
            peer: Some(node),
            volume: Some(number),
        });
        let remedy = "on the node whose changes shall be lost run 'disconnect', 'secondary' and 'connect --discard-my-data', \
                      on the other one 'connect'";
        let text = text
            .strip_prefix(split_brain::UNRESOLVED)
            .unwrap_or(text)
            .trim();
        let text = if text.is_empty() {
            String::new()
        } else {
            format!(" {text};")
        };
        Err((
            by,
            format!("{}{text} {losses}; {remedy}", split_brain::UNRESOLVED),
        ))
    }
}

/// The size that both disks can serve; an error if a device in use would shrink.
pub(super) fn agreed_size(mine: &VolumeHello, theirs: &VolumeHello) -> Result<u64, String> {
    let fits = mine.max_bytes.min(theirs.max_bytes);
    let agreed = match (mine.effective_bytes, theirs.effective_bytes) {
        (0, 0) => fits,
        (0, size) | (size, 0) => size,
        (one, other) => one.max(other),
    };
    if agreed > fits {
        let who = if theirs.max_bytes < agreed {
            "The peer's disk size is too small!"
        } else {
            "This node's disk size is too small!"
        };
        return Err(format!(
            "{who} The volume has {agreed} bytes, the disks offer {} here and {} there",
            mine.max_bytes, theirs.max_bytes
        ));
    }
    Ok(agreed)
}
