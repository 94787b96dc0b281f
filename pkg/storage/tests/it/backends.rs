//! Which stores the suite runs over.

mod memory {
    use std::sync::Arc;

    use rkube_storage::memory::MemoryStorage;

    use crate::conformance::{Opened, suite};

    async fn open() -> Opened {
        Opened { store: Arc::new(MemoryStorage::new()), _keep: Box::new(()) }
    }

    suite!(open);
}

mod embedded {
    use std::sync::Arc;

    use rkube_storage::embedded::{EmbeddedOptions, EmbeddedStorage};

    use crate::conformance::{Opened, suite};

    async fn open() -> Opened {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStorage::open(directory.path(), EmbeddedOptions::default()).await.unwrap();
        Opened { store: Arc::new(store), _keep: Box::new(directory) }
    }

    suite!(open);
}

/// Small files, so that everything rolls over, and a store that was opened again after it was used.
mod embedded_after_reopen {
    use std::sync::Arc;

    use rkube_storage::embedded::{EmbeddedOptions, EmbeddedStorage};

    use crate::conformance::{Opened, Store, create, delete, suite, update};

    async fn open() -> Opened {
        let directory = tempfile::tempdir().unwrap();
        let options = || EmbeddedOptions { segment_bytes: Some(64 * 1024), ..EmbeddedOptions::default() };
        for round in 0..3 {
            let embedded = Arc::new(EmbeddedStorage::open(directory.path(), options()).await.unwrap());
            let store: Store = embedded.clone();
            for n in 0..40 {
                let key = format!("/used/{round}/{n}");
                let created = create(&store, &key, &"x".repeat(5000)).await;
                let updated = update(&store, &key, "y", created).await;
                if n % 2 == 0 {
                    let deleted = delete(&store, &key, updated).await;
                    store.compact(deleted).await.unwrap();
                }
            }
            if round == 1 {
                embedded.close().await.unwrap();
            }
        }
        let store = EmbeddedStorage::open(directory.path(), options()).await.unwrap();
        Opened { store: Arc::new(store), _keep: Box::new(directory) }
    }

    suite!(open);
}
