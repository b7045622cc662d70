//! Who wins among entries that fit the same request.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::ir::{Match, PathMatch, Route};

/// The smaller one wins. Each field is a sentence of HTTPRouteRule's documentation in Gateway API 1.6, in its order. Total:
/// no two matches of one configuration are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    pub path: PathRank,
    /// "Method match."
    pub method: Reverse<bool>,
    /// "Largest number of header matches."
    pub headers: Reverse<u16>,
    /// "Largest number of query param matches."
    pub query: Reverse<u16>,
    pub route: RouteRank,
    /// "The first matching rule (in list order)."
    pub rule: u32,
    /// Within a rule the first match, so that the order is total.
    pub matched: u32,
}

/// "Exact" before "Prefix" "with largest number of characters"; regular expressions, which are left to the implementation,
/// come last and longer ones first, as in Istio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathRank {
    Exact,
    Prefix(Reverse<u32>),
    Regex(Reverse<u32>),
}

/// "The oldest Route based on creation timestamp", where one without is the newest; then "The Route appearing first in
/// alphabetical order by `{namespace}/{name}`", as one string: `a-b/x` is before `a/x`. The kind comes last, for an
/// HTTPRoute and a GRPCRoute may have the same name.
/// It is the route itself, for eight bytes are less than a name and a time.
#[derive(Clone)]
pub(crate) struct RouteRank(Arc<Route>);

impl Precedence {
    pub fn new(route: &Arc<Route>, rule: usize, matched: usize, conditions: &Match) -> Self {
        Self {
            path: PathRank::of(&conditions.path),
            method: Reverse(conditions.method.is_some()),
            headers: Reverse(count(conditions.headers.len())),
            query: Reverse(count(conditions.query.len())),
            route: RouteRank(route.clone()),
            rule: rule as u32,
            matched: matched as u32,
        }
    }

    /// Why this one wins over the other, which fits as well.
    pub fn wins_because(&self, other: &Self) -> &'static str {
        if self.path != other.path {
            "its path is more specific"
        } else if self.method != other.method {
            "it names a method"
        } else if self.headers != other.headers {
            "it has more header conditions"
        } else if self.query != other.query {
            "it has more query parameter conditions"
        } else if self.route.created() != other.route.created() {
            "its route is older"
        } else if self.route != other.route {
            "its route's name comes first"
        } else {
            "it comes first in the route"
        }
    }
}

impl PathRank {
    fn of(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(_) => Self::Exact,
            PathMatch::Prefix(p) => Self::Prefix(Reverse(p.len() as u32)),
            PathMatch::Regex(p) => Self::Regex(Reverse(p.len() as u32)),
        }
    }
}

/// Gateway API allows sixteen.
fn count(conditions: usize) -> u16 {
    u16::try_from(conditions).unwrap_or(u16::MAX)
}

impl RouteRank {
    fn created(&self) -> i64 {
        self.0.created.unwrap_or(i64::MAX)
    }
}

impl Ord for RouteRank {
    fn cmp(&self, other: &Self) -> Ordering {
        fn text(route: &Route) -> impl Iterator<Item = u8> {
            route.key.namespace.bytes().chain(*b"/").chain(route.key.name.bytes())
        }
        let age = self.created().cmp(&other.created());
        let name = || text(&self.0).cmp(text(&other.0)).then(self.0.key.kind.cmp(other.0.key.kind));
        age.then_with(name)
    }
}

impl PartialEq for RouteRank {
    fn eq(&self, other: &Self) -> bool {
        self.created() == other.created() && self.0.key == other.0.key
    }
}

impl Eq for RouteRank {}

impl std::fmt::Debug for RouteRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.key)
    }
}

