//! Callers, a worker that can die at any step, and crashes, in every order that comes up.

use proptest::prelude::*;

use super::{Demand, chunk};
use crate::quota::decision::{Enforcement, decide};

const RATE: i64 = 50;
const MOST_UNITS: i64 = 40;

#[derive(Clone, Debug)]
enum Step {
    Take(i64),
    /// The worker decides on an extension, or to give back what is unused; its row reaches the disk; callers hear of it.
    Decide,
    GiveBack,
    Flush,
    Publish,
    WorkerDies,
    Crash,
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
        2 => Just(Step::GiveBack),
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
    /// What the worker is about to grant, or has taken away and is about to give back (negative), and whether that is on disk.
    change: Option<(i64, bool)>,
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
            Step::Decide if self.change.is_none() => {
                let demand = Demand { used: self.used, granted: self.granted, asked: self.asked, rate: RATE };
                let units = chunk(&demand, Some(self.limit));
                self.change = (units > 0).then_some((units, false));
            }
            // Nobody takes of it from here on.
            Step::GiveBack if self.change.is_none() && self.granted > self.used => {
                self.change = Some((self.used - self.granted, false));
                self.granted = self.used;
            }
            Step::Flush => {
                if let Some((units, false)) = self.change {
                    self.durable += units;
                    self.change = Some((units, true));
                }
            }
            Step::Publish => {
                if let Some((units, true)) = self.change {
                    self.granted += units.max(0);
                    (self.asked, self.change) = (0, None);
                }
            }
            // An error ends the worker before its transaction has committed, if at all: what it has taken away is still
            // accounted for.
            Step::WorkerDies => {
                if let Some((units, false)) = self.change {
                    self.granted -= units.min(0);
                    self.change = None;
                }
            }
            Step::Crash => {
                let lost = match self.change.take() {
                    Some((units, true)) if units > 0 => {
                        self.stranded += units;
                        0
                    }
                    Some((units, false)) => -units.min(0),
                    _ => 0,
                } + self.granted
                    - self.used;
                // A second at that rate, or what somebody waits for.
                assert!(lost <= RATE.max(MOST_UNITS));
                self.stranded += lost;
                (self.used, self.granted, self.asked) = (self.durable, self.durable, 0);
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
        // On disk and not at hand: granted and not published, or taken away and not given back.
        let under_way = world.change.map_or(0, |(units, flushed)| if flushed { units.max(0) } else { -units.min(0) });
        let at_hand = world.granted - world.used;
        prop_assert_eq!(world.durable, world.acknowledged + world.stranded + at_hand + under_way);
    }
}
