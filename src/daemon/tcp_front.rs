//! NBD over TCP, for resources that ask for it with `options { nbd-listen ADDRESS; }`.
//!
//! One listener for each distinct address, which serves the resources that name it and no others. It is opened with the first of them
//! and closed with the last.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::info;

use crate::front;
use crate::resource::Shared;
use crate::volumes::Volumes;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

struct Listener {
    volumes: Volumes,
    /// Closes the listener when it is dropped.
    _open: oneshot::Sender<()>,
    /// Ends when every client is gone.
    served: JoinHandle<()>,
}

/// The listeners of this daemon.
#[derive(Default)]
pub(crate) struct TcpFronts {
    listeners: RefCell<BTreeMap<SocketAddr, Listener>>,
}

impl TcpFronts {
    /// Serves the resource at `address`, and nowhere else.
    ///
    /// # Errors
    /// A text that names the address, if it cannot be used.
    pub(crate) fn place(
        &self,
        shared: &Rc<Shared>,
        address: Option<SocketAddr>,
    ) -> Result<(), String> {
        let mut listeners = self.listeners.borrow_mut();
        let there = |listener: &Listener| listener.volumes.get(&shared.name).is_some();
        for (other, listener) in &*listeners {
            if there(listener) && Some(*other) != address {
                listener.volumes.remove(&shared.name);
            }
        }
        listeners.retain(|at, listener| Some(*at) == address || !listener.volumes.is_empty());
        let Some(address) = address else {
            return Ok(());
        };
        if let Some(listener) = listeners.get(&address) {
            listener.volumes.insert(shared);
            return Ok(());
        }
        let listener = open(address).map_err(|error| {
            format!("NBD address {address} (nbd-listen) cannot be used: {error}; when it is free, 'adjust' takes it")
        })?;
        info!("NBD clients are served at {address}");
        let volumes = Volumes::default();
        volumes.insert(shared);
        let (open, closed) = oneshot::channel::<()>();
        let served = tokio::task::spawn_local(front::serve_tcp(volumes.clone(), listener, async {
            // The sender is dropped with the listener.
            let _ = closed.await;
        }));
        listeners.insert(
            address,
            Listener {
                volumes,
                _open: open,
                served,
            },
        );
        Ok(())
    }

    /// Closes every listener. Returns when the clients have the answers to what they asked and are gone.
    pub(crate) async fn end(&self) {
        let listeners = std::mem::take(&mut *self.listeners.borrow_mut());
        // All are closed before any is waited for.
        let clients: Vec<_> = (listeners.into_values())
            .map(|listener| listener.served)
            .collect();
        for served in clients {
            let _ = served.await;
        }
    }

    /// The resource is not served any more.
    pub(crate) fn remove(&self, name: &str) {
        let mut listeners = self.listeners.borrow_mut();
        listeners
            .values()
            .for_each(|listener| listener.volumes.remove(name));
        listeners.retain(|_, listener| !listener.volumes.is_empty());
    }
}

fn open(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
