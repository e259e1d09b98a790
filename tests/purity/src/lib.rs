//! A freestanding library (no standard library, own panic handler, own allocator) that holds the whole engine.
//!
//! The compiler is the check: if the engine or one of its dependencies linked the standard library, that library's panic
//! handler would be defined twice, and this crate would not build (error E0152). What builds here can open no file and no
//! socket, start no thread, read no clock: none of that exists without an operating system. `scripts/check-purity` builds it
//! and looks at the dependency tree besides.
//!
//! Nothing of this is ever run: the allocator has no memory to give.
#![no_std]

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

use qrbd_engine::config::{PeerConfig, VolumeConfig};
use qrbd_engine::units::{NodeId, Time, VolumeNumber};
use qrbd_engine::{Engine, EngineConfig, Event, Payload};

/// An allocator without memory: enough to link.
struct NoMemory;

// SAFETY: a null pointer is the permitted answer to every allocation, and so there is never anything to free.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static MEMORY: NoMemory = NoMemory;

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[derive(Clone, Debug)]
struct Bytes(&'static [u8]);

impl Payload for Bytes {
    fn length(&self) -> usize {
        self.0.len()
    }
    fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }
}

/// Makes an engine and takes it one step: with this every event handler and every effect is compiled in.
///
/// Exported under its plain name, so that nothing is left out as unused.
#[unsafe(no_mangle)]
pub extern "C" fn qrbd_purity_step(now: u64) -> usize {
    let config = EngineConfig {
        node_id: NodeId(0),
        seed: [1, 2],
        boot: 3,
        volumes: Vec::from([VolumeConfig::new(VolumeNumber(0))]),
        peers: Vec::from([PeerConfig::new(NodeId(1))]),
    };
    let mut engine = Engine::<Bytes>::new(config, Time(now));
    engine.handle(Time(now), Event::Tick);
    let mut effects = 0;
    while engine.poll().is_some() {
        effects += 1;
    }
    effects
}
