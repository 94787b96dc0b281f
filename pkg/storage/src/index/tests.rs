//! The life of keys in the index, as text.

use expect_test::{Expect, expect};

use super::*;

/// Runs commands like `put a`, `del a`, `compact 3` and prints what the index then holds.
fn check(commands: &str, expected: Expect) {
    let mut index = Index::<String>::default();
    let mut out = String::new();
    for command in commands.split(',').map(str::trim) {
        let (verb, argument) = command.split_once(' ').unwrap_or((command, ""));
        match verb {
            "put" => {
                let revision = index.current().next();
                index.apply(Arc::from(argument), revision, Some(format!("{argument}{}", revision.0)));
            }
            "del" => {
                let revision = index.current().next();
                index.apply(Arc::from(argument), revision, None);
            }
            "compact" => {
                index.compact(Revision(argument.parse().unwrap())).unwrap();
                let (dropped, more) = index.drop_history(usize::MAX);
                assert!(!more);
                out += &format!("dropped {dropped:?}\n");
            }
            "list" => {
                let at = argument.parse().ok().map(Revision);
                match index.page(&ListRange { at, ..ListRange::default() }) {
                    Ok((items, revision, _)) => {
                        let items: Vec<_> = items.iter().map(|item| item.value.as_str()).collect();
                        out += &format!("at {}: {items:?}\n", revision.0);
                    }
                    Err(error) => out += &format!("{error}\n"),
                }
            }
            "changes" => match index.replay("", Revision(argument.parse().unwrap()), usize::MAX) {
                Ok(replay) => {
                    for change in replay.changes {
                        out += &format!("{} {}: {:?}\n", change.revision.0, change.key, change.value);
                    }
                }
                Err(error) => out += &format!("{error}\n"),
            },
            other => panic!("unknown command {other}"),
        }
    }
    expected.assert_eq(&out);
}

#[test]
fn reads_at_every_revision_until_compacted() {
    check(
        "put a, put b, put a, del b, put b, list 1, list 2, list 3, list 4, list, compact 4, list 3, list 4, list 5",
        expect![[r#"
            at 1: ["a1"]
            at 2: ["a1", "b2"]
            at 3: ["a3", "b2"]
            at 4: ["a3"]
            at 5: ["a3", "b5"]
            dropped ["a1", "b2"]
            revision 3 is compacted, the oldest kept is 4
            at 4: ["a3"]
            at 5: ["a3", "b5"]
        "#]],
    );
}

#[test]
fn a_compacted_deletion_leaves_nothing_and_one_after_it_stays() {
    check(
        "put a, del a, compact 2, put a, del a, put a, compact 4, changes 4, list 4, list",
        expect![[r#"
            dropped ["a1"]
            dropped ["a3"]
            5 a: Some("a5")
            at 4: []
            at 5: ["a5"]
        "#]],
    );
}

#[test]
fn changes_are_kept_until_compacted() {
    check(
        "put a, put a, del a, put b, put a, changes 0, compact 2, changes 2, changes 1, changes 6",
        expect![[r#"
            1 a: Some("a1")
            2 a: Some("a2")
            3 a: None
            4 b: Some("b4")
            5 a: Some("a5")
            dropped ["a1"]
            3 a: None
            4 b: Some("b4")
            5 a: Some("a5")
            revision 1 is compacted, the oldest kept is 2
            revision 6 is in the future, the newest is 5
        "#]],
    );
}
