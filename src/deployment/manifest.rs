//! What is said of a deployment, and the Kubernetes objects that follow from it.
//!
//! Pure: JSON in, JSON out. What Kubernetes would refuse is refused here: apps/v1 Deployment and v1 ConfigMap, and the
//! rules of its names, labels and quantities.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::resources::Resources;

/// Longest name of a deployment: of the 63 characters of a label, eleven are left for `-r` and the number of a release.
pub const LONGEST_NAME: usize = 52;

/// How the data of a deployment's tenants are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Rows in tables of all tenants.
    #[default]
    Shared,
    /// A server or database of some tenants.
    Pool,
    /// A server, database or schema of one tenant.
    Isolated,
}

impl Isolation {
    /// The name that routes show.
    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::Shared => "shared",
            Isolation::Pool => "pool",
            Isolation::Isolated => "isolated",
        }
    }
}

/// The argument of `tenant_deployment_define`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Spec {
    /// The image, of a deployment that is new.
    pub image: Option<String>,
    /// Plans whose tenants it serves.
    pub plans: Vec<String>,
    /// Whether it serves everybody that no other deployment names; left out: whether it names no plan.
    pub default: Option<bool>,
    /// The label `app`; left out: the name.
    pub app: Option<String>,
    /// The label `tier`.
    pub tier: Option<String>,
    /// The region; only its tenants are served.
    pub region: Option<String>,
    /// How its data are kept apart.
    pub isolation: Isolation,
    /// Where its data are; for the application to read.
    pub location: Option<BTreeMap<String, Value>>,
    /// The Kubernetes namespace.
    pub namespace: Option<String>,
    /// The name of the container; left out: the name.
    pub container: Option<String>,
    /// Pods; left out: one.
    pub replicas: Option<u32>,
    /// The port of the container.
    pub port: Option<u16>,
    /// More labels.
    pub labels: BTreeMap<String, String>,
    /// Variables of the environment.
    pub env: BTreeMap<String, Variable>,
    /// CPU and memory.
    pub resources: Resources,
}

/// A variable of the environment.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "a variable is a string, {\"configMap\": name, \"key\": key} or {\"secret\": name, \"key\": key}"
)]
pub enum Variable {
    /// Its value.
    Value(String),
    /// A key of a ConfigMap.
    #[serde(rename_all = "camelCase")]
    ConfigMap { config_map: String, key: String },
    /// A key of a Secret.
    Secret { secret: String, key: String },
}

/// What is wrong with a definition: the part, its value, and what it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The part.
    pub what: &'static str,
    /// The value.
    pub value: String,
    /// Advice.
    pub hint: String,
}

pub(super) fn wrong(what: &'static str, value: &str, hint: &str) -> Result<(), SpecError> {
    Err(SpecError { what, value: value.into(), hint: hint.into() })
}

impl Spec {
    /// Reads a definition.
    ///
    /// # Errors
    ///
    /// [`SpecError`] for a key that is not known, a value of another type, and whatever Kubernetes would refuse.
    pub fn parse(text: &str) -> Result<Spec, SpecError> {
        let wrong = |why: &str| SpecError {
            what: "definition of a deployment",
            value: text.into(),
            // Without the place, which is one in the server's own text of the jsonb.
            hint: sentence(why.split(" at line ").next().unwrap_or_default()),
        };
        let value: Value = serde_json::from_str(text).map_err(|error| wrong(&error.to_string()))?;
        // Serde takes a list for an object: its values by place.
        let parts = [&value, &value["resources"], &value["env"]];
        let variables = value["env"].as_object().into_iter().flatten().map(|(_, variable)| variable);
        if parts.into_iter().chain(variables).any(Value::is_array) || !value.is_object() {
            return Err(wrong("an object is expected"));
        }
        let spec: Spec = serde_json::from_value(value).map_err(|error| wrong(&error.to_string()))?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), SpecError> {
        let [app, tier] = [("app", &self.app), ("tier", &self.tier)];
        for (what, label) in [app, tier] {
            if let Some(value) = label
                && (value.is_empty() || !is_label_value(value))
            {
                return wrong(what, value, LABEL_VALUE);
            }
        }
        if let Some(image) = &self.image {
            check_image(image)?;
        }
        for (what, name) in [("namespace", &self.namespace), ("container", &self.container)] {
            if let Some(name) = name {
                check_dns_label(what, name, 63)?;
            }
        }
        if self.replicas.is_some_and(|replicas| replicas > i32::MAX as u32) {
            return wrong(
                "replicas",
                &self.replicas.unwrap_or_default().to_string(),
                "Use a number of pods.",
            );
        }
        if self.port == Some(0) {
            return wrong("port", "0", "Use a port from 1 to 65535.");
        }
        for (key, value) in &self.labels {
            if !is_label_key(key) || OUR_LABELS.contains(&key.as_str()) {
                return wrong("label", key, LABEL_KEY);
            }
            if !is_label_value(value) {
                return wrong("label", value, LABEL_VALUE);
            }
        }
        self.check_environment()?;
        self.resources.check()
    }

