//! Documents to configuration: reads Kubernetes, Gateway API, Istio and Fieldgate objects from text and says,
//! for people, what is wrong with them.
//!
//! This crate does no IO: it is given texts with their names. It never decides anything about a request; that is
//! `fieldgate-core`'s.

pub mod diagnostic;
pub mod document;
pub mod edit;
pub mod kinds;
pub mod status;
pub mod store;
pub mod translate;
mod unread;
pub mod yaml;

pub use diagnostic::Diagnostic;
pub use status::ObjectStatus;
pub use store::{FileChange, Store, StoreChange};
pub use translate::{Translator, Workload};

use fieldgate_core::ir;
use translate::Translation;

/// The configuration of a gateway: documents, what they mean together, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Configuration {
    store: Store,
    translator: Translator,
    /// Policies that could not be read and have no last good version.
    unread_policies: Vec<unread::UnreadPolicy>,
    unread_backend_tls: Vec<unread::UnreadBackendTls>,
}

/// Files that are read and translated at once in the first load.
const PART: usize = 512;

/// By its look. It decides about the order of work only.
fn holds_only(file: &FileChange, wanted: &[&str]) -> bool {
    let kinds = file.text.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("kind:"));
    let mut kinds = kinds.map(str::trim).peekable();
    kinds.peek().is_some() && kinds.all(|kind| wanted.contains(&kind))
}

/// What a change of files came to.
#[derive(Debug)]
pub struct Outcome {
    /// The whole configuration.
    pub config: ir::Config,
    /// Which parts may differ from the one before.
    pub touched: ir::Touched,
    /// Everything that is wrong now.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether the configuration differs from the one before.
    pub changed: bool,
}

impl Configuration {
    /// An empty one of a gateway that stands there.
    pub fn of_gateway_at(locality: Option<ir::Locality>) -> Self {
        let mut configuration = Self::default();
        if let Some(own) = locality {
            configuration.translator.set_locality(own);
        }
        configuration
    }

    /// Says what the gateway is known by in its mesh; without it there is no `ISTIO_MUTUAL`. It counts from the next
    /// [`Configuration::apply`] on, which may be of no files.
    pub fn set_workload(&mut self, workload: Option<Workload>) {
        self.translator.set_workload(workload);
    }

    /// The same, of a gateway whose trust domain has these names.
    #[must_use]
    pub fn in_trust_domains(mut self, own: translate::TrustDomains) -> Self {
        self.translator.set_trust_domains(own);
        self
    }

    /// Takes changed files in.
    pub fn apply(&mut self, files: Vec<FileChange>) -> Outcome {
        let names: Vec<_> = files.iter().map(|f| f.name.clone()).collect();
        let Translation { mut config, touched, changed } = self.translate(files);
        self.translator.relocate(&names);
        let unread = self.store.unread_policies();
        let unread_backend_tls = self.store.unread_backend_tls();
        let changed =
            changed || unread != self.unread_policies || unread_backend_tls != self.unread_backend_tls;
        self.unread_policies = unread;
        self.unread_backend_tls = unread_backend_tls;
        let diagnostics = self.diagnostics();
        self.fail_closed(&mut config);
        Outcome { config, touched, diagnostics, changed }
    }

    /// The first load may be a hundred thousand rules, and what they are read to is much larger than what they become: so
    /// it goes in parts. What routes refer to comes first, what refers to routes last. Later every change is one: an
    /// object may move in it from one file to another.
    fn translate(&mut self, files: Vec<FileChange>) -> Translation {
        if files.len() <= PART || !self.store.has_no_files() {
            let change = self.store.apply(files);
            return self.translator.apply(&change);
        }
        let (splits, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| {
            holds_only(file, &["SplitPolicy", "TrafficPolicy", "ExternalAuthorizer", "RateLimitPolicy"])
        });
        let (routes, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| holds_only(file, &["HTTPRoute", "GRPCRoute"]));
        let change = self.store.apply(others);
        let mut whole = self.translator.apply(&change);
        let mut routes = routes.into_iter();
        let mut parts = Vec::new();
        while routes.len() > 0 {
            parts.push(routes.by_ref().take(PART).collect());
        }
        parts.push(splits);
        for part in parts.into_iter().filter(|part: &Vec<_>| !part.is_empty()) {
            let change = self.store.apply(part);
            let part = self.translator.apply(&change);
            whole = Translation {
                config: part.config,
                touched: whole.touched.and(part.touched),
                changed: whole.changed || part.changed,
            };
        }
        whole
    }

    /// A policy that nobody can read must not open a door: the gateways that it may be about refuse everything until it
    /// is mended. Where its target cannot be known, that is every gateway of its namespace. Of a RequestAuthentication that
    /// is so with tokens, where no other takes them.
    fn fail_closed(&self, config: &mut ir::Config) {
        for unread::UnreadPolicy { key, .. } in &self.unread_policies {
            let everywhere = *key.namespace == *translate::ROOT_NAMESPACE;
            let own = config.listeners.keys().filter(|l| everywhere || l.namespace == key.namespace);
            let mut listeners: std::collections::BTreeSet<_> = own.cloned().collect();
            if unread::is_guard(key.kind) {
                // It may be attached to a route of its namespace, wherever that is served.
                let routes = config.routes.values().filter(|route| route.key.namespace == key.namespace);
                listeners.extend(routes.flat_map(|route| &route.attachments).map(|a| a.listener.clone()));
            }
            let listeners: Vec<_> = listeners.into_iter().collect();
            if key.kind == kinds::Kind::RequestAuthentication.as_str() {
                let closed = translate::closed_authentication(key, listeners);
                config.authentications.insert(key.clone(), std::sync::Arc::new(closed));
                continue;
            }
            let policy = ir::Policy::closed(key.clone(), listeners);
            config.policies.insert(key.clone(), std::sync::Arc::new(policy));
        }
        for unread in &self.unread_backend_tls {
            translate::close(config, |target| unread.may_be_for(target));
        }
    }

