//! Limit, use and amount in; verdict out. The one place that decides whether units are granted.
//!
//! Pure, and the same for all three modes: a mode finds out what `used` is and makes the verdict
//! stick, it never decides by itself.

/// How many units a tenant may use in one period (a counter) or at one time (a gauge).
///
/// `None` is unlimited, stored as NULL; `Some(0)` is none at all (docs/registry.md).
/// Never negative.
pub type Limit = Option<i64>;

/// What happens above the limit (docs/quotas.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// Units above the limit are denied.
    Hard,
    /// Units above the limit are counted and marked as overage, never denied.
    Soft,
    /// The verdict is formed and reported as under `Hard`, but nothing is denied: to try a limit
    /// out before it is enforced.
    Shadow,
}

impl Enforcement {
    /// All ways, in the order of the documents.
    pub const ALL: [Enforcement; 3] = [Enforcement::Hard, Enforcement::Soft, Enforcement::Shadow];

    /// The text stored in the tables and shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Enforcement::Hard => "hard",
            Enforcement::Soft => "soft",
            Enforcement::Shadow => "shadow",
        }
    }

    /// The enforcement that [`as_str`](Enforcement::as_str) writes as `text`; `None` for any
    /// other text, other cases included.
    pub fn parse(text: &str) -> Option<Enforcement> {
        Enforcement::ALL.into_iter().find(|enforcement| enforcement.as_str() == text)
    }
}

/// Why a verdict is what it is: the field `reason` of `tenant_quota_result`
/// (docs/quotas.md).
///
/// [`decide`] gives all but `InFlight` and `Replay`, which only a mode can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Within the limit.
    Ok,
    /// Denied: the rest of the limit is smaller than the amount, or counting it would overflow.
    Limit,
    /// Granted, because there is no limit.
    Unlimited,
    /// Denied: the amount is larger than the whole limit, so waiting does not help.
    AmountExceedsLimit,
    /// Denied for now: other transactions are undecided (mode `escrow`).
    InFlight,
    /// The stored answer to an earlier call with the same idempotency key.
    Replay,
    /// Granted; a hard limit would have denied it (enforcement `shadow`).
    Shadow,
    /// Granted above the limit (enforcement `soft`).
    Soft,
}

impl Reason {
    /// The text shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Ok => "ok",
            Reason::Limit => "limit",
            Reason::Unlimited => "unlimited",
            Reason::AmountExceedsLimit => "amount_exceeds_limit",
            Reason::InFlight => "in_flight",
            Reason::Replay => "replay",
            Reason::Shadow => "shadow",
            Reason::Soft => "soft",
        }
    }
}

/// The answer to one request for units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the units may be taken.
    pub allowed: bool,
    /// Units to count: the whole amount when allowed, else 0. There are no partial grants.
    pub granted: i64,
    /// Why.
    pub reason: Reason,
    /// Units left once `granted` is counted, never below 0; `None` when there is no limit.
    pub remaining: Option<i64>,
}

/// Decides whether `amount` units may be taken now.
///
/// `used` is everything that counts before this call, the caller's own uncommitted units and
/// holds included; it may lie above the limit (a plan was downgraded, a soft limit was passed).
/// All numbers are units of the resource and at least 0: the caller has refused a negative
/// amount with 22023, the tables hold no negative limit or use.
///
/// The rules, in the order in which they are tried:
///
/// 1. An amount of 0 is a peek (docs/quotas.md): allowed, nothing granted, `ok`, or
///    `unlimited` without a limit; `remaining` says how much is left.
/// 2. `used <= limit - amount` is within the limit. Never `used + amount`, which can overflow;
///    this form cannot, as both are at least 0.
/// 3. Above it, `hard` denies: `amount_exceeds_limit` when the amount
///    is larger than the whole limit, so no reset will help, else `limit`.
/// 4. `soft` and `shadow` never deny, and an unlimited resource is still metered:
///    the amount is granted, with a reason that tells it apart.
/// 5. But for one case, which no enforcement excuses: a use that does not fit into an `i64` cannot
///    be counted, and no unit may be lost. Denied with `limit`.
pub fn decide(limit: Limit, enforcement: Enforcement, used: i64, amount: i64) -> Verdict {
    debug_assert!(used >= 0 && amount >= 0 && limit.is_none_or(|limit| limit >= 0));

    // Negative numbers cannot get here. If a bug lets one in, a release build must neither give
    // units back nor wrap around into a grant: hence `<=` here and the saturating subtractions.
    if amount <= 0 {
        return Verdict {
            allowed: true,
            granted: 0,
            reason: limit.map_or(Reason::Unlimited, |_| Reason::Ok),
            remaining: left(limit, used),
        };
    }

    let (allowed, reason) = match (limit, enforcement) {
        (Some(limit), _) if used <= limit.saturating_sub(amount) => (true, Reason::Ok),
        (Some(limit), Enforcement::Hard) if amount > limit => (false, Reason::AmountExceedsLimit),
        (Some(_), Enforcement::Hard) => (false, Reason::Limit),
        _ if used > i64::MAX - amount => (false, Reason::Limit),
        (Some(_), Enforcement::Soft) => (true, Reason::Soft),
        (Some(_), Enforcement::Shadow) => (true, Reason::Shadow),
        (None, _) => (true, Reason::Unlimited),
    };
    let granted = if allowed { amount } else { 0 };

    Verdict { allowed, granted, reason, remaining: left(limit, used + granted) }
}

