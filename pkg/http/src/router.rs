//! A small router for fixed endpoints. The API's own paths are parsed by the API server.

use std::collections::BTreeMap;

/// Maps exact paths, and prefixes that end in `/`, to values. The longest prefix wins, exact paths first.
#[derive(Clone, Debug)]
pub struct Router<T> {
    exact: BTreeMap<String, T>,
    prefixes: BTreeMap<String, T>,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self { exact: BTreeMap::new(), prefixes: BTreeMap::new() }
    }
}

impl<T> Router<T> {
    pub fn new() -> Self {
        Self::default()
    }

    /// A pattern ending in `/*` matches everything under it, others match themselves.
    #[must_use]
    pub fn route(mut self, pattern: &str, value: T) -> Self {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.prefixes.insert(prefix.to_owned(), value),
            None => self.exact.insert(pattern.to_owned(), value),
        };
        self
    }

    pub fn find(&self, path: &str) -> Option<&T> {
        if let Some(value) = self.exact.get(path) {
            return Some(value);
        }
        let mut end = path.len();
        while let Some(slash) = path[..end].rfind('/') {
            if let Some(value) = self.prefixes.get(&path[..=slash]) {
                return Some(value);
            }
            end = slash;
        }
        None
    }

    /// Every exact path and prefix, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.exact.keys().chain(self.prefixes.keys()).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_paths_win_over_the_longest_prefix() {
        let router = Router::new().route("/a", 1).route("/a/*", 2).route("/a/b/*", 3).route("/a/b/c", 4);
        let found =
            ["/a", "/a/", "/a/x/y", "/a/b/", "/a/b/c", "/a/b/c/d", "/b", ""].map(|path| router.find(path).copied());
        assert_eq!(found, [Some(1), Some(2), Some(2), Some(3), Some(4), Some(3), None, None]);
    }
}
