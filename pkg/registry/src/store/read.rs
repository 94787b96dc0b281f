//! Reads: one object, a page of a list, a watch. All from the watch cache.
//!
//! A read without a resourceVersion is consistent: it waits until the cache has everything that storage
//! had when the read began.
//!
//! Behaves as `apiserver/pkg/storage/{interfaces,continue}.go`, `storage/cacher/{cacher,delegator}.go` and
//! `storage/etcd3/{store,errors}.go`, v1.36.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rkube_api::StoredObject;
use rkube_apimachinery::random;
use rkube_apimachinery::status::ApiStatus;
use rkube_storage::{ListRange, Revision, StorageError};
use serde::{Deserialize, Serialize};

use crate::cache::Snapshot;
use crate::cache::dispatch::Subscription;
use crate::context::RequestContext;
use crate::options::{GetOptions, ListOptions};
use crate::selector::Filter;
use crate::store::core::storage_status;
use crate::store::watch::{Start, WatchParts, Watcher};
use crate::store::{ListPage, Store, Target};

/// How long a read waits for a version that the cache does not have yet.
const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(3);

/// A watch that names no timeout ends after this times 1 to 2, so that watches do not all end at once.
const WATCH_TIMEOUT_MIN: Duration = Duration::from_secs(1800);

/// Keys per request when a page is read from storage's history.
const HISTORY_PAGE: usize = 500;

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. \
     You can start a new list without the continue parameter, or use the continue token in this response to \
     retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - \
     objects that were created, modified, or deleted between the time the first chunk was returned and now may \
     show up in the list.";
const LIST_EXPIRED: &str = "The resourceVersion for the provided list is too old.";

/// Where a list goes on, as kube-apiserver encodes it.
#[derive(Serialize, Deserialize)]
struct ContinueToken {
    #[serde(default)]
    v: String,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";
/// The revision of a token that goes on at whatever is newest.
const CONTINUE_INCONSISTENT: i64 = -1;

/// The state a list shows, and where it begins.
struct Scan<'a> {
    filter: &'a Filter,
    /// Position in the order of keys: the bytes of `namespace/name`.
    start: Vec<u8>,
    /// 0 for all.
    limit: usize,
}

impl Store {
    pub(crate) async fn get_object(
        &self,
        context: &RequestContext,
        target: &Target,
        options: &GetOptions,
    ) -> Result<Arc<StoredObject>, ApiStatus> {
        match parse_version(&options.resource_version)? {
            None => self.wait_consistent(context).await?,
            Some(0) => {}
            Some(version) => self.wait_for(context, version).await?,
        }
        let found = self.core.cache.get(&self.key(target));
        let object = found.ok_or_else(|| ApiStatus::not_found(&self.row.group_resource(), &target.name))?;
        self.version.convert_stored(&object)
    }

    pub(crate) async fn list_objects(
        &self,
        context: &RequestContext,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<ListPage, ApiStatus> {
        options.validate()?;
        let filter = self.filter(namespace, options)?;
        let mut page = self.list_stored(context, &filter, options).await?;
        self.core.shared.metrics.listed(&self.row, page.items.len());
        if !self.version.is_stored() {
            for item in &mut page.items {
                *item = self.version.convert_stored(item)?;
            }
        }
        Ok(page)
    }

    fn filter(&self, namespace: &str, options: &ListOptions) -> Result<Filter, ApiStatus> {
        Filter::parse(&self.row, &self.core.fields, namespace, &options.label_selector, &options.field_selector)
    }

    async fn list_stored(
        &self,
        context: &RequestContext,
        filter: &Filter,
        options: &ListOptions,
    ) -> Result<ListPage, ApiStatus> {
        let limit = usize::try_from(options.limit).unwrap_or(0);
        if !options.continue_token.is_empty() {
            return self.list_continued(context, filter, options, limit).await;
        }
        let start = filter.namespace.as_ref().map(|namespace| format!("{namespace}/").into_bytes()).unwrap_or_default();
        let scan = Scan { filter, start, limit };
        let version = parse_version(&options.resource_version)?;
        let exact = match (options.resource_version_match.as_str(), version) {
            ("Exact", Some(version)) => Some(version),
            // What clients did before there was a match parameter.
            ("", Some(version)) if version > 0 && limit > 0 => Some(version),
            _ => None,
        };
        if let Some(version) = exact {
            self.wait_for(context, version).await?;
            return self.list_at(version, &scan, false).await;
        }
        match version {
            None => self.wait_consistent(context).await?,
            Some(0) => {
                // Any state will do, and no paging: reflectors of old send a limit with version 0.
                return Ok(self.page(&self.snapshot(), &Scan { limit: 0, ..scan }));
            }
            Some(version) => self.wait_for(context, version).await?,
        }
        Ok(self.page(&self.snapshot(), &scan))
    }

    async fn list_continued(
        &self,
        context: &RequestContext,
        filter: &Filter,
        options: &ListOptions,
        limit: usize,
    ) -> Result<ListPage, ApiStatus> {
        let token = decode_continue(&options.continue_token)?;
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(ApiStatus::bad_request("specifying resource version is not allowed when using continue"));
        }
        let prefix = filter.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let scan = Scan { filter, start: format!("{prefix}{}", token.start).into_bytes(), limit };
        match u64::try_from(token.rv) {
            Ok(revision) => {
                self.wait_for(context, revision).await?;
                self.list_at(revision, &scan, true).await
            }
            Err(_) => {
                self.wait_consistent(context).await?;
                Ok(self.page(&self.snapshot(), &scan))
            }
        }
    }

