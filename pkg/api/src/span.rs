//! Where something is in the text of a JSON object, found without decoding it.
//!
//! In: JSON that some encoder wrote. Out: a range of bytes, or `None` for what is not there or not JSON; this never
//! decides whether something is JSON, the decoder that reads what was found does.

use std::ops::Range;

/// The value of `metadata`.
pub(crate) fn metadata(json: &[u8]) -> Option<Range<usize>> {
    let mut members = Members::of(json, 0)?;
    members.find(|member| json.get(member.name.clone()) == Some(b"metadata")).map(|member| member.value)
}

/// The member `managedFields` of the metadata.
pub(crate) struct ManagedFields {
    /// With the comma that goes with it.
    pub(crate) member: Range<usize>,
    pub(crate) value: Range<usize>,
}

pub(crate) fn managed_fields(json: &[u8]) -> Option<ManagedFields> {
    let metadata = metadata(json)?;
    let mut members = Members::of(json, metadata.start)?;
    let member = members.find(|member| json.get(member.name.clone()) == Some(b"managedFields"))?;
    // The name without its quote begins where the member does, but for that quote.
    let start = member.name.start.checked_sub(1)?;
    let after = skip_space(json, member.value.end);
    if json.get(after) == Some(&b',') {
        return Some(ManagedFields { member: start..after + 1, value: member.value });
    }
    let before = json.get(..start)?.trim_ascii_end().len();
    let start = if json.get(..before)?.ends_with(b",") { before - 1 } else { start };
    Some(ManagedFields { member: start..member.value.end, value: member.value })
}

/// `json` without a part of it.
pub(crate) fn without(json: &[u8], part: Range<usize>) -> Vec<u8> {
    [json.get(..part.start).unwrap_or_default(), json.get(part.end..).unwrap_or_default()].concat()
}

struct Member {
    /// Without quotes.
    name: Range<usize>,
    value: Range<usize>,
}

/// The members of one object, in order.
struct Members<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    /// Of the object that begins at `at`.
    fn of(json: &'a [u8], at: usize) -> Option<Self> {
        let at = skip_space(json, at);
        (json.get(at) == Some(&b'{')).then_some(Self { json, at: at + 1 })
    }
}

impl Iterator for Members<'_> {
    type Item = Member;

    fn next(&mut self) -> Option<Member> {
        let start = skip_space(self.json, self.at);
        let end = skip_string(self.json, start)?;
        let colon = skip_space(self.json, end);
        if self.json.get(colon) != Some(&b':') {
            return None;
        }
        let value = skip_space(self.json, colon + 1);
        let value_end = skip_value(self.json, value)?;
        let next = skip_space(self.json, value_end);
        self.at = if self.json.get(next) == Some(&b',') { next + 1 } else { self.json.len() };
        Some(Member { name: start + 1..end - 1, value: value..value_end })
    }
}

fn skip_space(json: &[u8], at: usize) -> usize {
    let rest = json.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The end of the string that begins at `at`.
fn skip_string(json: &[u8], at: usize) -> Option<usize> {
    if json.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        if json.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The end of the value that begins at `at`.
fn skip_value(json: &[u8], at: usize) -> Option<usize> {
    let mut at = at;
    let mut depth = 0_usize;
    loop {
        match json.get(at)? {
            b'"' => at = skip_string(json, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            // A number or a word ends where something else begins.
            _ if depth == 0 => {
                let rest = json.get(at..)?;
                return Some(at + rest.iter().take_while(|byte| !matches!(byte, b',' | b'}' | b']')).count());
            }
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, metadata_text: Option<&str>, rest: Option<&str>) {
        let bytes = json.as_bytes();
        let text = |range: Range<usize>| json.get(range).expect("on boundaries");
        assert_eq!(metadata(bytes).map(text), metadata_text, "{json}");
        let found = managed_fields(bytes);
        let left = found.as_ref().map(|found| String::from_utf8(without(bytes, found.member.clone())).expect("text"));
        assert_eq!(left.as_deref(), rest, "{json}");
        if let Some(found) = found {
            let tree: serde_json::Value = serde_json::from_str(json).expect("JSON");
            let value: serde_json::Value = serde_json::from_str(text(found.value)).expect("JSON");
            assert_eq!(value, tree["metadata"]["managedFields"], "{json}");
        }
    }

    #[test]
    fn owners_are_cut_out_wherever_they_are() {
        check(
            r#"{"kind":"K","metadata":{"managedFields":[{"a":"]}\""}],"name":"x"},"spec":{"metadata":{}}}"#,
            Some(r#"{"managedFields":[{"a":"]}\""}],"name":"x"}"#),
            Some(r#"{"kind":"K","metadata":{"name":"x"},"spec":{"metadata":{}}}"#),
        );
        check(
            r#"{"metadata":{"a":{"managedFields":1},"managedFields":[]}}"#,
            Some(r#"{"a":{"managedFields":1},"managedFields":[]}"#),
            Some(r#"{"metadata":{"a":{"managedFields":1}}}"#),
        );
        check(r#"{"metadata":{"managedFields":null}}"#, Some(r#"{"managedFields":null}"#), Some(r#"{"metadata":{}}"#));
        check(
            r#"{ "x" : -1.5 , "metadata" : { "n" : true , "managedFields" : [ ] } }"#,
            Some(r#"{ "n" : true , "managedFields" : [ ] }"#),
            Some(r#"{ "x" : -1.5 , "metadata" : { "n" : true  } }"#),
        );
    }

    #[test]
    fn what_is_not_there_or_not_json_is_not_found() {
        check(r#"{"kind":"K","spec":{"metadata":{}}}"#, None, None);
        check(r#"{"metadata":{"name":"managedFields"}}"#, Some(r#"{"name":"managedFields"}"#), None);
        for broken in ["", "[]", "{", r#"{"metadata""#, r#"{"metadata":{"#, r#"{"a":"\"#, r#"{"a":}]"#, "{\"a\":1]}"] {
            check(broken, None, None);
        }
    }
}
