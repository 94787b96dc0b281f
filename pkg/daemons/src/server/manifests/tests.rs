//! Files that come, change and go, against an API in memory.

use expect_test::{Expect, expect};
use rkube_api::k8s::core::v1::ConfigMap;
use rkube_apimachinery::clock::{FakeClock, SharedClock};
use rkube_apimachinery::random;
use rkube_apimachinery::status::ApiStatus;
use rkube_client::fake::FakeApi;
use tempfile::TempDir;

use super::*;

struct World {
    api: FakeApi,
    clock: SharedClock,
    folder: TempDir,
    stop: CancellationToken,
}

impl World {
    fn new() -> Self {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap()).shared();
        let api = FakeApi::new(clock.clone());
        Self { api, clock, folder: tempfile::tempdir().unwrap(), stop: CancellationToken::new() }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    /// What one pass of a server that has just started changes, without the events.
    async fn pass_of(&self, server: &str, disable: &[&str], expected: Expect) {
        let client = Client::new(self.api.connect(), self.clock.clone(), random::SeededRandom::shared(1));
        let settings = Settings {
            folder: self.folder.path().to_owned(),
            disable: disable.iter().map(|&name| name.to_owned()).collect(),
            server: server.to_owned(),
        };
        let is_done = Deployer::new(settings, client, self.stop.clone()).pass().await;
        let writes =
            self.api.take_actions().into_iter().filter(|action| action.is_write() && action.resource != "events");
        let mut shown: String =
            writes.map(|action| format!("{} {} {}\n", action.verb, action.resource, action.name)).collect();
        if !is_done {
            shown.push_str("and something is left to be done\n");
        }
        expected.assert_eq(&shown);
    }

    async fn pass(&self, expected: Expect) {
        self.pass_of("one", &[], expected).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const TWO: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n";
const ONE: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {changed: \"yes\"}\n";

#[tokio::test]
async fn files_come_change_and_go() {
    let world = World::new();
    world.write("web.yaml", TWO);
    world
        .pass(expect![[r#"
            patch configmaps addon-web
            patch namespaces team
            patch configmaps a
            patch configmaps addon-web
        "#]])
        .await;
    // Also after a restart.
    world.pass(expect![""]).await;
    world.write("web.yaml", ONE);
    world
        .pass(expect![[r#"
            patch configmaps addon-web
            patch configmaps a
            delete namespaces team
            patch configmaps addon-web
        "#]])
        .await;
    assert_eq!(world.api.get::<ConfigMap>("default", "a").unwrap().data.as_ref().unwrap()["changed"], "yes");
    world.remove("web.yaml");
    world
        .pass(expect![[r#"
            delete configmaps a
            delete configmaps addon-web
        "#]])
        .await;
    world.pass(expect![""]).await;
}

#[tokio::test]
async fn a_disabled_addon_is_taken_away_and_a_skipped_one_is_left() {
    let world = World::new();
    world.write("web.yaml", ONE);
    world
        .pass(expect![[r#"
            patch configmaps addon-web
            patch configmaps a
            patch configmaps addon-web
        "#]])
        .await;
    world.write("web.yaml.skip", "");
    world.write("web.yaml", TWO);
    world.pass(expect![""]).await;
    world
        .pass_of(
            "one",
            &["web"],
            expect![[r#"
            delete configmaps a
            delete configmaps addon-web
        "#]],
        )
        .await;
}

#[tokio::test]
async fn a_server_without_the_file_leaves_another_servers_addon() {
    let world = World::new();
    world.write("web.yaml", ONE);
    world
        .pass(expect![[r#"
            patch configmaps addon-web
            patch configmaps a
            patch configmaps addon-web
        "#]])
        .await;
    world.remove("web.yaml");
    world.pass_of("two", &[], expect![""]).await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_forgotten_by_nobody() {
    let world = World::new();
    world.write("bad.yaml", "apiVersion: v1\nkind: [\n");
    world.write("web.yaml", ONE);
    world.api.react(|action| (action.name == "a").then(|| ApiStatus::internal("no".to_owned())));
    world
        .pass(expect![[r#"
            patch configmaps addon-web
            patch configmaps a
            and something is left to be done
        "#]])
        .await;
    world.api.clear_reactions();
    // The file goes before its object could be made for sure.
    world.remove("web.yaml");
    world.remove("bad.yaml");
    world
        .pass(expect![[r#"
            delete configmaps a
            delete configmaps addon-web
        "#]])
        .await;
}
