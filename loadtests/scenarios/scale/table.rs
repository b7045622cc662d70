//! The routes of all that is measured at scale: which hosts and paths there are, so that every proxy is given the same
//! and the generator can ask for any of them.

use std::fmt::Write as _;
use std::ops::Range;

use fieldgate_loadtests::rig::config;

/// The backend that routes lead to.
pub const BENCH: &str = "bench";
/// The backend that a changed route leads to.
pub const OTHER: &str = "other";

const HOSTS: usize = 100;
/// Rules of one HTTPRoute.
const RULES: usize = 16;

/// So many routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// How many.
    pub routes: usize,
}

impl Table {
    /// The hosts that have routes.
    pub fn hosts(self) -> usize {
        self.objects().min(HOSTS)
    }

    /// The routes of one host.
    pub fn of_host(self, host: usize) -> impl Iterator<Item = usize> {
        (0..self.routes).filter(move |rule| rule / RULES % HOSTS == host)
    }

    /// HTTPRoutes that hold all routes.
    pub fn objects(self) -> usize {
        self.routes.div_ceil(RULES)
    }

    /// The routes that one HTTPRoute holds.
    pub fn rules(self, object: usize) -> Range<usize> {
        object * RULES..self.routes.min((object + 1) * RULES)
    }

    /// One in the middle, to be changed.
    pub fn middle(self) -> usize {
        self.routes / 2
    }

    /// An HTTPRoute in which `changed`, if it is among its rules, leads to the backend beside it, and all others to
    /// [`BENCH`].
    pub fn object(self, object: usize, changed: Option<(usize, &str)>) -> String {
        let mut text = format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: route-{object}}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [{}]
  rules:
",
            host_name(object % HOSTS)
        );
        for rule in self.rules(object) {
            let _ = write!(
                text,
                "  - matches: [{{path: {{type: PathPrefix, value: {}}}}}]\n    backendRefs:\n{}",
                path(rule),
                config::backend_refs(&[(target(rule, changed), 1)])
            );
        }
        text
    }
}

/// The HTTPRoute that holds a rule.
pub fn object_of(rule: usize) -> usize {
    rule / RULES
}

/// The host that a rule belongs to, by its number.
pub fn host_of(rule: usize) -> usize {
    object_of(rule) % HOSTS
}

/// The host of a rule. HTTPRoutes share hosts, so that each host has many routes.
pub fn host(rule: usize) -> String {
    host_name(host_of(rule))
}

/// A host by its number.
pub fn host_name(host: usize) -> String {
    format!("host-{host}.example.test")
}

/// The path of a rule.
pub fn path(rule: usize) -> String {
    format!("/area-{}/service-{}/item-{rule}", rule % 7, rule % 1009)
}

/// Where a rule leads.
pub fn target(rule: usize, changed: Option<(usize, &str)>) -> &str {
    changed.filter(|(changed, _)| *changed == rule).map_or(BENCH, |(_, backend)| backend)
}

/// A script for wrk that asks for one of the routes at random, each as likely.
pub fn random_requests(table: Table) -> String {
    format!(
        r#"local get = "GET /area-%d/service-%d/item-%d HTTP/1.1\r\nHost: host-%d.example.test\r\n\r\n"
request = function()
  local rule = math.random(0, {} - 1)
  return string.format(get, rule % 7, rule % 1009, rule, math.floor(rule / {RULES}) % {HOSTS})
end
"#,
        table.routes
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_one_host_s_and_one_object_s() {
        for routes in [1, 10, 16, 1000, 5001] {
            let table = Table { routes };
            let mut of_hosts: Vec<usize> = (0..table.hosts()).flat_map(|host| table.of_host(host)).collect();
            of_hosts.sort_unstable();
            assert_eq!(of_hosts, (0..routes).collect::<Vec<_>>());
            let of_objects: Vec<usize> =
                (0..table.objects()).flat_map(|object| table.rules(object)).collect();
            assert_eq!(of_objects, (0..routes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn only_the_changed_rule_leads_elsewhere() {
        let table = Table { routes: 100 };
        let text = table.object(object_of(50), Some((50, OTHER)));
        assert_eq!(text.matches("name: other").count(), 1);
        assert_eq!(text.matches("name: bench").count(), RULES - 1);
        assert!(text.contains(&path(50)) && text.contains(&host(50)));
    }
}
