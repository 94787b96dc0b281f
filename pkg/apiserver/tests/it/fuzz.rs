//! Damaged request lines and headers: paths, queries, `Accept`.

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use rkube_apiserver::negotiation::{Output, is_pretty, parse_accept};
use rkube_apiserver::query::Query;
use rkube_apiserver::request_info::RequestInfo;
use rkube_testing::fuzz::Fuzz;

fn text(case: &[u8]) -> Option<&str> {
    std::str::from_utf8(case).ok()
}

#[test]
fn paths_and_queries() {
    let words = &[
        "/api",
        "/apis",
        "/v1",
        "/namespaces/",
        "/watch/",
        "/proxy/",
        "//",
        "/./",
        "/../",
        "%2f",
        "%00",
        "%",
        "%ff",
        "?",
        "&",
        "=",
        "+",
        ";",
        "fieldSelector=",
        "limit=9223372036854775808",
        "timeoutSeconds=-1",
        "watch=2",
        "#",
    ];
    let seeds = [
        "/api/v1/namespaces/default/pods/p/log?container=c&follow=true&tailLines=10",
        "/apis/apps/v1/watch/namespaces/n/deployments/d?resourceVersion=1&allowWatchBookmarks=1",
        "/api/v1/nodes/n:10250/proxy/a/b?c=d",
        "/apis/a.example/v1/things?labelSelector=a%3Db%2Cc+in+(d)&limit=5&continue=eyJ&timeout=5s&dryRun=All",
        "/openapi/v3/apis/apps/v1?hash=1",
    ];
    Fuzz::new("paths and queries", words, seeds).run(|case| {
        let Some(uri) = text(case).and_then(|text| text.parse::<Uri>().ok()) else { return };
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            if let Ok(info) = RequestInfo::new(&method, &uri) {
                let _ = (info.gvr(), info.path_name().len(), info.rest_of_path(), info.is_long_running());
            }
        }
        let query = Query::of(&uri);
        let _ = (query.get_options(), query.create_options(), query.update_options(), query.patch_options());
        let refused = [query.list_options().err(), query.delete_options().err(), query.timeout().err()];
        for status in refused.into_iter().flatten() {
            assert!((400..500).contains(&status.code()), "{}", status.message());
        }
    });
}

#[test]
fn accept_headers() {
    let words = &[
        "application/",
        "json",
        "yaml",
        "*",
        "/",
        ";",
        "q=",
        "0.5",
        "NaN",
        "-1",
        "as=Table",
        "g=meta.k8s.io",
        "v=v1",
        ",",
        "\"",
        "stream=watch",
    ];
    let seeds = [
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        "application/vnd.kubernetes.protobuf;stream=watch,*/*;q=0.1",
        "text/html, application/xml;q=0.9, */*",
    ];
    Fuzz::new("accept headers", words, seeds).run(|case| {
        let Some(text) = text(case) else { return };
        assert!(parse_accept(text).len() <= text.len() + 1);
        let Ok(value) = HeaderValue::from_str(text) else { return };
        let headers = HeaderMap::from_iter([(header::ACCEPT, value)]);
        let query = Query::default();
        let _ = is_pretty(&headers, &query);
        for streams in [false, true] {
            if let Err(status) = Output::negotiate(&headers, &query, streams, true) {
                assert_eq!(status.code(), 406);
            }
        }
    });
}
