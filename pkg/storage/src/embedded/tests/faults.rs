//! Crashes, failing devices and flipped bits.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::sim::{Fault, SimDisk};
use super::*;

/// Runs the workload until something fails; what was acknowledged, and the operation that was not.
async fn run_until_failure(disk: &SimDisk, workload: &[Operation]) -> (Model, Option<Operation>) {
    let mut model = Model::default();
    let Ok(storage) = open(disk, small()) else { return (model, None) };
    for operation in workload {
        if model.run(&storage, operation).await.is_err() {
            return (model, Some(operation.clone()));
        }
    }
    (model, None)
}

/// The store must hold what was acknowledged; the last operation may have happened too.
async fn check_recovered(disk: &SimDisk, model: &Model, in_doubt: Option<&Operation>, context: &str) {
    let storage = open(disk, small()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let possible: Vec<Model> =
        [Some(model.clone()), in_doubt.map(|operation| model.with(operation))].into_iter().flatten().collect();
    let mut holds = None;
    for model in possible {
        if model.compare(&storage).await.unwrap_or_else(|error| panic!("{context}: {error}")) {
            holds = Some(model);
        }
    }
    let Some(mut model) = holds else {
        panic!("{context}: not what was acknowledged, {} changes up to {:?}", model.changes.len(), model.revision)
    };
    storage.verify().await.unwrap_or_else(|error| panic!("{context}: {error}"));
    // It also goes on working.
    for operation in operations(7, 12) {
        model.run(&storage, &operation).await.unwrap_or_else(|error| panic!("{context}: {operation:?}: {error}"));
    }
    drop(storage);
    let storage = open(&disk.after_kill(), small()).unwrap_or_else(|error| panic!("{context}, again: {error}"));
    assert!(model.compare(&storage).await.unwrap(), "{context}, again");
}

#[tokio::test]
async fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    let workload = operations(1, 90);
    let all = SimDisk::default().with_fault(None);
    let (_, failed) = run_until_failure(&all, &workload).await;
    assert_eq!(failed, None);
    assert!(all.operations() > 200, "{} operations exercise little", all.operations());
    for at in 0..all.operations() {
        let disk = SimDisk::default().with_fault(Some(Fault::Crash(at)));
        let (model, in_doubt) = run_until_failure(&disk, &workload).await;
        for seed in 0..3 {
            let context = format!("crash at operation {at}, power loss seed {seed}");
            check_recovered(&disk.after_power_loss(seed), &model, in_doubt.as_ref(), &context).await;
        }
        check_recovered(&disk.after_kill(), &model, in_doubt.as_ref(), &format!("kill at operation {at}")).await;
    }
}

#[tokio::test]
async fn a_crash_while_recovering_is_recovered_from() {
    let workload = operations(2, 60);
    let disk = SimDisk::default();
    let (model, _) = run_until_failure(&disk, &workload).await;
    let torn = SimDisk::default().with_fault(Some(Fault::Crash(150)));
    let (torn_model, in_doubt) = run_until_failure(&torn, &workload).await;
    for (disk, model, in_doubt) in [(disk, model, None), (torn, torn_model, in_doubt)] {
        for seed in 0..4 {
            for at in 0..8 {
                let again = disk.after_power_loss(seed).with_fault(Some(Fault::Crash(at)));
                drop(open(&again, small()));
                let context = format!("crash at operation {at} of recovery, seed {seed}");
                check_recovered(&again.after_power_loss(seed), &model, in_doubt.as_ref(), &context).await;
            }
        }
    }
}

#[tokio::test]
async fn after_a_device_error_nothing_is_acknowledged_and_reads_go_on() {
    let workload = operations(3, 60);
    let all = SimDisk::default().with_fault(None);
    run_until_failure(&all, &workload).await;
    for at in 0..all.operations() {
        let disk = SimDisk::default().with_fault(Some(Fault::Io(at)));
        let context = format!("device error at operation {at}");
        let Ok(storage) = open(&disk, small()) else { continue };
        let mut model = Model::default();
        let mut in_doubt = None;
        for operation in &workload {
            let before = model.clone();
            match model.run(&storage, operation).await {
                Ok(()) if in_doubt.is_some() && before != model => panic!("{context}: a write after the failure"),
                Ok(()) => {}
                Err(StorageError::Unknown(_)) if in_doubt.is_none() => in_doubt = Some(operation.clone()),
                Err(StorageError::Unavailable(_)) => {
                    in_doubt.get_or_insert(Operation::Compact);
                }
                Err(error) => panic!("{context}: {error}"),
            }
        }
        assert!(model.compare(&storage).await.unwrap(), "{context}: reads after it");
        drop(storage);
        check_recovered(&disk.after_kill(), &model, in_doubt.as_ref(), &context).await;
        check_recovered(&disk.after_power_loss(at), &model, in_doubt.as_ref(), &context).await;
    }
}

