//! Where upstream's golden data is.
//!
//! The data is no part of this repository. Tests that need it have `golden` in their path, so that `hack/test` can leave
//! them out, and say so, where it is not at hand; run without it they fail.

use std::path::PathBuf;

/// The folder of golden data.
///
/// # Panics
/// Where there is none: a test that compared nothing has not passed.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("RKUBE_FIXTURES").map(PathBuf::from);
    folder.expect(
        "this test compares with upstream's golden data: set RKUBE_FIXTURES to the absolute path of its folder \
         (`objects`, `discovery`, `openapi`, `rbac`), or leave such tests out with `cargo nextest run -E 'not test(golden)'`",
    )
}
