//! A session that was made allocates nothing.
#![allow(missing_docs)]

use std::alloc::System;
use std::sync::Arc;

use hetconv_graph::{Weights, zoo};
use hetconv_runtime::{Options, Plan, Session, Team};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn running_allocates_nothing() {
    let all = Region::new(ALLOCATOR);
    let team = Arc::new(Team::new(2));
    for name in ["small-cifar_p4", "resnet20_p4_se", "mobilenet-cifar", "small-cifar_gwc4_pwc", "small-cifar"] {
        for batch in [1, 40] {
            let graph = zoo::build(&name.parse().unwrap(), 10).unwrap();
            let weights = Weights::init(&graph, 1).unwrap();
            let plan = Arc::new(Plan::compile(&graph, &weights, &Options { batch, ..Options::default() }).unwrap());
            let mut session = Session::with_team(&plan, batch, &team).unwrap();
            let images = vec![0.5; batch * 3 * 32 * 32];
            session.run(&images).unwrap();
            assert!(all.change().allocations > 0, "allocations are counted");
            let running = Region::new(ALLOCATOR);
            for _ in 0..3 {
                session.run(&images).unwrap();
            }
            let change = running.change();
            assert_eq!((change.allocations, change.reallocations), (0, 0), "{name}, batch {batch}");
        }
    }
}
