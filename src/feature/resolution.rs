//! Whose value holds: the tenant's own, its plan's, the one for everybody, or none.
//!
//! Pure: rules, a bucket and an instant in, a rule out. Features and releases are resolved by it.

use super::bucket::Share;

/// A value that holds for a share of those it is meant for, until it expires.
pub struct Rule<T> {
    /// The value.
    pub value: T,
    /// The share.
    pub share: Share,
    /// From when on it counts no more, in microseconds since 2000-01-01; `i64::MAX` for never.
    pub expires_at: i64,
}

/// Whom a rule is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One tenant.
    Tenant,
    /// The tenants of a plan.
    Plan,
    /// All tenants.
    Global,
}

impl Scope {
    /// The name that arguments and results have.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Tenant => "tenant",
            Scope::Plan => "plan",
            Scope::Global => "global",
        }
    }

    /// The scope of that name.
    pub fn parse(text: &str) -> Option<Scope> {
        [Scope::Tenant, Scope::Plan, Scope::Global].into_iter().find(|scope| scope.as_str() == text)
    }
}

/// The rule that holds.
pub struct Hit<'a, T> {
    /// Its value.
    pub value: &'a T,
    /// Whom it is meant for.
    pub scope: Scope,
    /// Whether the tenant's bucket had a say.
    pub split: bool,
}

/// The first of the rules that has not expired and whose share the tenant is in.
pub fn resolve<'a, T>(
    own: Option<&'a Rule<T>>,
    plan: Option<&'a Rule<T>>,
    global: Option<&'a Rule<T>>,
    now: i64,
    bucket: impl Fn() -> u32,
) -> Option<Hit<'a, T>> {
    let rules = [(Scope::Tenant, own), (Scope::Plan, plan), (Scope::Global, global)];
    rules.into_iter().find_map(|(scope, rule)| {
        let rule = rule.filter(|rule| now < rule.expires_at)?;
        let split = rule.share != Share::ALL;
        (!split || rule.share.has(bucket())).then_some(Hit { value: &rule.value, scope, split })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(value: u8, percent: f64, expires_at: i64) -> Rule<u8> {
        Rule { value, share: Share::of_percent(percent).unwrap(), expires_at }
    }

    fn found(rules: [Option<&Rule<u8>>; 3], now: i64, bucket: u32) -> Option<(u8, Scope, bool)> {
        resolve(rules[0], rules[1], rules[2], now, || bucket).map(|hit| (*hit.value, hit.scope, hit.split))
    }

    #[test]
    fn the_nearest_rule_wins() {
        let (own, plan, global) = (rule(1, 100.0, 9), rule(2, 100.0, 9), rule(3, 100.0, 9));
        assert_eq!(found([Some(&own), Some(&plan), Some(&global)], 0, 0), Some((1, Scope::Tenant, false)));
        assert_eq!(found([None, Some(&plan), Some(&global)], 0, 0), Some((2, Scope::Plan, false)));
        assert_eq!(found([None, None, Some(&global)], 0, 0), Some((3, Scope::Global, false)));
        assert_eq!(found([None, None, None], 0, 0), None);
    }

    #[test]
    fn a_rule_ends_at_its_instant() {
        let (own, global) = (rule(1, 100.0, 9), rule(3, 100.0, i64::MAX));
        assert_eq!(found([Some(&own), None, Some(&global)], 8, 0), Some((1, Scope::Tenant, false)));
        assert_eq!(found([Some(&own), None, Some(&global)], 9, 0), Some((3, Scope::Global, false)));
    }

    #[test]
    fn who_is_not_in_a_share_goes_on_to_the_next_rule() {
        let (plan, global) = (rule(2, 10.0, 9), rule(3, 50.0, 9));
        let rules = [None, Some(&plan), Some(&global)];
        assert_eq!(found(rules, 0, 9_999), Some((2, Scope::Plan, true)));
        assert_eq!(found(rules, 0, 10_000), Some((3, Scope::Global, true)));
        assert_eq!(found(rules, 0, 49_999), Some((3, Scope::Global, true)));
        assert_eq!(found(rules, 0, 50_000), None);
    }
}
