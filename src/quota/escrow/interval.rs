//! What one transaction has in flight on a key, and what that means for the interval of the key. Pure.
//!
//! The units of a key lie between `inf` (all that is in flight is undone) and `sup` (all comes to pass). A transaction's
//! own units are a number that moves: up when it takes, down when it gives back. Whatever it may still return to, when a
//! savepoint is rolled back, must stay reserved: of all values since the oldest that a rollback can restore, the highest
//! counts in `sup`, the lowest in `inf`. So what a transaction takes and gives back cancels out without asking anybody,
//! and every rollback only narrows the interval.

use super::super::decision::{Enforcement, Limit, Reason, Verdict, decide};

/// The interval of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Units if all that is in flight is undone.
    pub inf: i64,
    /// Units if all of it comes to pass.
    pub sup: i64,
}

/// The units in flight since a savepoint began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    level: i32,
    net: i64,
    high: i64,
    low: i64,
}

/// What a transaction has in flight on one key.
#[derive(Clone, Debug, Default)]
pub struct Flight {
    frames: Vec<Frame>,
}

/// How far the ends of an interval move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Of `inf`.
    pub inf: i64,
    /// Of `sup`.
    pub sup: i64,
}

impl Flight {
    /// Nothing.
    pub const fn new() -> Flight {
        Flight { frames: Vec::new() }
    }

    fn top(&self) -> Frame {
        self.frames.last().copied().unwrap_or(Frame { level: 0, net: 0, high: 0, low: 0 })
    }

    /// Whether nothing was ever moved, or all of it was rolled back.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The units that a commit now would add.
    pub fn net(&self) -> i64 {
        self.top().net
    }

    /// The part of `inf` and `sup` that is this transaction's.
    pub fn share(&self) -> Shift {
        Shift { inf: self.top().low, sup: self.top().high }
    }

    /// What moving by `units` does to the interval; nothing is moved yet.
    pub fn shift(&self, units: i64) -> Shift {
        let top = self.top();
        let net = top.net.saturating_add(units);
        Shift { inf: net.min(top.low) - top.low, sup: net.max(top.high) - top.high }
    }

    /// Moves by `units`, at this level of nested transactions.
    pub fn push(&mut self, level: i32, units: i64) {
        let top = self.top();
        let net = top.net.saturating_add(units);
        let moved = Frame { level, net, high: top.high.max(net), low: top.low.min(net) };
        match self.frames.last_mut() {
            Some(last) if last.level == level => *last = moved,
            _ => self.frames.push(moved),
        }
    }

    /// The transaction at that level, and those within it, are undone.
    pub fn abort(&mut self, level: i32) -> Shift {
        let before = self.share();
        while self.frames.last().is_some_and(|frame| frame.level >= level) {
            self.frames.pop();
        }
        let after = self.share();
        Shift { inf: after.inf - before.inf, sup: after.sup - before.sup }
    }

    /// The transaction at that level has become part of the one around it.
    pub fn merge(&mut self, level: i32) {
        let Some(last) = self.frames.last_mut() else { return };
        if last.level < level {
            return;
        }
        last.level = level - 1;
        let moved = *last;
        // The values that only the end of the inner transaction kept apart: the outer one undoes both.
        if let [.., outer, _] = &mut self.frames[..]
            && outer.level == moved.level
        {
            *outer = moved;
            self.frames.pop();
        }
    }

    /// All of it comes to pass.
    pub fn commit(&mut self) -> Shift {
        let top = self.top();
        self.frames.clear();
        Shift { inf: top.net - top.low, sup: top.net - top.high }
    }
}

/// Whether the transaction may take `units` more: the verdict, and the units that count for it before they are taken.
///
/// Others count as if all that they have in flight came to pass. A denial that is due to that alone says so
/// ([`Reason::InFlight`]).
pub fn admit(
    interval: Interval,
    flight: &Flight,
    limit: Limit,
    enforcement: Enforcement,
    units: i64,
) -> (Verdict, i64) {
    let share = flight.share();
    let used = (interval.sup - share.sup).saturating_add(flight.net()).max(0);
    let mut verdict = decide(limit, enforcement, used, units);
    if !verdict.allowed && verdict.reason == Reason::Limit {
        let least = (interval.inf - share.inf).saturating_add(flight.net()).max(0);
        if decide(limit, enforcement, least, units).allowed {
            verdict.reason = Reason::InFlight;
        }
    }
    (verdict, used)
}

/// What there is to give back, if all that others have in flight is undone, and if it comes to pass.
pub fn returnable(interval: Interval, flight: &Flight) -> Interval {
    let share = flight.share();
    Interval {
        inf: (interval.inf - share.inf).saturating_add(flight.net()),
        sup: (interval.sup - share.sup).saturating_add(flight.net()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_given_back_cancels_out() {
        let mut flight = Flight::new();
        assert_eq!(flight.shift(5), Shift { inf: 0, sup: 5 });
        flight.push(1, 5);
        assert_eq!(flight.shift(-5), Shift::default());
        flight.push(1, -5);
        assert_eq!(flight.net(), 0);
        // The five stay reserved until the end: a savepoint between the two might have been rolled back to.
        assert_eq!(flight.share(), Shift { inf: 0, sup: 5 });
        assert_eq!(flight.commit(), Shift { inf: 0, sup: -5 });
    }

    #[test]
    fn a_unit_given_back_can_be_taken_again_at_the_limit() {
        let mut flight = Flight::new();
        flight.push(1, -1);
        let full = Interval { inf: 9, sup: 10 };
        let (verdict, used) = admit(full, &flight, Some(10), Enforcement::Hard, 1);
        assert!(verdict.allowed);
        assert_eq!(used, 9);
        assert_eq!(flight.shift(1), Shift::default());
        assert!(!admit(full, &flight, Some(10), Enforcement::Hard, 2).0.allowed);
    }

    #[test]
    fn a_rolled_back_savepoint_restores_what_was_before_it() {
        let mut flight = Flight::new();
        flight.push(1, 3);
        flight.push(2, -3);
        flight.push(3, 7);
        assert_eq!(flight.abort(2), Shift { inf: 0, sup: -4 });
        assert_eq!((flight.net(), flight.share()), (3, Shift { inf: 0, sup: 3 }));
        assert_eq!(flight.commit(), Shift { inf: 3, sup: 0 });
    }

    #[test]
    fn a_released_savepoint_is_undone_with_the_one_around_it() {
        let mut flight = Flight::new();
        flight.push(2, 2);
        flight.push(3, 4);
        flight.merge(3);
        assert_eq!(flight.abort(2), Shift { inf: 0, sup: -6 });
        assert!(flight.is_empty());
    }

    #[test]
    fn a_denial_that_others_may_still_lift_says_so() {
        let verdict =
            |inf, sup| admit(Interval { inf, sup }, &Flight::new(), Some(10), Enforcement::Hard, 1).0.reason;
        assert_eq!(verdict(9, 10), Reason::InFlight);
        assert_eq!(verdict(10, 10), Reason::Limit);
        assert_eq!(verdict(0, 9), Reason::Ok);
    }
}
