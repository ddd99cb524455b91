//! Which service a process belongs to: by the first rule of the node's configuration that fits, else by what its cgroup
//! and the node's pods say. Pure.

use std::str::FromStr;

use super::Workload;

/// `unit=nginx*.service, comm=nginx -> web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All have to fit.
    conditions: Vec<(Subject, String)>,
    service: String,
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Unit,
    /// Its name or its id.
    Container,
    Pod,
    Namespace,
    /// Of the pod.
    Label(String),
    /// The path of the cgroup.
    Cgroup,
    Comm,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is no rule: write KEY=PATTERN[,KEY=PATTERN...] -> SERVICE, such as \"unit=nginx.service -> web\""
            )
        };
        let (conditions, service) = text.split_once("->").ok_or_else(form)?;
        let service = service.trim();
        if service.is_empty() || service.len() > 64 || service.contains(char::is_control) {
            return Err(form());
        }
        let condition = |text: &str| {
            let (key, pattern) = text.split_once('=').ok_or_else(form)?;
            let (key, pattern) = (key.trim(), pattern.trim());
            let subject = match key {
                "unit" => Subject::Unit,
                "container" => Subject::Container,
                "pod" => Subject::Pod,
                "namespace" => Subject::Namespace,
                "cgroup" => Subject::Cgroup,
                "comm" => Subject::Comm,
                _ => match key.strip_prefix("label.") {
                    Some(label) if !label.is_empty() => Subject::Label(label.to_owned()),
                    _ => {
                        return Err(format!(
                            "{text:?}: a rule looks at unit, container, pod, namespace, label.NAME, cgroup or comm"
                        ));
                    }
                },
            };
            if pattern.is_empty() {
                return Err(form());
            }
            Ok((subject, pattern.to_owned()))
        };
        Ok(Self {
            conditions: conditions.split(',').map(condition).collect::<Result<_, _>>()?,
            service: service.to_owned(),
        })
    }
}

impl Rule {
    fn fits(&self, workload: &Workload, comm: &str) -> bool {
        self.conditions.iter().all(|(subject, pattern)| {
            let is_like = |text: &str| is_like(text, pattern);
            match subject {
                Subject::Unit => is_like(&workload.place.unit),
                Subject::Container => {
                    is_like(&workload.container_name) || is_like(&workload.place.container_id)
                }
                Subject::Pod => is_like(&workload.pod.name),
                Subject::Namespace => is_like(&workload.pod.namespace),
                Subject::Label(label) => workload.pod.labels.get(label).is_some_and(|value| is_like(value)),
                Subject::Cgroup => is_like(&workload.path),
                Subject::Comm => is_like(comm),
            }
        })
    }
}

/// The service of a process in a workload; empty: none.
pub fn service(rules: &[Rule], workload: &Workload, comm: &str) -> String {
    match rules.iter().find(|rule| rule.fits(workload, comm)) {
        Some(rule) => rule.service.clone(),
        None => by_default(workload),
    }
}

/// The owner of the pod, or the container's name, or the unit without its type and its instance.
fn by_default(workload: &Workload) -> String {
    for name in [&workload.pod.owner, &workload.pod.name, &workload.container_name] {
        if !name.is_empty() {
            return name.clone();
        }
    }
    // A scope is made for one moment: `session-3.scope`. Nothing lasting is called like it.
    let unit = workload.place.unit.strip_suffix(".service").unwrap_or_default();
    unit.split('@').next().unwrap_or_default().to_owned()
}

/// Whether a text is like a pattern, in which `*` stands for any text.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads::{path::Place, pods::Pod};

    fn workload() -> Workload {
        Workload {
            path: "/system.slice/nginx@blue.service".into(),
            place: Place::of("/system.slice/nginx@blue.service"),
            ..Workload::default()
        }
    }

    fn pod() -> Workload {
        Workload {
            container_name: "app".into(),
            pod: Pod {
                name: "shop-7c9f6d5b8-x2x4z".into(),
                namespace: "prod".into(),
                owner: "shop".into(),
                labels: [("tier".to_owned(), "front".to_owned())].into(),
            },
            ..Workload::default()
        }
    }

    fn check(rules: &[&str], workload: &Workload, comm: &str, expected: &str) {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
        assert_eq!(service(&rules, workload, comm), expected);
    }

    #[test]
    fn the_first_rule_that_fits_names_the_service() {
        check(
            &["unit=nginx*.service -> web", "unit=* -> other"],
            &workload(),
            "nginx",
            "web",
        );
        check(
            &["unit=apache.service -> web", "comm=nginx -> proxy"],
            &workload(),
            "nginx",
            "proxy",
        );
        check(
            &[
                "unit=nginx@*, comm=worker -> workers",
                "cgroup=/system.slice/* -> system",
            ],
            &workload(),
            "nginx",
            "system",
        );
        check(
            &["namespace=prod, label.tier=front -> shop-front"],
            &pod(),
            "x",
            "shop-front",
        );
        check(&["label.tier=back -> shop-back"], &pod(), "x", "shop");
    }

    #[test]
    fn without_a_rule_it_is_the_pods_owner_or_the_container_or_the_unit() {
        check(&[], &pod(), "x", "shop");
        check(&[], &workload(), "x", "nginx");
        let container = Workload {
            container_name: "cache".into(),
            ..Workload::default()
        };
        check(&[], &container, "x", "cache");
        let session = Workload {
            place: Place::of("/user.slice/user-0.slice/session-3.scope"),
            ..Workload::default()
        };
        check(&[], &session, "bash", "");
        check(&[], &Workload::default(), "bash", "");
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (text, pattern, expected) in [
            ("nginx.service", "nginx.service", true),
            ("nginx.service", "nginx", false),
            ("nginx.service", "*", true),
            ("", "*", true),
            ("nginx.service", "n*x*e", true),
            ("nginx.service", "*.scope", false),
            ("aab", "a*ab", true),
            ("ab", "ab*b", false),
        ] {
            assert_eq!(is_like(text, pattern), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_is_refused() {
        for bad in [
            "",
            "unit=a",
            "-> web",
            "unit -> web",
            "unit= -> web",
            "unit=a ->",
            "name=a -> web",
            "label.=a -> b",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad:?}");
        }
    }
}
