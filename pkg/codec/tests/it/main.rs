//! The codecs from outside: upstream's golden objects, bodies as clients send them, hostile input.

mod bodies;
mod fuzz;
mod golden;
mod hostile;
mod round_trip;

use std::path::PathBuf;

/// The golden data's folder of objects, or `None` (and one line that says so) where there is none.
pub fn objects() -> Option<PathBuf> {
    let Some(root) = std::env::var_os("RKUBE_FIXTURES") else {
        #[expect(clippy::print_stderr, reason = "the run must say that golden data was not there")]
        {
            eprintln!("RKUBE_FIXTURES is not set: golden objects were not compared");
        }
        return None;
    };
    Some(PathBuf::from(root).join("objects"))
}
