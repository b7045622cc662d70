//! Changes by the admin server: files, what is served, and what is refused.

use std::fs;
use std::path::PathBuf;

use fieldgate_core::ir::PoolKey;

use super::*;
use crate::control::{Answer, What, Why};
use crate::source::Source;

/// A control task that serves a directory, without anybody who watches it.
struct Directory {
    rig: Rig,
    dir: tempfile::TempDir,
}

impl Directory {
    async fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let this = Self { rig: Rig::start_in(Some(dir.path().to_owned())), dir };
        this.look();
        this.rig.settled().await;
        this
    }

    /// The usual three, in two files.
    async fn usual() -> Self {
        let port = free_port();
        let shop = format!("# the shop\n{}# moved soon\n---\n{}", pool_at(1), route("1"));
        Self::with(&[("gateway.yaml", &gateway(&[port])), ("shop.yaml", &shop)]).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// All files, as if they had just been found.
    fn look(&self) {
        let (_, update) = Source::open(&[self.dir.path().to_owned()]).unwrap();
        self.rig.control.send(Event::Source(update));
    }

    async fn ask(&self, if_generation: Option<u64>, what: What) -> Answer {
        self.rig.control.change(Who::signal("test"), if_generation, what).await.unwrap()
    }

    async fn put(&self, text: &str) -> Answer {
        self.ask(None, What::Put(text.to_owned())).await
    }

    async fn delete(&self, kind: &'static str, name: &str) -> Answer {
        let key = ObjectKey { kind, namespace: "default".into(), name: name.into() };
        self.ask(None, What::Delete(key)).await
    }

    /// The ports of the pool's endpoints as workers see them.
    fn served(&self) -> Vec<u16> {
        let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "vms".into() };
        let snapshot = Arc::clone(&self.rig.shared.published.load().snapshot);
        let pool = snapshot.config.pools.get(&PoolKey { object, port: 0 });
        match pool.map(|pool| &pool.endpoints) {
            Some(Endpoints::Static(endpoints)) => endpoints.iter().map(|e| e.address.port()).collect(),
            _ => Vec::new(),
        }
    }

    fn generation(&self) -> u64 {
        *self.rig.generations.borrow()
    }
}

fn pool_at(port: u16) -> String {
    pool(&format!("endpoints: [{{address: 127.0.0.1, port: {port}}}]"))
}

fn results(answer: &Answer) -> Vec<(String, &'static str)> {
    let changed = answer.as_ref().unwrap_or_else(|refused| panic!("{refused:?}"));
    changed.objects.iter().map(|(key, verb, _)| (key.to_string(), *verb)).collect()
}

fn why(answer: &Answer) -> Why {
    answer.as_ref().expect_err("it is refused").why
}

#[tokio::test]
async fn a_change_is_in_force_and_in_its_file_when_it_is_answered() {
    let directory = Directory::usual().await;
    assert_eq!((directory.served(), directory.generation()), (vec![1], 1));
    let answer = directory.put(&pool_at(2)).await;
    assert_eq!(results(&answer), [("Pool default/vms".to_owned(), "configured")]);
    assert_eq!((directory.served(), directory.generation()), (vec![2], 2));
    let expected = format!("# the shop\n{}# moved soon\n---\n{}", pool_at(2), route("1"));
    assert_eq!(directory.text("shop.yaml"), expected);
    // The watcher finds what was written, and that is nothing new; nor is the same once more.
    directory.look();
    assert_eq!(results(&directory.put(&pool_at(2)).await)[0].1, "unchanged");
    assert_eq!(directory.generation(), 2);
    let changes = directory.rig.view.load().changes;
    assert_eq!((changes.accepted, changes.refused), (2, 0));
}

#[tokio::test]
async fn a_route_gives_its_conditions_back() {
    let directory = Directory::usual().await;
    let changed = directory.put(&route("7")).await.unwrap();
    assert_eq!((changed.generation, changed.published), (2, true));
    let accepted = changed.statuses[0].conditions.iter().find(|c| c.kind == "Accepted").unwrap();
    assert!(accepted.status);
}

#[tokio::test]
async fn of_wrong_documents_none_is_taken() {
    let directory = Directory::usual().await;
    let before = directory.text("shop.yaml");
    let nowhere = route("1").replace("name: vms", "name: vm");
    for wrong in [nowhere.as_str(), "kind: [", &pool_at(3).replace("endpoints", "endpoint")] {
        let answer = directory.put(&format!("{}---\n{wrong}", pool_at(2).replace("vms", "other"))).await;
        assert_eq!(why(&answer), Why::Invalid, "{wrong}");
        assert!(!answer.unwrap_err().diagnostics.is_empty(), "{wrong}");
        assert_eq!((directory.served(), directory.generation()), (vec![1], 1), "{wrong}");
        assert_eq!(directory.text("shop.yaml"), before, "{wrong}");
        assert!(!directory.path("api").exists(), "{wrong}");
    }
    assert_eq!(directory.rig.view.load().diagnostics, []);
    assert_eq!(directory.rig.view.load().changes.refused, 3);
}

