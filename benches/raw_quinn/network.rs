//! Endpoints with the settings of `qrbd-transport` for local networks.
//!
//! Its settings are private, since a user of that crate never sees QUIC. They are repeated here as constants; the numbers
//! come from its `Tuning::lan`, and a comparison against other numbers would compare nothing.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};
use qrbd_transport::{Congestion, Tuning, limits};
use quinn::congestion::{Controller, ControllerFactory};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig, UdpPoller,
};
use quinn_proto::RttEstimator;

use crate::tls;

const LANES: u64 = 4;

/// An endpoint on a port of its own that can dial and accept. Must be called inside the runtime.
pub fn endpoint(packet_bytes: u16) -> Result<quinn::Endpoint> {
    let tuning = Tuning::lan();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let buffer = tuning.socket_buffer_bytes;
    let _ = setsockopt(&udp, sockopt::RcvBufForce, &buffer)
        .or_else(|_| setsockopt(&udp, sockopt::RcvBuf, &buffer));
    let _ = setsockopt(&udp, sockopt::SndBufForce, &buffer)
        .or_else(|_| setsockopt(&udp, sockopt::SndBuf, &buffer));
    let inner = TokioRuntime.wrap_udp_socket(udp)?;
    let segments = (limits::MAX_SEGMENT_BATCH_BYTES / usize::from(packet_bytes)).max(1);
    let socket = Arc::new(CappedBatches { inner, segments });

    let transport = Arc::new(transport(&tuning, packet_bytes));
    let (client, server) = tls::configurations()?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport.clone());
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    let mut quic = quinn::EndpointConfig::default();
    quic.max_udp_payload_size(packet_bytes)
        .context("the packet size")?;
    let mut endpoint = quinn::Endpoint::new_with_abstract_socket(
        quic,
        Some(server),
        socket,
        Arc::new(TokioRuntime),
    )?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn transport(tuning: &Tuning, packet_bytes: u16) -> TransportConfig {
    let Congestion::Adaptive {
        local_window_bytes: window_bytes,
        ..
    } = tuning.congestion
    else {
        panic!("settings for local networks have a steady window");
    };
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(packet_bytes);
    let connection_window = LANES * u64::from(tuning.stream_window_bytes);
    let mut transport = TransportConfig::default();
    transport
        .receive_window(quinn::VarInt::from_u64(connection_window).expect("32 MiB fit"))
        .stream_receive_window(tuning.stream_window_bytes.into())
        .send_window(connection_window)
        .send_fairness(false)
        .mtu_discovery_config(Some(mtu_discovery))
        .initial_rtt(Duration::from_millis(50))
        .datagram_receive_buffer_size(None)
        .allow_spin(false)
        .congestion_controller_factory(Arc::new(SteadyFactory { window_bytes }));
    transport
}

/// A window that no loss changes: loopback has no congestion, only receive buffers that run over.
struct SteadyFactory {
    window_bytes: u64,
}

impl ControllerFactory for SteadyFactory {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Steady {
            window_bytes: self.window_bytes,
        })
    }
}

#[derive(Clone)]
struct Steady {
    window_bytes: u64,
}

impl Controller for Steady {
    fn on_ack(&mut self, _: Instant, _: Instant, _: u64, _: bool, _: &RttEstimator) {}
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}
    fn on_mtu_update(&mut self, _: u16) {}
    fn window(&self) -> u64 {
        self.window_bytes
    }
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }
    fn initial_window(&self) -> u64 {
        self.window_bytes
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A socket whose batches stay below what one `sendmsg` takes; larger ones would be lost silently.
struct CappedBatches {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
}

impl AsyncUdpSocket for CappedBatches {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }
    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments)
    }
    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for CappedBatches {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CappedBatches")
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}
