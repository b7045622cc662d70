//! The status of objects as Gateway API reports it: conditions with reasons.

use serde::Serialize;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What of the object it is about: a listener's name, a parent's name, or nothing for the object itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// `Accepted`, `ResolvedRefs`, `Programmed`, `Conflicted`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// Gateway API's reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// All conditions of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectStatus {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// What Gateway API reports of a listener beside its conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// The Gateway's namespace.
    pub namespace: String,
    /// The Gateway's name.
    pub gateway: String,
    /// The listener's name.
    pub listener: String,
    /// How many routes are attached.
    pub attached_routes: usize,
    /// The kinds of routes that may attach.
    pub supported_kinds: Vec<&'static str>,
}
