//! The query of a request URL, and the options read from it.
//!
//! Behaves as `k8s.io/apimachinery/pkg/conversion/queryparams` and `pkg/runtime/conversion.go`, v1.36.

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::time::{DurationError, parse_duration};
use rkube_registry::options::{
    CreateOptions, DeleteOptions, GetOptions, ListOptions, PatchOptions, Preconditions, UpdateOptions,
};

/// Name and value pairs in the order of the URL, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Parts that are no UTF-8 after decoding are left out, as Go's `url.ParseQuery` leaves out what it
    /// cannot parse.
    pub fn parse(query: &'a str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .filter_map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    Some((decode(name)?, decode(value)?))
                })
                .collect(),
        )
    }

    pub fn of(uri: &'a http::Uri) -> Self {
        Self::parse(uri.query().unwrap_or_default())
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_ref())
    }

    pub fn all<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_ref())
    }

    fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// Absent is false; present is true unless it says otherwise.
    pub fn is_on(&self, name: &str) -> bool {
        self.bool(name).unwrap_or_default()
    }

    fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| !(value == "0" || value.eq_ignore_ascii_case("false")))
    }

    fn int(&self, name: &str) -> Result<Option<i64>, ApiStatus> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let message = format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text));
            return Err(ApiStatus::bad_request(message));
        }
        match text.strip_prefix('+').unwrap_or(text).parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                let message = format!("strconv.ParseInt: parsing {}: value out of range", quote(text));
                Err(ApiStatus::bad_request(message))
            }
        }
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.all(name).map(str::to_owned).collect()
    }

    pub fn get_options(&self) -> GetOptions {
        GetOptions { resource_version: self.text("resourceVersion") }
    }

    pub fn list_options(&self) -> Result<ListOptions, ApiStatus> {
        Ok(ListOptions {
            label_selector: self.text("labelSelector"),
            field_selector: self.text("fieldSelector"),
            watch: self.is_on("watch"),
            allow_watch_bookmarks: self.is_on("allowWatchBookmarks"),
            resource_version: self.text("resourceVersion"),
            resource_version_match: self.text("resourceVersionMatch"),
            timeout_seconds: self.int("timeoutSeconds")?,
            limit: self.int("limit")?.unwrap_or_default(),
            continue_token: self.text("continue"),
            send_initial_events: self.bool("sendInitialEvents"),
        })
    }

    pub fn create_options(&self) -> CreateOptions {
        CreateOptions {
            dry_run: self.list("dryRun"),
            field_manager: self.text("fieldManager"),
            field_validation: self.text("fieldValidation"),
        }
    }

    pub fn update_options(&self) -> UpdateOptions {
        UpdateOptions {
            dry_run: self.list("dryRun"),
            field_manager: self.text("fieldManager"),
            field_validation: self.text("fieldValidation"),
        }
    }

    pub fn patch_options(&self) -> PatchOptions {
        PatchOptions {
            dry_run: self.list("dryRun"),
            force: self.bool("force"),
            field_manager: self.text("fieldManager"),
            field_validation: self.text("fieldValidation"),
        }
    }

    /// For deletes whose body is empty.
    pub fn delete_options(&self) -> Result<DeleteOptions, ApiStatus> {
        let uid = self.get("uid").or_else(|| self.get("preconditions.uid")).map(str::to_owned);
        let resource_version = self.get("preconditions.resourceVersion").map(str::to_owned);
        let preconditions =
            (uid.is_some() || resource_version.is_some()).then_some(Preconditions { uid, resource_version });
        Ok(DeleteOptions {
            grace_period_seconds: self.int("gracePeriodSeconds")?,
            preconditions,
            orphan_dependents: self.bool("orphanDependents"),
            propagation_policy: self.get("propagationPolicy").map(str::to_owned),
            dry_run: self.list("dryRun"),
            ignore_store_read_error_with_cluster_breaking_potential: None,
        })
    }

    /// `timeout=`: none given is `None`, and so is zero, which means the server's own limit.
    pub fn timeout(&self) -> Result<Option<Duration>, ApiStatus> {
        let text = self.get("timeout").unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let refused =
            |reason: String| ApiStatus::bad_request(format!("invalid timeout specified in the request URL - {reason}"));
        let duration = parse_duration(text).map_err(|error| refused(error.to_string()))?;
        let negative = |_| refused(DurationError::Invalid(text.to_owned()).to_string());
        let duration = Duration::try_from(duration).map_err(negative)?;
        Ok(Some(duration).filter(|duration| !duration.is_zero()))
    }
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    let text: Cow<'_, str> = if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
    match text {
        Cow::Borrowed(text) => percent_decode_str(text).decode_utf8().ok(),
        Cow::Owned(text) => Some(Cow::Owned(percent_decode_str(&text).decode_utf8().ok()?.into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_as_go_decodes_them() {
        let query = Query::parse("labelSelector=a%3Db%2Cc+in+(d)&watch&allowWatchBookmarks=false&x=%ff&limit=5");
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert_eq!(query.get("x"), None);
        let options = query.list_options().unwrap();
        assert!(options.watch && !options.allow_watch_bookmarks);
        assert_eq!(options.limit, 5);
        assert!(Query::parse("limit=many").list_options().is_err());
    }

    #[test]
    fn timeouts_are_go_durations() {
        let timeout =
            |text: &str| Query::parse(&format!("timeout={text}")).timeout().ok().flatten().map(|d| d.as_millis());
        assert_eq!(timeout("1m30s"), Some(90_000));
        assert_eq!(timeout("1.5s"), Some(1500));
        assert_eq!(timeout("0s"), None);
        assert!(Query::parse("timeout=soon").timeout().is_err());
        assert!(Query::parse("timeout=5").timeout().is_err());
    }
}
