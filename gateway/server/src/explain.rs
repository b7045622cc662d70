//! What would become of a request, and why: the same lookups that workers make, told for people.
//!
//! Nothing is sent and no state of the gateway changes.

mod authorization;
mod limits;
mod request;

use std::fmt;

use fieldgate_core::Snapshot;
use fieldgate_core::ir::{BackendTarget, Sticky};
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::{AddressTable, CompiledRule};
use fieldgate_core::split::{SplitState, Why};
use serde::{Deserialize, Serialize};

pub use self::authorization::{Authorization, Considered};
pub use self::request::Question;
use crate::describe;
use crate::telemetry::backend_name;

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request, as understood.
    pub request: String,
    /// What becomes of it, in a sentence.
    pub result: String,
    /// Where it would arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The listener that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// What the policies say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// Rate limits that it counts against.
    #[serde(default)]
    pub limits: Vec<String>,
    /// The rule that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Winner>,
    /// Rules that do not, the nearest first.
    #[serde(default)]
    pub others: Vec<Miss>,
    /// What should be known about this answer.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The rule that takes the request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Winner {
    /// Its id.
    pub rule: String,
    /// Its route.
    pub route: String,
    /// The match that fits.
    pub matched: String,
    /// How a backend is chosen.
    pub split: String,
    /// Its backends.
    pub backends: Vec<BackendShare>,
    /// Who gets copies, and how many.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

/// A backend of the rule.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendShare {
    /// Its pool.
    pub backend: String,
    /// Its weight.
    pub weight: u32,
    /// What the weights sum up to.
    pub of: u64,
    /// Endpoints that can be chosen now, and all.
    pub endpoints: String,
    /// Whether this request would go there.
    pub chosen: bool,
}

/// A rule that does not take the request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// Its id.
    pub rule: String,
    /// Its match.
    pub matched: String,
    /// Why not.
    pub why: String,
}

/// Answers a question from a snapshot. `now_ms` is the clock of endpoint states.
pub fn explain(snapshot: &Snapshot, question: &Question, now_ms: u64) -> Answer {
    let mut answer = Answer {
        request: question.to_string(),
        result: String::new(),
        address: None,
        listener: None,
        authorization: None,
        limits: Vec::new(),
        rule: None,
        others: Vec::new(),
        notes: question.notes.clone(),
    };
    answer.result = walk(snapshot, question, now_ms, &mut answer);
    answer
}

/// Fills the answer in as far as the request gets, and returns how it ends.
fn walk(snapshot: &Snapshot, question: &Question, now_ms: u64, answer: &mut Answer) -> String {
    let table = match find_address(snapshot, question) {
        Ok((table, note)) => {
            answer.notes.extend(note);
            table
        }
        Err(why) => return why,
    };
    answer.address = Some(table.address.to_string());
    let host = question.head.host();
    let Some(listener) = table.listener_for(host) else {
        return format!(
            "404: no listener on {} takes the host `{host}`{}",
            table.address,
            listener_hosts(table)
        );
    };
    answer.listener = Some(listener.ir.key.to_string());
    let authorization = authorization::authorize(snapshot, listener, question, table.address);
    let refused = authorization.as_ref().filter(|a| !a.allowed).map(|a| a.why.clone());
    answer.authorization = authorization;
    let found = listener.table.explain(&question.head);
    answer.others = found
        .others
        .iter()
        .map(|miss| Miss {
            rule: miss.entry.rule.ir.id.to_string(),
            matched: miss.entry.path_text(),
            why: miss.why.clone(),
        })
        .collect();
    let taken = found.winner.as_deref().map(|entry| &*entry.rule.ir);
    answer.limits = limits::limits(snapshot, listener, taken, question, table.address);
    let chosen = found.winner.as_deref().map(|entry| {
        let (winner, result) = take(snapshot, entry, question, now_ms);
        answer.rule = Some(winner);
        result
    });
    match (refused, chosen) {
        (Some(why), _) => format!("403: {why}"),
        (None, Some(result)) => result,
        (None, None) if !found.host_found => {
            format!("404: no route is attached to {} for the host `{host}`", listener.ir.key)
        }
        (None, None) => "404: no rule takes this request".to_owned(),
    }
}