    /// A page of the state at `revision`: from a kept snapshot, or from storage's history.
    async fn list_at(&self, revision: u64, scan: &Scan<'_>, continued: bool) -> Result<ListPage, ApiStatus> {
        let progress = self.core.shared.feed.progress();
        // A client relies on the end of its token as etcd would tell it, be the state known here or not.
        let told = revision >= self.core.shared.compacted.load(Ordering::Relaxed);
        if told && let Some(snapshot) = self.core.cache.snapshot_at(revision, progress) {
            return Ok(self.page(&snapshot, scan));
        }
        match self.page_from_history(revision, scan).await {
            Err(StorageError::Compacted { .. }) if continued => {
                let start = String::from_utf8_lossy(&scan.start).into_owned();
                let token = encode_continue(scan.filter, &start, CONTINUE_INCONSISTENT);
                Err(ApiStatus::expired(CONTINUE_EXPIRED).with_continue(token))
            }
            Err(StorageError::Compacted { .. }) => Err(ApiStatus::expired(LIST_EXPIRED)),
            other => other.map_err(|error| storage_status(&error)),
        }
    }

    fn page(&self, snapshot: &Snapshot, scan: &Scan<'_>) -> ListPage {
        let Scan { filter, start, limit } = scan;
        let mut items = Vec::new();
        let mut more = false;
        if let Some(key) = filter.key() {
            items.extend(snapshot.tree.get(&key).filter(|object| filter.matches(object)).cloned());
        } else {
            snapshot.tree.walk(start, &mut |object| {
                if filter.namespace.as_ref().is_some_and(|namespace| *namespace != object.key.namespace) {
                    return ControlFlow::Break(());
                }
                if *limit > 0 && items.len() == *limit {
                    more = true;
                    return ControlFlow::Break(());
                }
                if filter.matches(object) {
                    items.push(object.clone());
                }
                ControlFlow::Continue(())
            });
        }
        let mut page = ListPage { items, revision: snapshot.revision, ..ListPage::default() };
        if more && let Some(last) = page.items.last() {
            let next = format!("{}\0", last.key);
            if !filter.selects() {
                let end = filter.namespace.as_ref().map_or(snapshot.tree.len(), |namespace| {
                    // '0' follows '/': the first key after everything in the namespace.
                    snapshot.tree.rank(format!("{namespace}0").as_bytes())
                });
                let remaining = end.saturating_sub(snapshot.tree.rank(next.as_bytes()));
                page.remaining_item_count = i64::try_from(remaining).ok();
            }
            page.continue_token = encode_continue(filter, &next, i64::try_from(snapshot.revision).unwrap_or(i64::MAX));
            self.core.cache.keep(snapshot);
        }
        page
    }

    async fn page_from_history(&self, revision: u64, scan: &Scan<'_>) -> Result<ListPage, StorageError> {
        let Scan { filter, start, limit } = scan;
        let cache = &self.core.cache;
        let start = String::from_utf8_lossy(start);
        let namespace = filter.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        // A position ends in a zero byte when it is after a key, and storage lists after a key.
        let after = start.strip_suffix('\0').filter(|after| !after.is_empty());
        let mut range = ListRange {
            prefix: format!("{}{namespace}", cache.prefix()),
            after: after.map(|after| format!("{}{after}", cache.prefix())),
            limit: HISTORY_PAGE,
            at: Some(Revision(revision)),
        };
        let mut page = ListPage { revision, ..ListPage::default() };
        let full = |page: &ListPage| *limit > 0 && page.items.len() == *limit;
        loop {
            let part = self.core.shared.storage.list(range.clone()).await?;
            let read = part.items.len() as u64;
            let mut taken = 0;
            for item in &part.items {
                if full(&page) {
                    break;
                }
                taken += 1;
                let object = cache.decode_stored(&item.key, item.mod_revision.0, &item.value);
                page.items.extend(object.filter(|object| filter.matches(object)));
            }
            let remaining = part.remaining + (read - taken);
            if full(&page)
                && remaining > 0
                && let Some(last) = page.items.last()
            {
                let next = format!("{}\0", last.key);
                page.continue_token = encode_continue(filter, &next, i64::try_from(revision).unwrap_or(i64::MAX));
                page.remaining_item_count = (!filter.selects()).then_some(i64::try_from(remaining).unwrap_or(i64::MAX));
            }
            match part.items.last() {
                Some(last) if part.remaining > 0 && !full(&page) => range.after = Some(last.key.clone()),
                _ => return Ok(page),
            }
        }
    }

