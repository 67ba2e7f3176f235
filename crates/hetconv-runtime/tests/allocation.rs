//! A session that was made allocates nothing.
#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hetconv_graph::{Weights, zoo};
use hetconv_runtime::{Options, Plan, Session, Team};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn running_allocates_nothing() {
    let team = Arc::new(Team::new(2));
    for name in ["small-cifar_p4", "resnet20_p4_se", "mobilenet-cifar", "small-cifar_gwc4_pwc", "small-cifar"] {
        for batch in [1, 40] {
            let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
            let weights = Weights::init(&graph, 1).unwrap();
            let plan = Arc::new(Plan::compile(&graph, &weights, &Options { batch, ..Options::default() }).unwrap());
            let mut session = Session::with_team(&plan, batch, &team).unwrap();
            let images = vec![0.5; batch * 3 * 32 * 32];
            session.run(&images).unwrap();
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            assert!(before > 0);
            for _ in 0..3 {
                session.run(&images).unwrap();
            }
            assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "{name}, batch {batch}");
        }
    }
}
