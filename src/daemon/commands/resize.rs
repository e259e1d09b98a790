//! `resize`: the engines of both nodes agree; here is told what they decided.
//!
//! A refusal carries the engine's reason, which names the node and what helps; success says which size the volume has.

use qrbd_control::{Refusal, Response, Target};
use qrbd_engine::api::Notice;
use qrbd_engine::units::VolumeNumber;
use tokio::sync::broadcast;

use super::{explained, resources, volumes};
use crate::daemon::Daemon;

/// `resize`. `bytes`: at most so large.
pub(super) async fn resize(
    daemon: &Daemon,
    target: &Target,
    bytes: Option<u64>,
    assume_clean: bool,
) -> Response {
    let meant = match resources(daemon, target) {
        Ok(meant) => meant,
        Err(refusal) => return Response::Refused(refusal),
    };
    let mut first: Option<Refusal> = None;
    let mut said = Vec::new();
    for shared in meant {
        let lock = daemon.lock(&shared.name);
        let _guard = lock.lock().await;
        let numbers = match volumes(&shared, target) {
            Ok(numbers) => numbers,
            Err(refusal) => {
                first.get_or_insert(refusal);
                continue;
            }
        };
        for volume in numbers {
            let notices = shared.listen();
            let command = qrbd_engine::Command::Resize {
                volume,
                bytes,
                assume_clean,
            };
            let result = shared.command(command).await;
            let reason = reason(volume, notices);
            match result {
                Ok(()) => {
                    said.extend(reason.map(|text| format!("{}/{volume}: {text}", shared.name)))
                }
                Err(found) => {
                    let mut refusal = explained(&shared, found);
                    if let Some(text) = reason {
                        refusal = refusal.with_detail(format!("{}/{volume}: {text}", shared.name));
                    }
                    first.get_or_insert(refusal);
                }
            }
        }
    }
    match first {
        Some(refusal) => Response::Refused(refusal),
        None => Response::Ok {
            text: said.join("\n"),
        },
    }
}

/// What the engine said of the resize that just ended: why not, or why nothing changed.
fn reason(volume: VolumeNumber, mut notices: broadcast::Receiver<Notice>) -> Option<String> {
    let mut found = None;
    while let Ok(notice) = notices.try_recv() {
        if let Notice::Decision {
            volume: Some(number),
            rule: "resize-refused" | "resize-unchanged",
            text,
            ..
        } = notice
            && number == volume
        {
            found = Some(text);
        }
    }
    found
}
