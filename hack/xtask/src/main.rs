//! Repository chores: `tidy` checks what the compiler cannot.
fn main() {}