    fn check_environment(&self) -> Result<(), SpecError> {
        for (name, variable) in &self.env {
            let mut letters = name.bytes();
            let starts = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || b"-._".contains(&c));
            if !starts || !letters.all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c)) || climbs(name) {
                return wrong(
                    "variable",
                    name,
                    "Use letters, digits, -, _ and ., with no digit and no two dots first.",
                );
            }
            let (Variable::ConfigMap { config_map: source, key } | Variable::Secret { secret: source, key }) =
                variable
            else {
                continue;
            };
            if source.len() > 253 || !source.split('.').all(|part| is_dns_label(part, 253)) {
                return wrong(
                    "name",
                    source,
                    "Use lower case letters, digits, - and .; a letter or digit at both ends.",
                );
            }
            let is_key = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
            if key.is_empty() || key.len() > 253 || !key.bytes().all(is_key) || climbs(key) {
                return wrong("key", key, "Use letters, digits, -, _ and ., with no two dots first.");
            }
        }
        Ok(())
    }

    /// The Deployment of an image: the stable one, or that of a release with so many replicas.
    pub fn manifest(&self, name: &str, image: &str, release: Option<(i64, u32)>) -> Value {
        let container = self.container.as_deref().unwrap_or(name);
        let (instance, replicas) = match release {
            None => (name.to_string(), self.replicas.unwrap_or(1)),
            Some((id, replicas)) => (format!("{name}-r{id}"), replicas),
        };
        let mut selector = json!({ "app": self.app.as_deref().unwrap_or(name) });
        if let Some(tier) = &self.tier {
            selector["tier"] = json!(tier);
        }
        // No two deployments may select each other's pods, and app and tier may be the same.
        selector["app.kubernetes.io/instance"] = json!(instance);
        let mut labels = selector.clone();
        for (key, value) in &self.labels {
            labels[key] = json!(value);
        }
        let mut pod = json!({ "name": container, "image": image });
        if let Some(port) = self.port {
            pod["ports"] = json!([{ "containerPort": port }]);
        }
        if !self.env.is_empty() {
            pod["env"] = self.env.iter().map(|(name, variable)| variable.manifest(name)).collect();
        }
        let Resources { requests, limits } = &self.resources;
        for (kind, quantities) in [("requests", requests), ("limits", limits)] {
            if !quantities.is_empty() {
                pod["resources"][kind] = json!(quantities);
            }
        }
        let mut metadata = json!({ "name": instance, "labels": labels });
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": selector },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [pod] },
                },
            },
        })
    }
}

impl Variable {
    fn manifest(&self, name: &str) -> Value {
        match self {
            Variable::Value(value) => json!({ "name": name, "value": value }),
            Variable::ConfigMap { config_map, key } => {
                json!({ "name": name, "valueFrom": { "configMapKeyRef": { "name": config_map, "key": key } } })
            }
            Variable::Secret { secret, key } => {
                json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } })
            }
        }
    }
}

/// The ConfigMap with the values of features; `features` is the text of a JSON object.
pub fn configmap(features: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "tenant-features" },
        "data": { "features.json": features },
    })
}

/// Refuses what cannot be the name of a deployment.
///
/// # Errors
///
/// [`SpecError`] for all but 1 to [`LONGEST_NAME`] lower case letters, digits and hyphens, with no hyphen at an end.
pub fn check_name(name: &str) -> Result<(), SpecError> {
    check_dns_label("deployment", name, LONGEST_NAME)
}

fn check_dns_label(what: &'static str, name: &str, longest: usize) -> Result<(), SpecError> {
    if is_dns_label(name, longest) {
        return Ok(());
    }
    let hint =
        format!("Use up to {longest} lower case letters, digits and -, a letter or digit at both ends.");
    wrong(what, name, &hint)
}

/// Refuses what cannot name an image.
///
/// # Errors
///
/// [`SpecError`] for an empty text, and one with white space or control characters.
pub fn check_image(image: &str) -> Result<(), SpecError> {
    if image.is_empty() || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("image", image, "Use a reference such as myregistry/api:v2.0.0.");
    }
    Ok(())
}

const OUR_LABELS: [&str; 3] = ["app", "tier", "app.kubernetes.io/instance"];
const LABEL_VALUE: &str = "Use up to 63 letters, digits, -, _ and ., a letter or digit at both ends.";
const LABEL_KEY: &str =
    "Use a key of a Kubernetes label other than app, tier and app.kubernetes.io/instance.";

fn is_dns_label(text: &str, longest: usize) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    is_word(text, longest, alphanumeric, |c| c == b'-')
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_word(text, 63, |c| c.is_ascii_alphanumeric(), |c| b"-_.".contains(&c))
}