    /// How many documents are refused now.
    pub fn refused(&self) -> usize {
        self.store.refused()
    }

    /// The files that change with these edits; nothing is changed yet.
    pub fn edited(&self, edits: &[edit::Edit]) -> Result<Vec<edit::EditedFile>, edit::Impossible> {
        edit::files(&self.store, edits)
    }

    /// The file that describes an object by a document of its own.
    pub fn file_of(&self, key: &document::ObjectKey) -> Option<std::sync::Arc<str>> {
        match self.store.place(key) {
            store::Place::One { file, .. } => Some(file),
            store::Place::Nowhere | store::Place::Elsewhere(_) => None,
        }
    }

    /// The text of a file, as it was read.
    pub fn text_of(&self, file: &str) -> Option<String> {
        self.store.text(file)
    }

    /// Everything that is wrong, in the order of file and line.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all = self.store.diagnostics();
        all.extend(self.translator.diagnostics());
        all.extend(self.unread_policies.iter().filter_map(unread::UnreadPolicy::diagnostic));
        all.sort_by(Diagnostic::by_place);
        all
    }

    /// What Gateway API reports of listeners beside conditions.
    pub fn listener_statuses(&self) -> Vec<status::ListenerStatus> {
        self.translator.listener_statuses()
    }

    /// The `metadata.generation` of the version of an object that its conditions are about.
    pub fn observed_generation(&self, key: &document::ObjectKey) -> Option<i64> {
        self.translator.observed_generation(key)
    }

    /// The status of one object, if it has one.
    pub fn status(&self, key: &document::ObjectKey) -> Option<status::ObjectStatus> {
        self.translator.status(key)
    }

    /// The status of every object that has one.
    pub fn statuses(&self) -> Vec<status::ObjectStatus> {
        self.translator.statuses()
    }
}

/// Everything that is wrong with a set of files `(name, text)`, in the order of file name and line.
///
/// This is what `fieldgate check` prints and what the golden tests compare.
pub fn check_text(files: &[(&str, &str)]) -> Vec<Diagnostic> {
    let mut configuration = Configuration::default();
    let changes = files
        .iter()
        .map(|(name, text)| FileChange { name: (*name).into(), text: Some((*text).to_owned()) })
        .collect();
    configuration.apply(changes).diagnostics
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  gatewayClassName: fieldgate\n  listeners:\n  - {name: web, protocol: HTTP, port: 8080}\n";

    fn policy(spec: &str) -> Vec<FileChange> {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n{spec}"
        );
        vec![FileChange { name: "p.yaml".into(), text: Some(text) }]
    }

    fn denies_all(outcome: &Outcome) -> bool {
        outcome.config.policies.values().any(|p| {
            p.action == ir::PolicyAction::Deny
                && p.rules == [ir::PolicyRule::default()]
                && p.listeners.len() == 1
        })
    }

    #[test]
    fn a_policy_that_cannot_be_read_closes_its_gateways_until_it_can() {
        let mut configuration = Configuration::default();
        configuration.apply(vec![FileChange { name: "g.yaml".into(), text: Some(GATEWAY.into()) }]);
        let good = "  action: DENY\n  rules:\n  - to:\n    - operation: {paths: [/admin]}\n";
        let bad = "  action: DENY\n  ruels: []\n";

        let outcome = configuration.apply(policy(bad));
        assert!(outcome.changed && denies_all(&outcome), "no version was ever good");
        let outcome = configuration.apply(policy(good));
        assert!(outcome.changed && !denies_all(&outcome));
        let outcome = configuration.apply(policy(bad));
        assert!(!denies_all(&outcome), "the last good version is in force");
        assert_eq!(outcome.config.policies.len(), 1);
    }

    #[test]
    fn a_text_that_may_be_a_policy_closes_the_gateways_too() {
        let mut configuration = Configuration::default();
        configuration.apply(vec![FileChange { name: "g.yaml".into(), text: Some(GATEWAY.into()) }]);
        let mut write = |text: &str| {
            configuration.apply(vec![FileChange { name: "p.yaml".into(), text: Some(text.into()) }])
        };
        let said = |outcome: &Outcome| outcome.diagnostics.iter().any(|d| d.reason == "UnreadablePolicy");

        let outcome = write("kind: [AuthorizationPolicy\n");
        assert!(outcome.changed && denies_all(&outcome) && said(&outcome));
        let outcome = write("kind: [HTTPRoute\n");
        assert!(outcome.changed && !denies_all(&outcome) && !said(&outcome));
        let good = policy("  action: DENY\n  rules:\n  - to:\n    - operation: {paths: [/admin]}\n");
        write(good[0].text.as_deref().unwrap());
        let outcome = write("kind: [AuthorizationPolicy\n");
        assert!(!denies_all(&outcome) && !said(&outcome), "what stood in its place is in force");
        let outcome = write("# nothing\n");
        assert_eq!(outcome.config.policies.len(), 0);
        let elsewhere = write("kind: [AuthorizationPolicy\nnamespace: prod\n");
        assert!(said(&elsewhere) && !denies_all(&elsewhere), "no gateway is in that namespace");
    }
}
