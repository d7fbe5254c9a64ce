//! CPU, memory and other resources of a container, as Kubernetes takes them.
//!
//! Pure. The rules are those that its API server has for containers: which names there are, that nothing is promised
//! above its limit, and what is handed out in whole pieces, promised and limited alike.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::manifest::{SpecError, is_label_key, wrong};

/// What a pod is promised, and what it cannot exceed.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Promised.
    pub requests: BTreeMap<String, String>,
    /// Not to be exceeded.
    pub limits: BTreeMap<String, String>,
}

/// How a resource is handed out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What one container does not use is there for others.
    Shared,
    /// In pieces of so many billionths, of which each belongs to one container.
    Pieces(u128),
}

impl Kind {
    /// `None` for what is no resource of a container.
    fn of(resource: &str) -> Option<Kind> {
        if let Some(size) = resource.strip_prefix(HUGE_PAGES) {
            let size = quantity(size).filter(|size| *size > 0 && size % ONE == 0);
            return size.map(Kind::Pieces);
        }
        if !is_label_key(resource) {
            return None;
        }
        if !resource.contains('/') {
            return ["cpu", "memory", "ephemeral-storage"].contains(&resource).then_some(Kind::Shared);
        }
        if resource.contains("kubernetes.io/") {
            return Some(Kind::Shared);
        }
        // Kubernetes puts this before the name where it counts it.
        const COUNTED: &str = "requests.";
        let is_name = !resource.starts_with(COUNTED) && is_label_key(&format!("{COUNTED}{resource}"));
        is_name.then_some(Kind::Pieces(ONE))
    }
}

impl Resources {
    /// Refuses what the API server would.
    ///
    /// # Errors
    ///
    /// [`SpecError`] for the first resource, quantity or request that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        for (resource, text) in self.requests.iter().chain(&self.limits) {
            let Some(kind) = Kind::of(resource) else { return wrong("resource", resource, RESOURCE) };
            let Some(quantity) = quantity(text) else { return wrong("quantity", text, QUANTITY) };
            if let Kind::Pieces(size) = kind
                && quantity % size != 0
            {
                return wrong("quantity", text, &format!("Use a multiple of one piece of {resource}."));
            }
        }
        for (resource, request) in &self.requests {
            let limit = self.limits.get(resource);
            let (wanted, most) = (quantity(request), limit.and_then(|limit| quantity(limit)));
            let asked = format!("{resource} {request}");
            if Kind::of(resource) != Some(Kind::Shared) && wanted != most {
                return wrong("request", &asked, "Set a limit of the same quantity.");
            }
            if let Some(limit) = limit
                && wanted > most
            {
                return wrong("request", &asked, &format!("Request no more than the limit, {limit}."));
            }
        }
        let mut names = self.requests.keys().chain(self.limits.keys());
        let has_room = names.clone().any(|name| name == "cpu" || name == "memory");
        match names.find(|name| name.starts_with(HUGE_PAGES)) {
            Some(pages) if !has_room => wrong("resource", pages, "Name cpu or memory beside huge pages."),
            _ => Ok(()),
        }
    }
}

const HUGE_PAGES: &str = "hugepages-";
const RESOURCE: &str = "Use cpu, memory, ephemeral-storage, huge pages of a size (hugepages-2Mi), or a name with its domain (nvidia.com/gpu).";
const QUANTITY: &str = "Use a quantity of Kubernetes: 500m, 2, 512Mi.";

/// One, in billionths.
const ONE: u128 = 1_000_000_000;
/// Kubernetes counts no further.
const MOST: u128 = i64::MAX as u128 * ONE;
const SUFFIXES: [(&str, u128); 16] = [
    ("n", 1),
    ("u", 1_000),
    ("m", 1_000_000),
    ("", ONE),
    ("k", ONE * 1_000),
    ("M", ONE * 1_000_000),
    ("G", ONE * 1_000_000_000),
    ("T", ONE * 1_000_000_000_000),
    ("P", ONE * 1_000_000_000_000_000),
    ("E", ONE * 1_000_000_000_000_000_000),
    ("Ki", ONE << 10),
    ("Mi", ONE << 20),
    ("Gi", ONE << 30),
    ("Ti", ONE << 40),
    ("Pi", ONE << 50),
    ("Ei", ONE << 60),
];