/// The address that a client would reach. Without a port in the URL the well-known one is meant; where nothing listens
/// there (a port is often mapped on the way), another address of the same scheme answers, with a note.
fn find_address<'s>(
    snapshot: &'s Snapshot,
    question: &Question,
) -> Result<(&'s AddressTable, Option<String>), String> {
    let tables: Vec<_> = snapshot.addresses().collect();
    let host = question.head.host();
    let fits = |t: &AddressTable| t.tls == question.head.https && t.listener_for(host).is_some();
    let on_port = |t: &AddressTable| t.address.port() == question.port;
    if let Some(table) = tables.iter().find(|t| on_port(t) && fits(t)) {
        return Ok((table, None));
    }
    if let Some(table) = tables.iter().find(|t| on_port(t)) {
        let speaks = if table.tls { "TLS" } else { "plain HTTP" };
        let note =
            (table.tls != question.head.https).then(|| format!("port {} speaks {speaks}", question.port));
        return Ok((table, note));
    }
    if !question.port_given
        && let Some(table) = tables.iter().find(|t| fits(t))
    {
        let note = format!("nothing listens on port {}; answered for {}", question.port, table.address);
        return Ok((table, Some(note)));
    }
    if tables.is_empty() {
        return Err("refused: nothing listens, as no Gateway has a usable listener".to_owned());
    }
    let ports: Vec<_> = tables
        .iter()
        .map(|t| format!("{} ({})", t.address.port(), if t.tls { "https" } else { "http" }))
        .collect();
    Err(format!("refused: nothing listens on port {}; ports are {}", question.port, ports.join(", ")))
}

fn listener_hosts(table: &AddressTable) -> String {
    let hosts: Vec<_> =
        table.listeners.iter().filter_map(|l| l.ir.hostname.as_ref()).map(ToString::to_string).collect();
    if hosts.is_empty() { String::new() } else { format!("; hosts are {}", hosts.join(", ")) }
}

fn take(snapshot: &Snapshot, entry: &Entry, question: &Question, now_ms: u64) -> (Winner, String) {
    let rule = &entry.rule;
    let choice = rule.split.choose(&mut SplitState::default(), &question.head, question.client, 0);
    let certain = choice.as_ref().filter(|c| c.why != Why::Weighted).map(|c| c.backend);
    let backends: Vec<_> = rule
        .split
        .desired()
        .enumerate()
        .map(|(index, (weight, of))| BackendShare {
            backend: backend_name(&rule.ir, index),
            weight,
            of,
            endpoints: endpoints(snapshot, rule, index, now_ms),
            chosen: certain == Some(index),
        })
        .collect();
    let result = match (&choice, certain) {
        _ if has_redirect(rule) => "answered by a redirect filter of the rule".to_owned(),
        (None, _) if rule.ir.backends.is_empty() => "500: the rule has no backends".to_owned(),
        (None, _) => "500: all weights of the rule are 0".to_owned(),
        (Some(_), Some(index)) => match &rule.backends[index].pool {
            Ok(_) => format!("sent to {}", backends[index].backend),
            Err(why) => format!("500: the backend cannot be used: {why}"),
        },
        (Some(_), None) => "sent to one of the backends, by weight".to_owned(),
    };
    let winner = Winner {
        rule: rule.ir.id.to_string(),
        route: rule.route.to_string(),
        matched: entry.path_text(),
        split: split_text(rule, choice.map(|c| c.why)),
        backends,
        mirrors: mirrors(rule),
    };
    (winner, result)
}