impl PartialOrd for RouteRank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{ObjectKey, ValueMatch};

    const HTTP: &str = "HTTPRoute";

    fn rank(
        name: (&'static str, &str, &str),
        created: Option<i64>,
        at: (usize, usize),
        m: &Match,
    ) -> Precedence {
        let (kind, namespace, name) = name;
        let key = ObjectKey { kind, namespace: namespace.into(), name: name.into() };
        let route = Arc::new(Route { key, created, attachments: Vec::new(), rules: Vec::new() });
        Precedence::new(&route, at.0, at.1, m)
    }

    /// Of two matches that are equal up to the sentence under test, the first wins, though all later sentences favour the
    /// second: its route is older and its name comes first.
    #[track_caller]
    fn check(first: &Match, second: &Match) {
        let a = rank((HTTP, "z", "z"), None, (9, 9), first);
        let b = rank((HTTP, "a", "a"), Some(0), (0, 0), second);
        assert!(a < b, "{a:?} {b:?}");
    }

    fn path(path: PathMatch) -> Match {
        Match { path, ..Match::default() }
    }

    fn conditions(count: usize) -> thin_vec::ThinVec<(Arc<str>, ValueMatch)> {
        (0..count).map(|n| (n.to_string().into(), ValueMatch::Exact("v".into()))).collect()
    }

    #[test]
    fn exact_path_match() {
        check(&path(PathMatch::Exact("/".into())), &path(PathMatch::Prefix("/long/prefix".into())));
        check(&path(PathMatch::Exact("/".into())), &path(PathMatch::Regex("/long/.*".into())));
    }

    #[test]
    fn prefix_match_with_the_largest_number_of_characters() {
        let short = Match {
            method: Some("GET".into()),
            headers: conditions(3),
            ..path(PathMatch::Prefix("/a".into()))
        };
        check(&path(PathMatch::Prefix("/a/b".into())), &short);
    }

    #[test]
    fn regular_expressions_come_last_and_longer_ones_first() {
        check(&path(PathMatch::Prefix("/".into())), &path(PathMatch::Regex("/long/.*".into())));
        check(&path(PathMatch::Regex("/a.*".into())), &path(PathMatch::Regex("/.*".into())));
    }

    #[test]
    fn method_match() {
        let many = Match { headers: conditions(3), query: conditions(3), ..Match::default() };
        check(&Match { method: Some("GET".into()), ..Match::default() }, &many);
    }

    #[test]
    fn largest_number_of_header_matches() {
        let fewer = Match { headers: conditions(1), query: conditions(3), ..Match::default() };
        check(&Match { headers: conditions(2), ..Match::default() }, &fewer);
    }

    #[test]
    fn largest_number_of_query_param_matches() {
        check(
            &Match { query: conditions(2), ..Match::default() },
            &Match { query: conditions(1), ..Match::default() },
        );
    }

    #[test]
    fn the_oldest_route() {
        let m = Match::default();
        let older = rank((HTTP, "z", "z"), Some(1), (9, 9), &m);
        let newer = rank((HTTP, "a", "a"), Some(2), (0, 0), &m);
        let undated = rank((HTTP, "a", "a"), None, (0, 0), &m);
        assert!(older < newer && newer < undated);
    }

    #[test]
    fn the_route_first_in_alphabetical_order_of_namespace_and_name() {
        let named = |namespace, name| rank((HTTP, namespace, name), Some(1), (9, 9), &Match::default());
        let order = [named("a", "b"), named("a", "c"), named("b", "a")];
        assert!(order.is_sorted());
        // `-` is before `/`.
        assert!(named("a-b", "x") < named("a", "x"));
        let grpc = rank(("GRPCRoute", "a", "b"), Some(1), (9, 9), &Match::default());
        assert!(grpc < named("a", "b"));
    }

    #[test]
    fn the_first_rule_then_the_first_match() {
        let at = |rule, matched| rank((HTTP, "a", "b"), None, (rule, matched), &Match::default());
        assert!(at(0, 9) < at(1, 0));
        assert!(at(1, 0) < at(1, 1));
    }
}