/// Whether a text is a qualified name of Kubernetes: a name, alone or after a domain and a slash.
pub(super) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    !name.is_empty()
        && is_label_value(name)
        && prefix
            .is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(|part| is_dns_label(part, 63)))
}

/// Whether the text would be another folder where it is the name of a file.
fn climbs(text: &str) -> bool {
    text == "." || text.starts_with("..")
}

/// Whether the text has `outer` at both ends, and `outer` and `inner` between them.
fn is_word(text: &str, longest: usize, outer: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= longest && outer(*first) && outer(*last) && bytes.iter().all(|c| outer(*c) || inner(*c))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> &'static str {
        Spec::parse(text).expect_err(text).what
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused() {
        for (spec, what) in [
            (r#"{"replica": 3}"#, "definition of a deployment"),
            (r#"{"replicas": -1}"#, "definition of a deployment"),
            (r#"{"replicas": 1e400}"#, "definition of a deployment"),
            (r#"{"isolation": "none"}"#, "definition of a deployment"),
            (r#"{"env": {"A": 1}}"#, "definition of a deployment"),
            (r#"[]"#, "definition of a deployment"),
            (r#"3"#, "definition of a deployment"),
            (r#"{"resources": []}"#, "definition of a deployment"),
            (r#"{"env": {"A": ["b", "c"]}}"#, "definition of a deployment"),
            (r#"{"replicas": 4294967295}"#, "replicas"),
            (r#"{"port": 0}"#, "port"),
            (r#"{"image": "a b"}"#, "image"),
            (r#"{"image": ""}"#, "image"),
            (r#"{"tier": "a b"}"#, "tier"),
            (r#"{"tier": ""}"#, "tier"),
            (r#"{"app": "-a"}"#, "app"),
            (r#"{"namespace": "A"}"#, "namespace"),
            (r#"{"container": "a.b"}"#, "container"),
            (r#"{"labels": {"a b": "c"}}"#, "label"),
            (r#"{"labels": {"app": "c"}}"#, "label"),
            (r#"{"labels": {"a": "c d"}}"#, "label"),
            (r#"{"env": {"1A": "x"}}"#, "variable"),
            (r#"{"env": {"A=B": "x"}}"#, "variable"),
            (r#"{"env": {".": "x"}}"#, "variable"),
            (r#"{"env": {"..a": "x"}}"#, "variable"),
            (r#"{"env": {"A": {}}}"#, "definition of a deployment"),
            (r#"{"env": {"A": {"configMap": "c"}}}"#, "definition of a deployment"),
            (
                r#"{"env": {"A": {"configMap": "c", "key": "k", "optional": true}}}"#,
                "definition of a deployment",
            ),
            (r#"{"env": {"A": {"secret": "c", "key": "k", "value": "x"}}}"#, "definition of a deployment"),
            (
                r#"{"env": {"A": {"configMap": "c", "secret": "s", "key": "k"}}}"#,
                "definition of a deployment",
            ),
            (r#"{"env": {"A": {"configMap": "Up", "key": "k"}}}"#, "name"),
            (r#"{"env": {"A": {"secret": "s", "key": "a/b"}}}"#, "key"),
            (r#"{"resources": {"requests": {"cpu": "500 m"}}}"#, "quantity"),
            (r#"{"resources": {"limits": {"memory": "1GB"}}}"#, "quantity"),
            (r#"{"resources": {"limits": {"": "1"}}}"#, "resource"),
            (r#"{"resources": {"limits": {"foo": "1"}}}"#, "resource"),
            (r#"{"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}}"#, "request"),
        ] {
            assert_eq!(refused(spec), what, "{spec}");
        }
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        for good in ["a", "api-service", "api2", &"a".repeat(52)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "A", "a.b", "-a", "a-", "a_b", "ä", &"a".repeat(53)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for (what, longest) in [("namespace", 63), ("container", 63)] {
            let spec = |length| format!(r#"{{"{what}": "{}"}}"#, "a".repeat(length));
            assert!(Spec::parse(&spec(longest)).is_ok(), "{what}");
            assert!(
                Spec::parse(&spec(longest + 1)).unwrap_err().hint.contains(&longest.to_string()),
                "{what}"
            );
        }
        assert!(is_label_key("example.com/team") && is_label_key("a_b"));
        assert!(!is_label_key("/a") && !is_label_key("a/") && !is_label_key("A.b/c"));
    }

    #[test]
    fn a_release_has_a_name_and_a_selector_of_its_own() {
        let spec = Spec::parse(r#"{"replicas": 5, "tier": "enterprise", "app": "api"}"#).unwrap();
        let stable = spec.manifest("api-service", "a:1", None);
        let release = spec.manifest("api-service", "a:2", Some((7, 2)));
        assert_eq!(release["metadata"]["name"], "api-service-r7");
        assert_eq!((&stable["spec"]["replicas"], &release["spec"]["replicas"]), (&json!(5), &json!(2)));
        assert_ne!(stable["spec"]["selector"], release["spec"]["selector"]);
        for object in [stable, release] {
            let selector = object["spec"]["selector"]["matchLabels"].as_object().unwrap();
            let labels = &object["spec"]["template"]["metadata"]["labels"];
            assert!(selector.iter().all(|(key, value)| labels[key] == *value));
        }
    }

    /// A field of a definition: its name, a value that may be right, and sometimes one that is not.
    fn field() -> impl Strategy<Value = (String, Value)> {
        let text = || {
            prop_oneof![
                "[a-z]([a-z0-9-]{0,10}[a-z0-9])?",
                "[A-Za-z0-9._/:-]{0,70}",
                "\\PC{0,8}",
                "[\\x00-\\x20\"]{1,3}"
            ]
        };
        let quantity = "[0-9]{0,4}\\.?[0-9]{0,3}(|[numkMGTPEx]|[KMG]i)";
        let texts = |value: BoxedStrategy<Value>| {
            proptest::collection::btree_map(text(), value, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        };
        let variable = prop_oneof![
            text().prop_map(Value::from),
            ("configMap|secret|other", text(), text())
                .prop_map(|(kind, source, key)| json!({ (kind): source, "key": key })),
        ];
        let quantities = || texts(quantity.prop_map(Value::from).boxed()).boxed();
        let odd = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            text().prop_map(Value::from),
            proptest::collection::vec(text().prop_map(Value::from), 0..3).prop_map(Value::from),
        ];
        prop_oneof![
            8 => ("image|app|tier|region|namespace|container", text())
                .prop_map(|(name, value)| (name, Value::from(value))),
            2 => ("replicas|port", prop_oneof![any::<i64>(), 0..70_000i64])
                .prop_map(|(name, value)| (name, Value::from(value))),
            2 => texts(text().prop_map(Value::from).boxed()).prop_map(|value| ("labels".into(), value)),
            2 => texts(variable.boxed()).prop_map(|value| ("env".into(), value)),
            2 => (quantities(), quantities()).prop_map(|(requests, limits)| {
                ("resources".into(), json!({ "requests": requests, "limits": limits }))
            }),
            1 => "shared|pool|isolated|\\PC{0,4}"
                .prop_map(|value| ("isolation".into(), Value::from(value))),
            1 => proptest::collection::vec(text(), 0..3).prop_map(|value| ("plans".into(), json!(value))),
            1 => ("[a-zA-Z]{0,10}|image|replicas|env|labels|resources|plans|default|location", odd),
        ]
    }

    proptest! {
        #[test]
        fn fuzz_no_text_breaks_the_parser(text in "\\PC{0,200}") {
            let _ = Spec::parse(&text);
            let _ = (check_name(&text), check_image(&text), is_label_key(&text));
        }

        #[test]
        fn fuzz_a_definition_is_refused_or_said_by_its_manifest(
            fields in proptest::collection::vec(field(), 0..4),
            release in proptest::option::of((any::<i64>(), any::<u32>())),
        ) {
            let fields: serde_json::Map<String, Value> = fields.into_iter().collect();
            if let Ok(spec) = Spec::parse(&Value::Object(fields.clone()).to_string()) {
                let manifest = spec.manifest("api", "shop:1", release);
                let pod = &manifest["spec"]["template"]["spec"]["containers"][0];
                let labels = &manifest["spec"]["template"]["metadata"]["labels"];
                prop_assert!(is_dns_label(pod["name"].as_str().unwrap_or_default(), 63));
                let fits = |(key, value): (&String, &Value)| {
                    is_label_key(key) && value.as_str().is_some_and(is_label_value)
                };
                prop_assert!(labels.as_object().is_some_and(|labels| labels.iter().all(fits)));
                // What was said is there, as it was said, and nothing else is.
                let given = |name: &str| fields.get(name).and_then(Value::as_object);
                let size = |name: &str| given(name).map_or(0, serde_json::Map::len);
                prop_assert_eq!(pod["env"].as_array().map_or(0, Vec::len), size("env"));
                for (key, value) in given("labels").into_iter().flatten() {
                    prop_assert_eq!(&labels[key], value);
                }
                for kind in ["requests", "limits"] {
                    let quantities = given("resources").and_then(|resources| resources[kind].as_object());
                    let said = pod["resources"][kind].as_object();
                    prop_assert_eq!(said.map_or(0, |said| said.len()), quantities.map_or(0, |given| given.len()));
                }
                prop_assert_eq!(&serde_json::from_str::<Value>(&manifest.to_string()).ok(), &Some(manifest));
            }
        }
    }
}