/// A quantity in billionths, rounded up; `None` for what is none.
fn quantity(text: &str) -> Option<u128> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (_, unit) = SUFFIXES.into_iter().find(|(name, _)| *name == suffix)?;
    let digit = |c: u8| u128::from(c - b'0');
    let whole = whole.bytes().fold(0, |sum: u128, c| sum.saturating_mul(10).saturating_add(digit(c)));
    let fraction = fraction.bytes().rev().fold(0, |sum: u128, c| (sum + digit(c) * unit).div_ceil(10));
    Some(whole.saturating_mul(unit).saturating_add(fraction).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (good, billionths) in [
            ("0", 0),
            ("1", ONE),
            ("500m", ONE / 2),
            ("0.5", ONE / 2),
            (".5", ONE / 2),
            ("1.", ONE),
            ("512Mi", ONE << 29),
            ("1.5Gi", 3 * (ONE << 29)),
            ("2k", 2_000 * ONE),
            ("0.1n", 1),
            ("1.0000000001", ONE + 1),
            ("0.0000000000009Ei", 1_037_629 * ONE + 354_146_163),
            ("8Ei", MOST),
            ("99999999999999999999999999999999999999999999999999E", MOST),
        ] {
            assert_eq!(quantity(good), Some(billionths), "{good}");
        }
        for bad in ["", ".", "m", "-1", "1 Gi", "1KB", "1mi", "one", "1.2.3", "1e3x"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused() {
        let gpu = "nvidia.com/gpu";
        let long = format!("{}.a/b", ["a"; 122].join("."));
        for (requests, limits, what) in [
            (&[("cpu", "500m"), ("memory", "1.5Gi"), ("ephemeral-storage", "1G")][..], &[][..], None),
            (&[], &[("cpu", "1")], None),
            (&[("cpu", "1000m")], &[("cpu", "1")], None),
            (&[("memory", "1023Mi")], &[("memory", "1Gi")], None),
            (&[("cpu", "1001m")], &[("cpu", "1")], Some("request")),
            (&[("memory", "1025Mi")], &[("memory", "1Gi")], Some("request")),
            (&[("example.kubernetes.io/a", "1500m")], &[], None),
            (&[("foo", "1")], &[], Some("resource")),
            (&[], &[("pods", "1")], Some("resource")),
            (&[], &[("a/b/c", "1")], Some("resource")),
            (&[], &[("requests.example.com/a", "1")], Some("resource")),
            (&[], &[(&long, "1")], Some("resource")),
            (&[], &[(&long[2..], "1")], None),
            (&[], &[(gpu, "1")], None),
            (&[(gpu, "2")], &[(gpu, "2")], None),
            (&[(gpu, "1")], &[(gpu, "2")], Some("request")),
            (&[(gpu, "1")], &[], Some("request")),
            (&[], &[(gpu, "1500m")], Some("quantity")),
            (&[("cpu", "1"), ("hugepages-2Mi", "4Mi")], &[("hugepages-2Mi", "4Mi")], None),
            (&[("hugepages-2Mi", "4Mi")], &[("hugepages-2Mi", "4Mi")], Some("resource")),
            (&[("cpu", "1"), ("hugepages-2Mi", "4Mi")], &[], Some("request")),
            (&[("cpu", "1")], &[("hugepages-2Mi", "3Mi")], Some("quantity")),
            (&[("cpu", "1")], &[("hugepages-", "4Mi")], Some("resource")),
            (&[("cpu", "1")], &[("hugepages-0", "4Mi")], Some("resource")),
        ] {
            let list =
                |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
            let resources = Resources { requests: list(requests), limits: list(limits) };
            assert_eq!(resources.check().err().map(|error| error.what), what, "{resources:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_quantity(text in "\\PC{0,200}") {
            let _ = (quantity(&text), Kind::of(&text).is_some());
        }

        /// A suffix is a factor, and a dot divides by ten.
        #[test]
        fn quantities_add_up(number in 0u64..1_000_000_000, place in 0..16usize) {
            let (suffix, unit) = SUFFIXES[place];
            prop_assert_eq!(quantity(&format!("{number}{suffix}")), Some((u128::from(number) * unit).min(MOST)));
            let tenths = u128::from(number) * unit;
            let text = format!("{}.{}{suffix}", number / 10, number % 10);
            prop_assert_eq!(quantity(&text), Some(tenths.div_ceil(10).min(MOST)));
        }
    }
}
