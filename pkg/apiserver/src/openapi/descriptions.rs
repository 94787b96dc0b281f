//! What types and fields mean, for `kubectl explain`: collected by the build script, embedded compressed.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::ZlibDecoder;

const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.zz"));

/// By definition, by field; `""` is the definition itself.
#[derive(Default)]
pub(super) struct Descriptions(BTreeMap<String, BTreeMap<String, String>>);

impl Descriptions {
    /// Unpacks them: two megabytes that are kept only while a document is written.
    pub(super) fn load() -> Self {
        let mut text = Vec::new();
        let unpacked = ZlibDecoder::new(COMPRESSED).read_to_end(&mut text);
        // What the build script wrote can be read; a document without descriptions beats none.
        debug_assert!(unpacked.is_ok(), "the descriptions unpack");
        Self(serde_json::from_slice(&text).unwrap_or_default())
    }

    pub(super) fn of_type(&self, definition: &str) -> Option<&str> {
        self.of_field(definition, "")
    }

    pub(super) fn of_field(&self, definition: &str, field: &str) -> Option<&str> {
        self.0.get(definition)?.get(field).map(String::as_str)
    }
}
