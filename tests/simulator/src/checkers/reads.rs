//! W5: a read returns nothing but a value that a completed or in-flight write put there, and none that is superseded.

use qrbd_engine::units::ByteRange;

use crate::oracle::{Moment, Standard};
use crate::stamps::{Stamps, belongs, sectors};
use crate::world::{OpenRequest, World};

impl World {
    /// Called when a read was answered with data.
    pub(crate) fn check_read(
        &mut self,
        id: u64,
        request: &OpenRequest,
        range: ByteRange,
        data: Option<&Stamps>,
        now: Moment,
    ) {
        self.checked("reads");
        let Some(data) = data else {
            return self.fail(
                "reads",
                format!("read {id} {range} was answered without data"),
            );
        };
        if data.0.len() != sectors(range).count() {
            return self.fail(
                "reads",
                format!(
                    "read {id} {range} was answered with {} sectors",
                    data.0.len()
                ),
            );
        }
        // What a peer's last words tell of was kept by nobody.
        let lost = self.is_lost_unflushed(request.node, request.volume);
        for (sector, &stamp) in sectors(range).zip(data.0.iter()) {
            let branch = &mut self.branches[request.branch];
            if belongs(stamp, sector) && branch.allows(sector, stamp, Standard::Live, request.began)
            {
                if !lost {
                    branch.seen(sector, stamp, request.began, now);
                }
                continue;
            }
            let allowed = branch.allowed(sector, Standard::Live, request.began);
            let allowed: Vec<String> = allowed.into_iter().map(|stamp| self.name(stamp)).collect();
            let text = format!(
                "read {id} on n{} v{} returned {} in sector {sector}, allowed: {}",
                request.node,
                request.volume,
                self.name(stamp),
                allowed.join(", ")
            );
            return self.fail("reads", text);
        }
    }
}