#[tokio::test]
async fn no_space_at_any_operation_is_recovered_from_without_a_restart() {
    let workload = operations(4, 60);
    let all = SimDisk::default().with_fault(None);
    run_until_failure(&all, &workload).await;
    for at in 0..all.operations() {
        let disk = SimDisk::default().with_fault(Some(Fault::Full(at)));
        let context = format!("no space at operation {at}");
        let Ok(storage) = open(&disk, small()) else { continue };
        let mut model = Model::default();
        let mut failures = Vec::new();
        for operation in &workload {
            match model.run(&storage, operation).await {
                Ok(()) => {}
                // Both did not happen, as the running store sees it.
                Err(error @ (StorageError::Full(_) | StorageError::Unknown(_))) => {
                    failures.push((operation.clone(), error))
                }
                Err(error) => panic!("{context}: {error}"),
            }
        }
        // The next write settles what an unknown outcome left open.
        let last = Operation::Put("/registry/last".to_owned(), Bytes::from_static(b"last"));
        if let Err(error) = model.run(&storage, &last).await {
            failures.push((last.clone(), error));
            model.run(&storage, &last).await.unwrap();
        }
        assert!(failures.len() <= 1, "{context}: {failures:?}");
        assert!(model.compare(&storage).await.unwrap(), "{context}");
        drop(storage);
        check_recovered(&disk.after_kill(), &model, None, &context).await;
        check_recovered(&disk.after_power_loss(at), &model, None, &context).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_is_never_a_wrong_answer() {
    let mut rng = StdRng::seed_from_u64(5);
    for (count, close) in [(25, false), (90, false), (90, true)] {
        let disk = SimDisk::default();
        let mut model = Model::default();
        let storage = open(&disk, small()).unwrap();
        for operation in &operations(6, count) {
            model.run(&storage, operation).await.unwrap();
        }
        if close {
            storage.close().await.unwrap();
        }
        drop(storage);
        let mut detected = 0;
        let sizes = disk.sizes();
        for _ in 0..700 {
            let (name, size) = &sizes[rng.random_range(0..sizes.len())];
            let (byte, bit) = (rng.random_range(0..*size), rng.random_range(0..8));
            let damaged = disk.after_kill();
            damaged.flip(name, byte, bit);
            let context = format!("bit {bit} of byte {byte} of {name}");
            let found = match open(&damaged, small()) {
                Ok(storage) => match model.compare(&storage).await {
                    Ok(same) => {
                        assert!(same, "{context}: a wrong answer");
                        storage.verify().await
                    }
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            match found {
                Ok(()) => {}
                Err(StorageError::Corrupt { .. }) => detected += 1,
                Err(error) => panic!("{context}: {error}"),
            }
        }
        assert!(detected > 300, "only {detected} of 700 were noticed");
    }
}

#[tokio::test]
async fn an_unfinished_write_is_cut_off_at_any_length() {
    let disk = SimDisk::default();
    let mut model = Model::default();
    let storage = open(&disk, small()).unwrap();
    let workload = operations(8, 8);
    for operation in &workload {
        model.run(&storage, operation).await.unwrap();
    }
    let before = disk.sizes();
    let last = Operation::Put("/registry/last".to_owned(), Bytes::from(vec![b'z'; 700]));
    let mut with_last = model.clone();
    with_last.run(&storage, &last).await.unwrap();
    drop(storage);
    let (name, whole) = disk.sizes().last().cloned().unwrap();
    let (_, start) = before.last().cloned().unwrap();
    assert!(start < whole);
    for len in start..whole {
        let torn = disk.after_kill();
        let file = crate::embedded::disk::Disk::open(&torn, &name).unwrap();
        file.truncate(len as u64).unwrap();
        let storage = open(&torn, small()).unwrap_or_else(|error| panic!("{len} of {whole}: {error}"));
        assert!(model.compare(&storage).await.unwrap(), "{len} of {whole}");
    }
}
