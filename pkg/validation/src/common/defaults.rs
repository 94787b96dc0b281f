//! Short forms for defaulting.

/// A pointer field in Go: only absence is filled in.
pub(crate) fn default_to<T>(field: &mut Option<T>, value: T) {
    field.get_or_insert(value);
}

/// A text field in Go: absence and emptiness are the same.
pub(crate) fn text_default(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

/// A number in Go: absence and zero are the same.
pub(crate) fn number_default(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}