fn mirrors(rule: &CompiledRule) -> Vec<String> {
    let of_backends = rule.backends.iter().enumerate().flat_map(|(index, backend)| {
        backend.mirrors.iter().map(move |mirror| (mirror, Some(backend_name(&rule.ir, index))))
    });
    let all = rule.mirrors.iter().map(|mirror| (mirror, None)).chain(of_backends);
    all.map(|(mirror, of)| {
        let share = match (mirror.ir.numerator, mirror.ir.denominator) {
            (all, of) if all == of => "every request".to_owned(),
            (some, of) => format!("{some} of {of} requests"),
        };
        let of = of.map(|backend| format!(" of those for {backend}")).unwrap_or_default();
        match (&mirror.ir.backend, &mirror.pool) {
            (BackendTarget::Pool(key), Ok(_)) => format!("{key}: {share}{of}"),
            (BackendTarget::Invalid(why), _) | (_, Err(why)) => format!("none: {why}"),
        }
    })
    .collect()
}

fn has_redirect(rule: &CompiledRule) -> bool {
    rule.ir.filters.iter().any(|f| matches!(f, fieldgate_core::ir::Filter::Redirect(_)))
}

fn endpoints(snapshot: &Snapshot, rule: &CompiledRule, index: usize, now_ms: u64) -> String {
    let slot = match &rule.backends[index].pool {
        Ok(slot) => *slot,
        Err(why) => return why.to_string(),
    };
    let Some(pool) = snapshot.pool(slot) else { return "there is no such pool".to_owned() };
    let (usable, balance) = (describe::usable(pool, now_ms), describe::balance(&pool.ir.balance));
    let tls = pool.ir.tls.as_deref().map(|tls| format!("; TLS: {}", describe::upstream_tls(tls)));
    let tls = tls.unwrap_or_default();
    format!("{usable} of {} endpoints usable; {balance}{tls}", pool.endpoints.len())
}

fn split_text(rule: &CompiledRule, why: Option<Why>) -> String {
    let policy = rule.split.policy();
    let by = policy.and_then(|p| p.sticky.as_ref()).map(|sticky| match sticky {
        Sticky::Header(name) => format!("sticky by header {name}"),
        Sticky::Cookie(name) => format!("sticky by cookie {name}"),
        Sticky::IssuedCookie { name, .. } => format!("sticky by cookie {name}, which the gateway issues"),
        Sticky::Source => "sticky by client address".to_owned(),
    });
    let how = match why {
        None | Some(Why::Weighted) => "by weight",
        Some(Why::Only) => "only one backend has a weight",
        Some(Why::Sticky) => "the user's key decides",
        Some(Why::ExistingSession) => "the session stays where it is",
    };
    let name = policy.map(|p| format!(" (SplitPolicy {})", p.name)).unwrap_or_default();
    by.map_or_else(|| how.to_owned(), |by| format!("{by}: {how}")) + &name
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  => {}", self.request, self.result)?;
        if let Some(address) = &self.address {
            writeln!(f, "\naddress    {address}")?;
        }
        if let Some(listener) = &self.listener {
            writeln!(f, "listener   {listener}")?;
        }
        if let Some(authorization) = &self.authorization {
            let verdict = if authorization.allowed { "allowed" } else { "refused" };
            writeln!(f, "policies   {verdict}: {}", authorization.why)?;
            authorization.write_details(f)?;
        }
        for limit in &self.limits {
            writeln!(f, "counted    {limit}")?;
        }
        if let Some(rule) = &self.rule {
            writeln!(f, "rule       {} of {}\n           {}", rule.rule, rule.route, rule.matched)?;
            writeln!(f, "split      {}", rule.split)?;
            for b in &rule.backends {
                let mark = if b.chosen { "->" } else { "  " };
                writeln!(
                    f,
                    "        {mark} {}  weight {} of {}, {}",
                    b.backend, b.weight, b.of, b.endpoints
                )?;
            }
            for mirror in &rule.mirrors {
                writeln!(f, "mirror     {mirror}")?;
            }
        }
        if !self.others.is_empty() {
            writeln!(f, "\nnot taken, the nearest first:")?;
        }
        for miss in &self.others {
            writeln!(f, "  {}  {}\n      {}", miss.rule, miss.matched, miss.why)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
