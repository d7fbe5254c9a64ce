//! Which limits may be in force: what the operator has set, and when it was answered.
//!
//! A call that begins after a change was answered is held against the new limit. One that is under way meanwhile may see
//! either, and a change whose answer got lost may hold or not.

use std::sync::Mutex;
use std::time::Instant;

use super::{Key, PLANS, RESOURCES, TENANTS};

/// Something that decides on limits.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    /// The limit of a resource on a plan.
    Plan { plan: usize, resource: usize, limit: i64 },
    /// The limit of a tenant's own, or none any more.
    Own { key: Key, limit: Option<i64> },
    /// The plan of a tenant.
    Tenant { tenant: usize, plan: usize },
}

/// What each setting may be now: one value, or several where an answer is missing.
struct Possible {
    plans: Vec<Vec<Vec<i64>>>,
    own: Vec<Vec<Vec<Option<i64>>>>,
    plan_of: Vec<Vec<usize>>,
}

impl Possible {
    fn highest(&self, key: Key) -> i64 {
        let of_plans = self.plan_of[key.tenant].iter().flat_map(|plan| &self.plans[*plan][key.resource]);
        let of_plans = of_plans.max().copied().unwrap_or_default();
        let own = self.own[key.tenant][key.resource].iter().map(|own| own.unwrap_or(of_plans)).max();
        own.unwrap_or(of_plans)
    }
}

struct State {
    possible: Possible,
    /// Since when which limit of a key was the highest possible, in the order of time.
    steps: Vec<Vec<Vec<(Instant, i64)>>>,
}

impl State {
    fn step(&mut self, key: Key) {
        let step = (Instant::now(), self.possible.highest(key));
        self.steps[key.tenant][key.resource].push(step);
    }

    fn steps_of(&mut self, setting: &Setting) {
        Key::all().filter(|key| setting.concerns(*key)).for_each(|key| self.step(key));
    }
}

impl Setting {
    fn concerns(&self, key: Key) -> bool {
        match *self {
            Setting::Plan { resource, .. } => key.resource == resource,
            Setting::Own { key: own, .. } => key == own,
            Setting::Tenant { tenant, .. } => key.tenant == tenant,
        }
    }
}

/// The limits of all keys.
pub struct Limits(Mutex<State>);

impl Limits {
    pub fn new() -> Limits {
        let of_keys = || vec![vec![Vec::new(); RESOURCES.len()]; TENANTS.len()];
        let possible = Possible {
            plans: vec![vec![vec![0]; RESOURCES.len()]; PLANS.len()],
            own: vec![vec![vec![None]; RESOURCES.len()]; TENANTS.len()],
            plan_of: vec![vec![0]; TENANTS.len()],
        };
        Limits(Mutex::new(State { possible, steps: of_keys() }))
    }

    /// Makes settings by `run`, which says whether it was answered.
    pub fn set<E>(&self, settings: &[Setting], run: impl FnOnce() -> Result<bool, E>) -> Result<(), E> {
        let mut state = self.0.lock().unwrap();
        for setting in settings {
            match *setting {
                Setting::Plan { plan, resource, limit } => state.possible.plans[plan][resource].push(limit),
                Setting::Own { key, limit } => state.possible.own[key.tenant][key.resource].push(limit),
                Setting::Tenant { tenant, plan } => state.possible.plan_of[tenant].push(plan),
            }
            state.steps_of(setting);
        }
        drop(state);
        if !run()? {
            return Ok(());
        }
        let mut state = self.0.lock().unwrap();
        for setting in settings {
            match *setting {
                Setting::Plan { plan, resource, limit } => {
                    state.possible.plans[plan][resource] = vec![limit];
                }
                Setting::Own { key, limit } => state.possible.own[key.tenant][key.resource] = vec![limit],
                Setting::Tenant { tenant, plan } => state.possible.plan_of[tenant] = vec![plan],
            }
        }
        for setting in settings {
            state.steps_of(setting);
        }
        Ok(())
    }

    /// Forgets what was before.
    pub fn begin_round(&self) {
        let mut state = self.0.lock().unwrap();
        state.steps.iter_mut().flatten().for_each(Vec::clear);
        Key::all().for_each(|key| state.step(key));
    }

    /// The highest limit that may have been in force at any time since.
    pub fn highest_since(&self, key: Key, since: Instant) -> i64 {
        let state = self.0.lock().unwrap();
        let steps = &state.steps[key.tenant][key.resource];
        let first = steps.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
        steps[first..].iter().map(|(_, limit)| *limit).max().unwrap_or_default()
    }

    /// The highest limit of the round.
    pub fn highest(&self, key: Key) -> i64 {
        let state = self.0.lock().unwrap();
        state.steps[key.tenant][key.resource].iter().map(|(_, limit)| *limit).max().unwrap_or_default()
    }
}
