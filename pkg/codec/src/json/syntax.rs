//! What Go's JSON scanner says about bytes that are not JSON. It runs only after decoding has failed, to find
//! the words of the error.
//!
//! Behaves as Go's encoding/json scanner.

use rkube_apimachinery::quote::quote;

/// Deeper nesting is refused while scanning. Upstream stops at 10,000; our decoder at 128 (see `decode`).
const MAX_DEPTH: usize = 10_000;

/// Go's message for bytes that are no JSON; `None` if they are.
pub(crate) fn error(bytes: &[u8]) -> Option<String> {
    let mut scanner = Scanner { bytes, at: 0, depth: 0 };
    match scanner.document() {
        Ok(()) => None,
        Err(Fault::Eof) => Some("unexpected end of JSON input".to_owned()),
        Err(Fault::Depth) => Some("exceeded max depth".to_owned()),
        Err(Fault::Character(byte, context)) => Some(format!("invalid character {} {context}", quoted(byte))),
    }
}

enum Fault {
    Eof,
    Depth,
    Character(u8, &'static str),
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            // Go quotes the character, not the byte: bytes above 127 are Latin-1 here.
            let text = quote(&char::from(byte).to_string()).to_string();
            format!("'{}'", text.trim_matches('"'))
        }
    }
}

impl Scanner<'_> {
    fn peek(&self) -> Result<u8, Fault> {
        self.bytes.get(self.at).copied().ok_or(Fault::Eof)
    }

    fn next(&mut self) -> Result<u8, Fault> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn document(&mut self) -> Result<(), Fault> {
        self.value()?;
        self.space();
        match self.bytes.get(self.at) {
            None => Ok(()),
            Some(byte) => Err(Fault::Character(*byte, "after top-level value")),
        }
    }

    /// One value; containers are walked with a stack of our own, since the input decides how deep they go.
    fn value(&mut self) -> Result<(), Fault> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            match self.next()? {
                byte @ (b'{' | b'[') => {
                    self.depth = open.len() + 1;
                    if self.depth > MAX_DEPTH {
                        return Err(Fault::Depth);
                    }
                    self.space();
                    let close = if byte == b'{' { b'}' } else { b']' };
                    if self.peek()? == close {
                        self.at += 1;
                    } else {
                        open.push(byte);
                        if byte == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'"' => self.string()?,
                b't' => self.literal("rue", &TRUE)?,
                b'f' => self.literal("alse", &FALSE)?,
                b'n' => self.literal("ull", &NULL)?,
                byte @ (b'-' | b'0'..=b'9') => self.number(byte)?,
                byte => return Err(Fault::Character(byte, "looking for beginning of value")),
            }
            // A value ended: close what it closes.
            loop {
                let Some(&container) = open.last() else { return Ok(()) };
                self.space();
                match (container, self.next()?) {
                    (b'{', b',') => {
                        self.space();
                        self.key()?;
                        break;
                    }
                    (b'[', b',') => break,
                    (b'{', b'}') | (b'[', b']') => {
                        open.pop();
                    }
                    (b'{', byte) => return Err(Fault::Character(byte, "after object key:value pair")),
                    (_, byte) => return Err(Fault::Character(byte, "after array element")),
                }
            }
        }
    }

    fn key(&mut self) -> Result<(), Fault> {
        match self.next()? {
            b'"' => self.string()?,
            byte => return Err(Fault::Character(byte, "looking for beginning of object key string")),
        }
        self.space();
        match self.next()? {
            b':' => Ok(()),
            byte => Err(Fault::Character(byte, "after object key")),
        }
    }

    fn string(&mut self) -> Result<(), Fault> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        for _ in 0..4 {
                            let byte = self.next()?;
                            if !byte.is_ascii_hexdigit() {
                                return Err(Fault::Character(byte, "in \\u hexadecimal character escape"));
                            }
                        }
                    }
                    byte => return Err(Fault::Character(byte, "in string escape code")),
                },
                byte @ 0..0x20 => return Err(Fault::Character(byte, "in string literal")),
                _ => {}
            }
        }
    }

    fn literal(&mut self, rest: &str, contexts: &[&'static str]) -> Result<(), Fault> {
        for (expected, context) in rest.bytes().zip(contexts) {
            let byte = self.next()?;
            if byte != expected {
                return Err(Fault::Character(byte, context));
            }
        }
        Ok(())
    }

    fn digits(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn number(&mut self, first: u8) -> Result<(), Fault> {
        let first = if first == b'-' {
            match self.next()? {
                byte @ b'0'..=b'9' => byte,
                byte => return Err(Fault::Character(byte, "in numeric literal")),
            }
        } else {
            first
        };
        if first != b'0' {
            self.digits();
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            match self.next()? {
                b'0'..=b'9' => self.digits(),
                byte => return Err(Fault::Character(byte, "after decimal point in numeric literal")),
            }
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            let mut byte = self.next()?;
            if matches!(byte, b'+' | b'-') {
                byte = self.next()?;
            }
            if !byte.is_ascii_digit() {
                return Err(Fault::Character(byte, "in exponent of numeric literal"));
            }
            self.digits();
        }
        Ok(())
    }
}

const TRUE: [&str; 3] =
    ["in literal true (expecting 'r')", "in literal true (expecting 'u')", "in literal true (expecting 'e')"];
const FALSE: [&str; 4] = [
    "in literal false (expecting 'a')",
    "in literal false (expecting 'l')",
    "in literal false (expecting 's')",
    "in literal false (expecting 'e')",
];
const NULL: [&str; 3] =
    ["in literal null (expecting 'u')", "in literal null (expecting 'l')", "in literal null (expecting 'l')"];

#[cfg(test)]
mod tests {
    use super::error;

    #[test]
    fn words_are_gos() {
        let check = |json: &str, expected: &str| assert_eq!(error(json.as_bytes()).unwrap_or_default(), expected);
        check("", "unexpected end of JSON input");
        check("{", "unexpected end of JSON input");
        check("{]", "invalid character ']' looking for beginning of object key string");
        check("{\"a\" 1}", "invalid character '1' after object key");
        check("{\"a\":1 2}", "invalid character '2' after object key:value pair");
        check("[1 2]", "invalid character '2' after array element");
        check("[1,]", "invalid character ']' looking for beginning of value");
        check("nul", "unexpected end of JSON input");
        check("nulx", "invalid character 'x' in literal null (expecting 'l')");
        check("{} x", "invalid character 'x' after top-level value");
        check("\"\n\"", "invalid character '\\n' in string literal");
        check("01", "invalid character '1' after top-level value");
        check("1.x", "invalid character 'x' after decimal point in numeric literal");
        check("<a>", "invalid character '<' looking for beginning of value");
        check("{\"a\":[{},[],\"x\\u00e9\",-1.5e+3,true,false,null]}", "");
    }
}