fn left(limit: Limit, used: i64) -> Option<i64> {
    limit.map(|limit| limit.saturating_sub(used).max(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: i64 = i64::MAX;

    fn verdict(allowed: bool, granted: i64, reason: Reason, remaining: Option<i64>) -> Verdict {
        Verdict { allowed, granted, reason, remaining }
    }

    #[test]
    fn a_hard_limit_is_reached_exactly_and_never_passed() {
        let hard = |used, amount| decide(Some(10), Enforcement::Hard, used, amount);
        assert_eq!(hard(0, 10), verdict(true, 10, Reason::Ok, Some(0)));
        assert_eq!(hard(9, 1), verdict(true, 1, Reason::Ok, Some(0)));
        assert_eq!(hard(9, 2), verdict(false, 0, Reason::Limit, Some(1)));
        assert_eq!(hard(10, 1), verdict(false, 0, Reason::Limit, Some(0)));
    }

    #[test]
    fn an_amount_above_the_whole_limit_has_its_own_reason() {
        assert_eq!(
            decide(Some(10), Enforcement::Hard, 3, 11),
            verdict(false, 0, Reason::AmountExceedsLimit, Some(7))
        );
        assert_eq!(
            decide(Some(0), Enforcement::Hard, 0, 1),
            verdict(false, 0, Reason::AmountExceedsLimit, Some(0))
        );
    }

    #[test]
    fn nothing_remains_below_zero_after_a_downgrade() {
        assert_eq!(decide(Some(10), Enforcement::Hard, 500, 1), verdict(false, 0, Reason::Limit, Some(0)));
    }

    #[test]
    fn soft_counts_above_the_limit_and_says_so() {
        let soft = |used, amount| decide(Some(10), Enforcement::Soft, used, amount);
        assert_eq!(soft(9, 1), verdict(true, 1, Reason::Ok, Some(0)));
        assert_eq!(soft(9, 2), verdict(true, 2, Reason::Soft, Some(0)));
        assert_eq!(soft(500, 11), verdict(true, 11, Reason::Soft, Some(0)));
    }

    #[test]
    fn shadow_never_denies_and_marks_what_hard_would_deny() {
        let shadow = |used, amount| decide(Some(10), Enforcement::Shadow, used, amount);
        assert_eq!(shadow(9, 1), verdict(true, 1, Reason::Ok, Some(0)));
        assert_eq!(shadow(9, 2), verdict(true, 2, Reason::Shadow, Some(0)));
        assert_eq!(shadow(0, 11), verdict(true, 11, Reason::Shadow, Some(0)));
    }

    #[test]
    fn without_a_limit_all_is_granted_under_every_enforcement() {
        for enforcement in Enforcement::ALL {
            assert_eq!(
                decide(None, enforcement, 7, 1_000_000),
                verdict(true, 1_000_000, Reason::Unlimited, None)
            );
        }
    }

    #[test]
    fn a_peek_is_allowed_takes_nothing_and_tells_what_is_left() {
        for enforcement in Enforcement::ALL {
            assert_eq!(decide(Some(10), enforcement, 4, 0), verdict(true, 0, Reason::Ok, Some(6)));
            assert_eq!(decide(Some(10), enforcement, 11, 0), verdict(true, 0, Reason::Ok, Some(0)));
            assert_eq!(decide(None, enforcement, MAX, 0), verdict(true, 0, Reason::Unlimited, None));
        }
    }

    #[test]
    fn what_cannot_be_counted_is_denied_whatever_the_enforcement() {
        for (limit, enforcement) in [
            (Some(MAX), Enforcement::Hard),
            (Some(10), Enforcement::Soft),
            (Some(10), Enforcement::Shadow),
            (None, Enforcement::Hard),
        ] {
            let denied = decide(limit, enforcement, MAX - 1, 2);
            assert!(!denied.allowed);
            assert_eq!((denied.granted, denied.reason), (0, Reason::Limit));
            assert!(decide(limit, enforcement, MAX - 1, 1).allowed);
        }
    }

    #[test]
    fn an_enforcement_is_read_as_it_is_written_and_in_no_other_way() {
        for enforcement in Enforcement::ALL {
            assert_eq!(Enforcement::parse(enforcement.as_str()), Some(enforcement));
        }
        for text in ["", "Hard", "hard ", "none"] {
            assert_eq!(Enforcement::parse(text), None, "{text:?}");
        }
    }

    /// Numbers around the edges as often as numbers from anywhere.
    fn units() -> impl Strategy<Value = i64> {
        prop_oneof![0..=MAX, 0..=20i64, MAX - 20..=MAX, Just(0), Just(MAX), MAX / 2 - 20..=MAX / 2 + 20,]
    }

    fn enforcements() -> impl Strategy<Value = Enforcement> {
        proptest::sample::select(&Enforcement::ALL)
    }

    proptest! {
        #[test]
        fn no_request_overflows_and_every_verdict_is_consistent(
            limit in proptest::option::of(units()),
            enforcement in enforcements(),
            used in units(),
            amount in units(),
        ) {
            let verdict = decide(limit, enforcement, used, amount);
            prop_assert_eq!(verdict.granted, if verdict.allowed { amount } else { 0 });
            let after = used.checked_add(verdict.granted);
            prop_assert!(after.is_some());
            let exact = |limit: i64| (i128::from(limit) - i128::from(used) - i128::from(verdict.granted)).max(0);
            prop_assert_eq!(verdict.remaining.map(i128::from), limit.map(exact));
        }

        #[test]
        fn what_a_hard_limit_allows_fits_it_and_what_it_denies_does_not(
            limit in units(),
            used in units(),
            amount in units(),
        ) {
            let verdict = decide(Some(limit), Enforcement::Hard, used, amount);
            let fits = i128::from(used) + i128::from(amount) <= i128::from(limit);
            prop_assert_eq!(verdict.allowed, fits || amount == 0);
        }

        #[test]
        fn a_smaller_amount_is_never_worse(
            limit in proptest::option::of(units()),
            enforcement in enforcements(),
            used in units(),
            amount in units(),
            other in units(),
        ) {
            let (smaller, larger) = (amount.min(other), amount.max(other));
            if decide(limit, enforcement, used, larger).allowed {
                prop_assert!(decide(limit, enforcement, used, smaller).allowed);
            }
        }

        #[test]
        fn a_higher_limit_is_never_worse(
            limit in units(),
            other in proptest::option::of(units()),
            enforcement in enforcements(),
            used in units(),
            amount in units(),
        ) {
            let higher = other.map(|other| other.max(limit));
            if decide(Some(limit), enforcement, used, amount).allowed {
                prop_assert!(decide(higher, enforcement, used, amount).allowed);
            }
        }

        #[test]
        fn soft_and_shadow_mark_exactly_what_hard_denies(
            limit in units(),
            used in 0..=MAX / 2,
            amount in 0..=MAX / 2,
        ) {
            let hard = decide(Some(limit), Enforcement::Hard, used, amount);
            for (enforcement, mark) in [
                (Enforcement::Soft, Reason::Soft),
                (Enforcement::Shadow, Reason::Shadow),
            ] {
                let lenient = decide(Some(limit), enforcement, used, amount);
                prop_assert!(lenient.allowed);
                prop_assert_eq!(lenient.reason == mark, !hard.allowed);
            }
        }

        #[test]
        fn fuzz_an_enforcement_is_one_of_three(text in "\\PC{0,8}|[a-z]{4,6}|hard.?|sof.|.?shadow") {
            if let Some(enforcement) = Enforcement::parse(&text) {
                prop_assert_eq!(enforcement.as_str(), text);
            }
        }

        #[test]
        fn fuzz_no_numbers_grant_above_a_hard_limit(limit: i64, used: i64, amount: i64) {
            let (limit, used, amount) = (limit & i64::MAX, used & i64::MAX, amount & i64::MAX);
            let verdict = decide(Some(limit), Enforcement::Hard, used, amount);
            let fits = i128::from(used) + i128::from(amount) <= i128::from(limit);
            prop_assert_eq!(verdict.allowed, amount == 0 || fits);
            prop_assert_eq!(verdict.granted, if amount > 0 && fits { amount } else { 0 });
        }
    }
}