#[tokio::test]
async fn new_objects_have_files_of_their_own_and_go_with_them() {
    let directory = Directory::usual().await;
    let other = pool_at(9).replace("vms", "other");
    let both = format!("{other}---\n{}", route("1").replace("name: vms", "name: other"));
    let created = directory.put(&both).await;
    assert_eq!(results(&created)[0], ("Pool default/other".to_owned(), "created"));
    assert_eq!(directory.text("api/pool-default-other.yaml"), other);
    // As after a start.
    let again = Directory { rig: Rig::start_in(None), dir: directory.dir };
    again.look();
    again.rig.settled().await;
    assert_eq!(again.rig.shared.published.load().snapshot.config.pools.len(), 2);
    let directory = Directory { rig: Rig::start_in(Some(again.dir.path().to_owned())), dir: again.dir };
    directory.look();
    let deleted = directory.delete("Pool", "other").await.unwrap();
    assert_eq!(deleted.objects[0].1, "deleted");
    assert!(!directory.path("api/pool-default-other.yaml").exists());
    assert_eq!(deleted.diagnostics.len(), 1, "the route that used it: {:?}", deleted.diagnostics);
    assert_eq!(why(&directory.delete("Pool", "other").await), Why::NotFound);
}

#[tokio::test]
async fn an_edit_that_nobody_has_noticed_is_kept() {
    let directory = Directory::usual().await;
    let edited = directory.text("shop.yaml").replace("weight: 1", "weight: 5");
    fs::write(directory.path("shop.yaml"), edited).unwrap();
    directory.put(&pool_at(2)).await.unwrap();
    assert_eq!(directory.served(), [2]);
    let text = directory.text("shop.yaml");
    assert!(text.contains("weight: 5") && text.contains("port: 2"), "{text}");
    let snapshot = Arc::clone(&directory.rig.shared.published.load().snapshot);
    assert_eq!(snapshot.rules().next().unwrap().ir.backends[0].weight, 5);
    // What the watcher read before that comes late.
    directory.rig.file(&directory.path("shop.yaml").to_string_lossy(), &pool_at(1));
    directory.rig.settled().await;
    assert_eq!(directory.served(), [2]);
}

#[tokio::test]
async fn of_two_writers_that_saw_one_state_the_second_is_refused() {
    let directory = Directory::usual().await;
    let put = |port| What::Put(pool_at(port));
    assert!(directory.ask(Some(1), put(2)).await.is_ok());
    assert_eq!(why(&directory.ask(Some(1), put(3)).await), Why::Stale);
    assert_eq!(directory.served(), [2]);
}

#[tokio::test]
async fn what_cannot_be_written_is_not_in_force() {
    let directory = Directory::usual().await;
    // A file where the folder should be; permissions do not stop root.
    fs::write(directory.path("api"), "").unwrap();
    assert_eq!(why(&directory.put(&pool_at(2).replace("vms", "other")).await), Why::Failed);
    assert_eq!(directory.generation(), 1);
    assert_eq!(directory.rig.shared.published.load().snapshot.config.pools.len(), 1);
}

#[tokio::test]
async fn a_mounted_config_map_is_left_to_its_owner() {
    let directory = Directory::usual().await;
    fs::rename(directory.path("shop.yaml"), directory.path(".data")).unwrap();
    std::os::unix::fs::symlink(".data", directory.path("shop.yaml")).unwrap();
    let answer = directory.put(&pool_at(2)).await;
    assert_eq!(why(&answer), Why::Conflict);
    assert_eq!((directory.served(), directory.generation()), (vec![1], 1));
}

#[tokio::test]
async fn without_a_directory_there_is_no_place_for_new_objects() {
    let rig = Rig::start();
    rig.file("gateway.yaml", &gateway(&[free_port()]));
    let answer = rig.control.change(Who::signal("test"), None, What::Put(pool_at(1))).await.unwrap();
    assert_eq!(why(&answer), Why::Conflict);
}

#[tokio::test]
async fn what_no_text_describes_any_more_is_not_changed() {
    let directory = Directory::usual().await;
    let broken = directory.text("shop.yaml").replace("endpoints", "endpoint");
    fs::write(directory.path("shop.yaml"), &broken).unwrap();
    directory.look();
    for answer in [directory.put(&pool_at(2)).await, directory.delete("Pool", "vms").await] {
        assert_eq!(why(&answer), Why::Conflict);
        assert_eq!(directory.served(), vec![1], "the last good stays");
        assert_eq!(directory.text("shop.yaml"), broken);
    }
}

#[tokio::test]
async fn what_is_sound_alone_but_not_in_its_file_is_refused() {
    let directory = Directory::usual().await;
    let before = directory.text("shop.yaml");
    // JSON by itself; behind the comment that stands above the pool it is YAML, which has no such escapes.
    let escaped = r#"{"apiVersion": "fieldgate.dev/v1alpha1", "kind": "Pool",
        "metadata": {"name": "vms", "annotations": {"team": "\ud83d\ude80"}},
        "spec": {"endpoints": [{"address": "127.0.0.1", "port": 2}]}}"#;
    assert_eq!(why(&directory.put(escaped).await), Why::Conflict);
    assert_eq!((directory.served(), directory.text("shop.yaml")), (vec![1], before));
    assert_eq!(results(&directory.put(&pool_at(2)).await)[0].1, "configured");
}
