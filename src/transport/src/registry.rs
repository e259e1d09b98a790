//! Which connection is the session with a peer. Decisions only; `endpoint` carries them out.
//!
//! Both nodes may dial, so two connections of the same two processes can come up at once. The node with the lower id is
//! the arbiter of the pair: a connection becomes the session when the arbiter says so (message Start), and Start carries
//! a number that grows with each decision of that process. The other node follows, newest decision first. So both hold
//! the same connection, whatever order the packets of different connections arrive in, and no session has to be taken
//! back because its twin was a moment later.
//!
//! A dialer dials only while it has no session. A connection that the peer dials although the arbiter holds a session of
//! the same process therefore is either the loser of a race (it was dialed before the peer learned of that session) or
//! the peer's answer to a loss that the arbiter has not noticed. The peer's hello tells them apart: it names the last
//! session that the peer learned of.

use crate::event::LossReason;

/// What there is to know of the session that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Holding {
    /// Process at the other end.
    pub(crate) instance: u64,
    /// Number of the decision that made it the session.
    pub(crate) decision: u64,
    pub(crate) dialed_by_us: bool,
}

/// A connection whose proof was verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    pub(crate) instance: u64,
    /// Last session with us that the peer had learned of.
    pub(crate) last_decision: u64,
    pub(crate) dialed_by_us: bool,
}

/// What becomes of a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It is the session.
    Take,
    /// It is the session; the one that was up is over for this reason.
    Replace(LossReason),
    /// It is closed.
    Refuse,
}

/// The arbiter's decision.
pub(crate) fn decide(holding: Option<Holding>, candidate: Candidate) -> Verdict {
    let Some(holding) = holding else {
        return Verdict::Take;
    };
    if holding.instance != candidate.instance {
        return Verdict::Replace(LossReason::PeerRestarted);
    }
    // Our own dial lost a race: the session that is up came first.
    if candidate.dialed_by_us {
        return Verdict::Refuse;
    }
    // The peer dials one connection at a time, and none while it knows of a session.
    if !holding.dialed_by_us || candidate.last_decision == holding.decision {
        return Verdict::Replace(LossReason::Replaced);
    }
    Verdict::Refuse
}

/// What the other node makes of the arbiter's decision number `decision`. `last` is the newest decision it has followed:
/// process and number.
pub(crate) fn follow(
    holding: Option<Holding>,
    instance: u64,
    decision: u64,
    last: Option<(u64, u64)>,
) -> Verdict {
    if last.is_some_and(|(process, number)| process == instance && decision <= number) {
        return Verdict::Refuse;
    }
    match holding {
        None => Verdict::Take,
        Some(holding) if holding.instance != instance => {
            Verdict::Replace(LossReason::PeerRestarted)
        }
        Some(_) => Verdict::Replace(LossReason::Replaced),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: bool = true;
    const THEM: bool = false;

    fn holding(dialed_by_us: bool) -> Option<Holding> {
        Some(Holding {
            instance: 7,
            decision: 40,
            dialed_by_us,
        })
    }

    fn candidate(instance: u64, last_decision: u64, dialed_by_us: bool) -> Candidate {
        Candidate {
            instance,
            last_decision,
            dialed_by_us,
        }
    }

    #[test]
    fn the_arbiter_takes_the_first_connection_and_any_of_a_new_process() {
        for dialer in [US, THEM] {
            assert_eq!(decide(None, candidate(7, 0, dialer)), Verdict::Take);
            for holder in [US, THEM] {
                let verdict = decide(holding(holder), candidate(8, 0, dialer));
                assert_eq!(verdict, Verdict::Replace(LossReason::PeerRestarted));
            }
        }
    }

    #[test]
    fn the_loser_of_a_race_is_refused_and_a_lost_session_is_replaced() {
        assert_eq!(
            decide(holding(US), candidate(7, 39, THEM)),
            Verdict::Refuse,
            "dialed before it knew"
        );
        assert_eq!(
            decide(holding(THEM), candidate(7, 0, US)),
            Verdict::Refuse,
            "our own late dial"
        );
        let replaced = Verdict::Replace(LossReason::Replaced);
        assert_eq!(
            decide(holding(US), candidate(7, 40, THEM)),
            replaced,
            "it knew, and lost it"
        );
        assert_eq!(
            decide(holding(THEM), candidate(7, 39, THEM)),
            replaced,
            "it dials one at a time"
        );
    }

    #[test]
    fn the_other_node_follows_the_newest_decision_only() {
        assert_eq!(follow(None, 7, 41, None), Verdict::Take);
        assert_eq!(follow(None, 7, 41, Some((7, 40))), Verdict::Take);
        assert_eq!(follow(None, 7, 40, Some((7, 40))), Verdict::Refuse, "late");
        assert_eq!(follow(None, 7, 39, Some((7, 40))), Verdict::Refuse, "late");
        assert_eq!(
            follow(None, 8, 1, Some((7, 40))),
            Verdict::Take,
            "another process counts anew"
        );
        assert_eq!(
            follow(holding(US), 7, 41, Some((7, 40))),
            Verdict::Replace(LossReason::Replaced)
        );
        assert_eq!(
            follow(holding(US), 8, 1, Some((7, 40))),
            Verdict::Replace(LossReason::PeerRestarted)
        );
    }
}
