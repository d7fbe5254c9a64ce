//! Many transactions on one key, step by step in every order that comes up: the functions that the server runs, driven by
//! a model that knows no interval.

use proptest::prelude::*;

use super::interval::{Flight, Interval, Shift, admit, returnable};
use crate::quota::decision::{Enforcement, Limit, Reason};

const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Take(usize, i64),
    Give(usize, i64),
    Savepoint(usize),
    RollbackTo(usize),
    Release(usize),
    Commit(usize),
    Abort(usize),
    Limit(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0..CLIENTS;
    let units = 1..6i64;
    let step = prop_oneof![
        4 => (client.clone(), units.clone()).prop_map(|(client, units)| Step::Take(client, units)),
        3 => (client.clone(), units).prop_map(|(client, units)| Step::Give(client, units)),
        2 => client.clone().prop_map(Step::Savepoint),
        1 => client.clone().prop_map(Step::RollbackTo),
        1 => client.clone().prop_map(Step::Release),
        2 => client.clone().prop_map(Step::Commit),
        1 => client.prop_map(Step::Abort),
        1 => (0..30i64).prop_map(Step::Limit),
    ];
    prop::collection::vec(step, 1..120)
}

/// A transaction as its user sees it: the units of each level, oldest first.
#[derive(Clone, Default)]
struct Client {
    flight: Flight,
    levels: Vec<i64>,
}

impl Client {
    fn level(&self) -> i32 {
        self.levels.len().max(1) as i32
    }

    fn add(&mut self, units: i64) {
        let level = self.level();
        self.flight.push(level, units);
        if self.levels.is_empty() {
            self.levels.push(0);
        }
        *self.levels.last_mut().unwrap() += units;
    }

    fn net(&self) -> i64 {
        self.levels.iter().sum()
    }

    /// The lowest and the highest that a commit after any rollbacks can add.
    fn reach(&self) -> (i64, i64) {
        let mut sum = 0;
        let mut reach = (0, 0);
        for units in &self.levels {
            sum += units;
            reach = (reach.0.min(sum), reach.1.max(sum));
        }
        reach
    }
}

struct World {
    interval: Interval,
    committed: i64,
    clients: [Client; CLIENTS],
    limit: Limit,
}

impl World {
    fn apply(&mut self, shift: Shift) {
        self.interval.inf += shift.inf;
        self.interval.sup += shift.sup;
    }

    fn take(&mut self, client: usize, units: i64) {
        let flight = &self.clients[client].flight;
        let (verdict, used) = admit(self.interval, flight, self.limit, Enforcement::Hard, units);
        // The most that can be used once this is granted, whatever becomes of the others.
        let others: i64 = (0..CLIENTS).filter(|at| *at != client).map(|at| self.clients[at].reach().1).sum();
        let own = self.clients[client].net();
        let limit = self.limit.unwrap();
        if verdict.allowed {
            assert!(self.committed + others + own + units <= limit);
            let shift = flight.shift(units);
            self.apply(shift);
            self.clients[client].add(units);
        } else {
            assert!(used + units > limit);
            // A denial that blames the limit holds whatever becomes of the others.
            if verdict.reason == Reason::Limit {
                let others: i64 =
                    (0..CLIENTS).filter(|at| *at != client).map(|at| self.clients[at].reach().0).sum();
                assert!(self.committed + others + own + units > limit);
            }
        }
    }

    fn give(&mut self, client: usize, units: i64) {
        let flight = &self.clients[client].flight;
        if returnable(self.interval, flight).inf >= units {
            let shift = flight.shift(-units);
            self.apply(shift);
            self.clients[client].add(-units);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Take(client, units) => self.take(client, units),
            Step::Give(client, units) => self.give(client, units),
            Step::Savepoint(client) => {
                let levels = &mut self.clients[client].levels;
                if levels.is_empty() {
                    levels.push(0);
                }
                levels.push(0);
            }
            Step::RollbackTo(client) => {
                if self.clients[client].levels.len() > 1 {
                    let level = self.clients[client].level();
                    self.clients[client].levels.pop();
                    let shift = self.clients[client].flight.abort(level);
                    self.apply(shift);
                }
            }
            Step::Release(client) => {
                if self.clients[client].levels.len() > 1 {
                    let level = self.clients[client].level();
                    let units = self.clients[client].levels.pop().unwrap();
                    *self.clients[client].levels.last_mut().unwrap() += units;
                    self.clients[client].flight.merge(level);
                }
            }
            Step::Commit(client) => {
                self.committed += self.clients[client].net();
                let shift = self.clients[client].flight.commit();
                self.apply(shift);
                self.clients[client] = Client::default();
            }
            Step::Abort(client) => {
                let shift = self.clients[client].flight.abort(0);
                self.apply(shift);
                self.clients[client] = Client::default();
            }
            Step::Limit(limit) => self.limit = Some(limit),
        }
    }

    fn check(&self) {
        assert!(self.interval.inf <= self.committed && self.committed <= self.interval.sup);
        assert!(self.committed >= 0);
        for client in &self.clients {
            assert_eq!(client.flight.net(), client.net());
            let (low, high) = client.reach();
            let share = client.flight.share();
            // Wide enough for whatever the client may return to.
            assert!(share.inf <= low && share.sup >= high);
        }
        let shares = self.clients.iter().map(|client| client.flight.share());
        let (inf, sup) = shares.fold((0, 0), |(inf, sup), share| (inf + share.inf, sup + share.sup));
        assert_eq!((self.interval.inf, self.interval.sup), (self.committed + inf, self.committed + sup));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_order_of_steps_overshoots_or_loses_a_unit(steps in steps(), limit in 0..30i64) {
        let mut world = World {
            interval: Interval { inf: 0, sup: 0 },
            committed: 0,
            clients: Default::default(),
            limit: Some(limit),
        };
        for step in &steps {
            world.step(step);
            world.check();
        }
        for client in 0..CLIENTS {
            world.step(&Step::Abort(client));
        }
        prop_assert_eq!(world.interval, Interval { inf: world.committed, sup: world.committed });
    }
}
