//! What an installation may tune, and how it becomes QUIC's settings.
//!
//! Lanes must not block one another, which ties the windows together: the connection's receive and send windows are four
//! stream windows, so that three lanes that stand still leave the fourth its full window.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::AdaptiveFactory;
use crate::lane::Lane;
use crate::limits::UNPROVEN_RECEIVE_WINDOW_BYTES;

/// How much may be in flight, and what a lost packet means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Congestion {
    /// What the link carries (its rate × its delay, both measured) and a short standing queue; random losses do not count. For
    /// dedicated links of any length.
    Adaptive {
        /// Bytes in flight at the start on a local link, and most bytes of the standing queue.
        local_window_bytes: u64,
        /// Most bytes in flight.
        most_window_bytes: u64,
    },
    /// Cubic (RFC 9438); for clean wide-area paths.
    Cubic {
        /// Bytes in flight at the start.
        initial_window_bytes: u64,
    },
    /// BBR; for wide-area paths that lose packets at random. Marked experimental by the QUIC library.
    Bbr {
        /// Bytes in flight at the start.
        initial_window_bytes: u64,
    },
}

/// Bytes that each lane may have received and delivered without the owner having released them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneBudgets {
    /// Of [`Lane::Data`].
    pub data: u32,
    /// Of [`Lane::Acks`].
    pub acks: u32,
    /// Of [`Lane::Control`].
    pub control: u32,
    /// Of [`Lane::Resync`].
    pub resync: u32,
}

impl LaneBudgets {
    pub(crate) fn of(&self, lane: Lane) -> u32 {
        match lane {
            Lane::Data => self.data,
            Lane::Acks => self.acks,
            Lane::Control => self.control,
            Lane::Resync => self.resync,
        }
    }
}

/// Settings of an endpoint. Start from [`Tuning::lan`].
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes per lane that may be under way or unread; at least bandwidth × round trip. Clamped to 64 KiB … 1 GiB.
    pub stream_window_bytes: u32,
    /// Congestion control.
    pub congestion: Congestion,
    /// Largest UDP payload to try. `None`: what the interface of the local address carries, at most
    /// [`MAX_UDP_PAYLOAD_BYTES`](crate::limits::MAX_UDP_PAYLOAD_BYTES). The path's real size is found by probing.
    pub max_udp_payload_bytes: Option<u16>,
    /// Receive and send buffer of the socket. Beyond `net.core.rmem_max` and `wmem_max` only with `CAP_NET_ADMIN`.
    pub socket_buffer_bytes: usize,
    /// What the owner may hold of received frames.
    pub budgets: LaneBudgets,
    /// Bytes that may be queued for sending, all lanes together, before [`Session::send`](crate::Session::send) refuses.
    pub max_queued_bytes: usize,
    /// Silence after which a session is given up. A backstop: owners detect a dead peer sooner, by pings of their own.
    pub idle_timeout: Duration,
    /// A packet is sent after this much silence.
    pub keep_alive_interval: Duration,
    /// Round trip assumed until one was measured.
    pub initial_round_trip: Duration,
    /// Packets that a node may receive before it acknowledges them at once. QUIC's two would cost a packet, with its system
    /// calls and wake-ups on both sides, per small write: acknowledgements usually travel with the answer instead.
    pub packets_per_acknowledgement: u32,
    /// How long an acknowledgement may wait for company.
    pub acknowledgement_delay: Duration,
}

impl Tuning {
    /// For dedicated links, local or long: up to about 16 MiB × 1/round trip per lane, 2.5 Gbit/s over 50 ms.
    pub fn lan() -> Self {
        Self {
            stream_window_bytes: 16 << 20,
            congestion: Congestion::Adaptive {
                local_window_bytes: 2 << 20,
                most_window_bytes: 64 << 20,
            },
            max_udp_payload_bytes: None,
            socket_buffer_bytes: 8 << 20,
            budgets: LaneBudgets {
                data: 24 << 20,
                acks: 1 << 20,
                control: 2 << 20,
                resync: 8 << 20,
            },
            max_queued_bytes: 256 << 20,
            idle_timeout: Duration::from_secs(10),
            // Three chances within the idle timeout; each costs a packet and a wake-up on both nodes for every idle resource.
            keep_alive_interval: Duration::from_secs(3),
            initial_round_trip: Duration::from_millis(50),
            packets_per_acknowledgement: 16,
            acknowledgement_delay: Duration::from_millis(5),
        }
    }

    fn stream_window(&self) -> u32 {
        self.stream_window_bytes.clamp(64 << 10, 1 << 30)
    }

    /// Window of the whole connection once the peer has proved itself.
    pub(crate) fn connection_window(&self) -> VarInt {
        VarInt::from_u64(Lane::ALL.len() as u64 * u64::from(self.stream_window()))
            .expect("4 GiB fit")
    }

    /// QUIC's settings with `max_udp_payload` as the largest packet to try.
    pub(crate) fn transport(&self, max_udp_payload: u16) -> TransportConfig {
        let mut mtu_discovery = MtuDiscoveryConfig::default();
        mtu_discovery.upper_bound(max_udp_payload);
        let idle_timeout =
            IdleTimeout::try_from(self.idle_timeout).expect("the idle timeout is below 2^62 ms");
        let mut acknowledgements = AckFrequencyConfig::default();
        acknowledgements
            .ack_eliciting_threshold(self.packets_per_acknowledgement.into())
            .max_ack_delay(Some(self.acknowledgement_delay));
        let mut transport = TransportConfig::default();
        transport
            // One bidirectional stream carries the proof. Lanes are allowed when it is done.
            .max_concurrent_bidi_streams(1u32.into())
            .max_concurrent_uni_streams(0u32.into())
            .receive_window(UNPROVEN_RECEIVE_WINDOW_BYTES.into())
            .stream_receive_window(self.stream_window().into())
            .send_window(self.connection_window().into_inner())
            // Without it a stream that was begun is written until nothing of it is left, whatever of a higher priority comes meanwhile:
            // a ping would wait behind megabytes of resync data.
            .send_fairness(true)
            .mtu_discovery_config(Some(mtu_discovery))
            .max_idle_timeout(Some(idle_timeout))
            .keep_alive_interval(Some(self.keep_alive_interval))
            .initial_rtt(self.initial_round_trip)
            .ack_frequency_config(Some(acknowledgements))
            .datagram_receive_buffer_size(None)
            .allow_spin(false)
            .congestion_controller_factory(self.controller());
        transport
    }

    fn controller(&self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self.congestion {
            Congestion::Adaptive {
                local_window_bytes,
                most_window_bytes,
            } => Arc::new(AdaptiveFactory {
                local_window_bytes,
                most_window_bytes,
            }),
            Congestion::Cubic {
                initial_window_bytes,
            } => {
                let mut cubic = CubicConfig::default();
                cubic.initial_window(initial_window_bytes);
                Arc::new(cubic)
            }
            Congestion::Bbr {
                initial_window_bytes,
            } => {
                let mut bbr = BbrConfig::default();
                bbr.initial_window(initial_window_bytes);
                Arc::new(bbr)
            }
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self::lan()
    }
}
