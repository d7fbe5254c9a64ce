//! Callers, a worker that can die at any step, and crashes, in every order that comes up.

use proptest::prelude::*;

use super::{Demand, chunk};
use crate::quota::decision::{Enforcement, decide};

const RATE: i64 = 50;
const MOST_UNITS: i64 = 40;

#[derive(Clone, Debug)]
enum Step {
    Take(i64),
    /// The worker decides on an extension, its row reaches the disk, callers hear of it.
    Decide,
    Flush,
    Publish,
    WorkerDies,
    Crash,
    GiveBack,
    Limit(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..=MOST_UNITS).prop_map(Step::Take),
        2 => Just(Step::Decide),
        2 => Just(Step::Flush),
        2 => Just(Step::Publish),
        1 => Just(Step::WorkerDies),
        1 => Just(Step::Crash),
        1 => Just(Step::GiveBack),
        1 => (0..400i64).prop_map(Step::Limit),
    ];
    prop::collection::vec(step, 1..150)
}

#[derive(Default)]
struct World {
    /// In shared memory.
    used: i64,
    granted: i64,
    asked: i64,
    /// On disk.
    durable: i64,
    /// What the worker is about to grant, and whether that is on disk.
    extension: Option<(i64, bool)>,
    /// Acknowledged to callers, since ever.
    acknowledged: i64,
    stranded: i64,
    limit: i64,
    highest: i64,
}

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Take(units) if decide(Some(self.limit), Enforcement::Hard, self.used, units).allowed => {
                if self.used + units <= self.granted {
                    self.used += units;
                    self.acknowledged += units;
                    assert!(self.used <= self.limit);
                } else {
                    self.asked = self.asked.max(units);
                }
            }
            Step::Decide if self.extension.is_none() => {
                let demand = Demand { used: self.used, granted: self.granted, asked: self.asked, rate: RATE };
                let units = chunk(&demand, Some(self.limit));
                self.extension = (units > 0).then_some((units, false));
            }
            Step::Flush => {
                if let Some((units, false)) = self.extension {
                    self.durable += units;
                    self.extension = Some((units, true));
                }
            }
            Step::Publish => {
                if let Some((units, true)) = self.extension {
                    self.granted += units;
                    (self.asked, self.extension) = (0, None);
                }
            }
            // An error ends the worker before its transaction has committed, if at all.
            Step::WorkerDies => {
                if let Some((_, false)) = self.extension {
                    self.extension = None;
                }
            }
            Step::Crash => {
                if let Some((units, true)) = self.extension {
                    self.stranded += units;
                }
                self.extension = None;
                let lost = self.granted - self.used;
                // A second at that rate, or what somebody waits for.
                assert!(lost <= RATE.max(MOST_UNITS));
                self.stranded += lost;
                (self.used, self.granted, self.asked) = (self.durable, self.durable, 0);
            }
            Step::GiveBack if self.extension.is_none() => {
                let unused = self.granted - self.used;
                self.granted = self.used;
                self.durable -= unused;
            }
            Step::Limit(limit) => {
                self.limit = limit;
                self.highest = self.highest.max(limit);
            }
            _ => {}
        }
    }

    fn check(&self) {
        assert!(self.used <= self.granted && self.granted <= self.durable);
        assert!(self.durable >= self.acknowledged);
        assert!(self.durable <= self.highest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_on_disk_is_never_less_than_what_was_handed_out(steps in steps(), limit in 0..400i64) {
        let mut world = World { limit, highest: limit, ..World::default() };
        for step in &steps {
            world.step(step);
            world.check();
        }
        let durable_and_unpublished = world.extension.map_or(0, |(units, flushed)| if flushed { units } else { 0 });
        prop_assert_eq!(world.durable, world.acknowledged + world.stranded + (world.granted - world.used) + durable_and_unpublished);
    }
}
