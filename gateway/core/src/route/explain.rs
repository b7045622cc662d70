//! What a lookup does, told for people. Looks at every entry, so it is not for the request path.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Entry, Table};
use crate::head::RequestHead;
use crate::ir::Hostname;

/// Entries told about.
const NEAREST: usize = 20;

/// What a lookup found and what it passed over.
#[derive(Debug)]
pub struct Explanation {
    /// Whether any route has this host name.
    pub host_found: bool,
    /// The host name whose rules are looked at, as configured; `None` inside is "any host".
    pub host: Option<Option<Hostname>>,
    /// Host names that there are routes for, some of them if there are many.
    pub hosts: Vec<String>,
    /// The entry that takes the request.
    pub winner: Option<Arc<Entry>>,
    /// Entries that do not, the nearest first.
    pub others: Vec<NearMiss>,
}

/// An entry that does not take the request.
#[derive(Debug)]
pub struct NearMiss {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Why not.
    pub why: String,
}

/// How near an entry is: smaller is nearer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    Fits,
    PathFits,
    /// It begins with as many of the path's bytes.
    Apart(Reverse<usize>),
}

impl Table {
    /// What a lookup does and why.
    pub fn explain(&self, head: &RequestHead) -> Explanation {
        let mut tables = self.hosts_of(head.host());
        let Some((host, table)) = tables.next() else {
            return Explanation {
                host_found: false,
                host: None,
                hosts: self.some_hosts(),
                winner: None,
                others: Vec::new(),
            };
        };
        let winner = table.find(head).cloned();
        let mut others: Vec<(Distance, &Arc<Entry>)> = table
            .entries()
            .into_iter()
            .filter(|e| winner.as_ref().is_none_or(|w| !Arc::ptr_eq(w, e)))
            .map(|e| (distance(e, head), e))
            .collect();
        let order = |a: &(Distance, &Arc<Entry>), b: &(Distance, &Arc<Entry>)| {
            (a.0, &a.1.precedence).cmp(&(b.0, &b.1.precedence))
        };
        if others.len() > NEAREST {
            others.select_nth_unstable_by(NEAREST, order);
            others.truncate(NEAREST);
        }
        others.sort_unstable_by(order);
        let near = others.iter().take_while(|(d, _)| *d <= Distance::PathFits).count();
        let mut told: Vec<NearMiss> =
            others.into_iter().map(|(_, e)| miss(e, why_not(e, head, winner.as_deref()))).collect();
        // Those that would take it if it were not for their host name, after those whose path fits here.
        let hidden = tables.filter_map(|(other, table)| {
            let entry = table.find(head).filter(|e| !winner.as_ref().is_some_and(|w| Arc::ptr_eq(w, e)))?;
            let why = format!(
                "fits, but under the host name {}; only rules of the more specific {} are looked at",
                host_text(other.as_ref()),
                host_text(host.as_ref()),
            );
            Some(miss(entry, why))
        });
        told.splice(near..near, hidden.collect::<Vec<_>>());
        told.truncate(NEAREST);
        Explanation { host_found: true, host: Some(host), hosts: self.some_hosts(), winner, others: told }
    }

    fn some_hosts(&self) -> Vec<String> {
        let wildcards = self.wildcard.keys().map(|h| format!("*.{h}"));
        let mut hosts: Vec<String> =
            self.exact.keys().map(ToString::to_string).chain(wildcards).take(NEAREST).collect();
        hosts.sort_unstable();
        hosts
    }
}

/// How a host name of a table is written.
fn host_text(host: Option<&Hostname>) -> String {
    host.map_or_else(|| "`*`".to_owned(), |h| format!("`{h}`"))
}

fn miss(entry: &Arc<Entry>, why: String) -> NearMiss {
    NearMiss { entry: entry.clone(), why }
}

fn distance(entry: &Entry, head: &RequestHead) -> Distance {
    if entry.conditions.path.fits(head.path()) {
        return if entry.conditions.rest_fits(head) { Distance::Fits } else { Distance::PathFits };
    }
    let pairs = entry.conditions.path.text().bytes().zip(head.path().bytes());
    Distance::Apart(Reverse(pairs.take_while(|(a, b)| a == b).count()))
}

fn why_not(entry: &Entry, head: &RequestHead, winner: Option<&Entry>) -> String {
    match (entry.conditions.unmet(head), winner) {
        (Some(unmet), _) => unmet.to_string(),
        (None, Some(winner)) if winner.precedence.path != entry.precedence.path => {
            format!("fits too, but loses: {} is more specific", winner.path_text())
        }
        (None, Some(winner)) => {
            let reason = winner.precedence.wins_because(&entry.precedence);
            format!("fits too, but loses to {}: {reason}", winner.rule.ir.id)
        }
        (None, None) => "fits".to_owned(),
    }
}
