//! One-line answers of `role`, `cstate` and `dstate`, taken from the status report.

use qrbd_control::status::ResourceStatus;

/// Own role, or the role of `peer`; `None` if there is no such peer.
#[must_use]
pub fn role(resource: &ResourceStatus, peer: Option<&str>) -> Option<String> {
    let role = match peer {
        None => resource.role,
        Some(name) => {
            resource
                .connections
                .iter()
                .find(|connection| connection.name == name)?
                .peer_role
        }
    };
    Some(format!("{role}\n"))
}

/// One connection state per line, of all peers or of `peer`; `None` if there is no such peer.
#[must_use]
pub fn cstate(resource: &ResourceStatus, peer: Option<&str>) -> Option<String> {
    let mut lines = String::new();
    for connection in &resource.connections {
        if peer.is_none_or(|name| name == connection.name) {
            lines.push_str(connection.connection_state.as_str());
            lines.push('\n');
        }
    }
    (!lines.is_empty()).then_some(lines)
}

/// `Local/Peer[/Peer…]` per volume, of all volumes or of `volume`; `None` if there is no such volume.
#[must_use]
pub fn dstate(resource: &ResourceStatus, volume: Option<u16>) -> Option<String> {
    let mut lines = String::new();
    for device in &resource.devices {
        if volume.is_some_and(|wanted| wanted != device.volume) {
            continue;
        }
        lines.push_str(device.disk_state.as_str());
        for connection in &resource.connections {
            for peer_device in connection
                .peer_devices
                .iter()
                .filter(|entry| entry.volume == device.volume)
            {
                lines.push('/');
                lines.push_str(peer_device.peer_disk_state.as_str());
            }
        }
        lines.push('\n');
    }
    (!lines.is_empty()).then_some(lines)
}