    pub(crate) async fn watch_objects(
        &self,
        context: &RequestContext,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Watcher, ApiStatus> {
        let mut options = ListOptions { watch: true, ..options.clone() };
        options.default_initial_events();
        options.validate()?;
        let filter = self.filter(namespace, &options)?;
        let version = parse_version(&options.resource_version)?;
        let core = &self.core;
        let shared = &core.shared;
        let subscription = Subscription::new(filter);
        let start = match (options.send_initial_events, version) {
            (Some(true), version) => {
                match version {
                    None => self.wait_consistent(context).await?,
                    Some(0) => {}
                    Some(version) => self.wait_for(context, version).await?,
                }
                let snapshot = core.cache.subscribe_now(&subscription, shared.feed.progress());
                Start::Initial { snapshot }
            }
            (_, None | Some(0)) => {
                core.cache.subscribe_now(&subscription, shared.feed.progress());
                Start::Live
            }
            (_, Some(version)) => match core.cache.subscribe_from(&subscription, version) {
                Ok(replay) => Start::Replay(replay),
                Err(status) => Start::Failed(status),
            },
        };
        let parts = WatchParts {
            subscription,
            cache: core.cache.clone(),
            feed: shared.feed.clone(),
            clock: shared.clock.clone(),
            version: self.version.clone(),
            bookmarks: options.allow_watch_bookmarks,
            timeout: self.watch_timeout(options.timeout_seconds),
        };
        Ok(Watcher::new(parts, start))
    }

    fn watch_timeout(&self, seconds: Option<i64>) -> Duration {
        match seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => WATCH_TIMEOUT_MIN.mul_f64(1.0 + random::unit(self.core.shared.random.as_ref())),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let progress = self.core.shared.feed.progress();
        self.core.cache.snapshot(progress)
    }

    /// Waits until the cache has everything storage has now.
    pub(crate) async fn wait_consistent(&self, context: &RequestContext) -> Result<(), ApiStatus> {
        let newest = self.core.shared.storage.current_revision().await.map_err(|error| storage_status(&error))?;
        self.wait_for(context, newest.0).await
    }

    async fn wait_for(&self, context: &RequestContext, revision: u64) -> Result<(), ApiStatus> {
        let shared = &self.core.shared;
        if shared.feed.progress() >= revision {
            return Ok(());
        }
        let left = context.deadline.map(|deadline| deadline.saturating_sub(shared.clock.monotonic()));
        let timeout = left.map_or(FRESHNESS_TIMEOUT, |left| left.min(FRESHNESS_TIMEOUT));
        tokio::select! {
            reached = shared.feed.reach(revision) => {
                if reached { Ok(()) } else { Err(ApiStatus::service_unavailable("the watch cache has stopped")) }
            }
            () = shared.clock.sleep(timeout) => {
                Err(ApiStatus::too_large_resource_version(revision, shared.feed.progress(), 1))
            }
        }
    }
}

/// `None` for no version.
fn parse_version(text: &str) -> Result<Option<u64>, ApiStatus> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        ApiStatus::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: \
             strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

fn decode_continue(token: &str) -> Result<ContinueToken, ApiStatus> {
    let invalid = |detail: String| ApiStatus::bad_request(format!("invalid continue token: {detail}"));
    let not_valid = |detail: String| invalid(format!("continue key is not valid: {detail}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|error| not_valid(error.to_string()))?;
    let token: ContinueToken = serde_json::from_slice(&bytes).map_err(|error| not_valid(error.to_string()))?;
    if token.v != CONTINUE_VERSION {
        return Err(invalid(format!(
            "continue key is not valid: server does not recognize this encoded version {}",
            token.v
        )));
    }
    if token.rv == 0 {
        return Err(not_valid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned()));
    }
    if token.start.is_empty() {
        return Err(not_valid("encoded start key empty (version meta.k8s.io/v1)".to_owned()));
    }
    // A start key must not lead out of the resource or the namespace that is listed.
    let segments = token.start.strip_prefix('/').unwrap_or(&token.start).split('/');
    if segments.clone().any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(not_valid(token.start));
    }
    Ok(token)
}

/// `next` is a position in the whole resource; the token holds it relative to what is listed.
fn encode_continue(filter: &Filter, next: &str, revision: i64) -> String {
    let prefix = filter.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let start = next.strip_prefix(prefix.as_str()).unwrap_or(next).to_owned();
    let token = ContinueToken { v: CONTINUE_VERSION.to_owned(), rv: revision, start };
    // A struct of text and numbers always encodes.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}
