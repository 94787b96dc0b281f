//! As much of D-Bus as asking systemd takes: one call at a time over a socket of its own, and the answer.
//!
//! A library would bring an executor and macros for what is a few hundred bytes each way.
//! Follows the D-Bus specification, protocol version 1, little-endian.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The bus of the machine, and systemd's own socket for where there is no bus.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const SYSTEMD_PRIVATE: &str = "/run/systemd/private";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const BUS: &str = "org.freedesktop.DBus";
/// systemd answers in milliseconds; one that does not is stuck.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Far more than any answer of ours.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
const LINE_BYTES_MAX: usize = 4096;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("reaching systemd")]
    Io(#[from] io::Error),
    #[error("systemd refuses to talk to this process: {0:?}")]
    Refused(String),
    #[error("systemd's answer is no D-Bus message")]
    Form,
    #[error("{name}: {message}")]
    Failed { name: String, message: String },
}

impl BusError {
    pub fn is(&self, error: &str) -> bool {
        matches!(self, Self::Failed { name, .. } if name == error)
    }
}

/// A value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    List(Vec<String>),
}

pub type Properties = Vec<(&'static str, Value)>;

/// An argument of a call.
#[derive(Clone, Debug)]
pub enum Argument {
    Text(String),
    Flag(bool),
    Properties(Properties),
    /// No auxiliary units.
    NoUnits,
}

pub struct Connection {
    stream: UnixStream,
    serial: u32,
}

impl Connection {
    pub fn open() -> Result<Self, BusError> {
        let is_bus = Path::new(SYSTEM_BUS).exists();
        let stream = UnixStream::connect(if is_bus { SYSTEM_BUS } else { SYSTEMD_PRIVATE })?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut connection = Self { stream, serial: 0 };
        connection.authenticate()?;
        if is_bus {
            connection.send(
                &Call { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member: "Hello" },
                &[],
            )?;
        }
        Ok(connection)
    }

    /// The kernel says who we are; the text only names it.
    fn authenticate(&mut self) -> Result<(), BusError> {
        let uid: String = nix::unistd::geteuid().to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") && line.len() < LINE_BYTES_MAX {
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            return Err(BusError::Refused(String::from_utf8_lossy(&line).trim().to_owned()));
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }

    /// Calls a method of systemd's manager.
    pub fn call(&mut self, member: &str, arguments: &[Argument]) -> Result<(), BusError> {
        let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        self.send(&Call { destination: SYSTEMD, path, interface, member }, arguments)
    }

    fn send(&mut self, call: &Call<'_>, arguments: &[Argument]) -> Result<(), BusError> {
        self.serial += 1;
        let message = call.message(self.serial, arguments);
        self.stream.write_all(&message)?;
        loop {
            let answer = self.receive()?;
            if answer.reply_to != Some(self.serial) {
                // A signal, as that our name was acquired.
                continue;
            }
            return match answer.kind {
                METHOD_RETURN => Ok(()),
                ERROR => Err(BusError::Failed { name: answer.error_name, message: answer.text }),
                _ => Err(BusError::Form),
            };
        }
    }

    fn receive(&mut self) -> Result<Answer, BusError> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let number = |at: usize| {
            let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            let number = if head[0] == b'l' { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
            usize::try_from(number).unwrap_or(usize::MAX)
        };
        let (body, fields) = (number(4), number(12));
        let padded = fields.checked_next_multiple_of(8).ok_or(BusError::Form)?;
        let length = padded.checked_add(body).filter(|length| *length <= MESSAGE_BYTES_MAX).ok_or(BusError::Form)?;
        let mut rest = vec![0; length];
        self.stream.read_exact(&mut rest)?;
        // systemd and the bus speak the byte order of the machine, and so do we.
        if head[0] != b'l' {
            return Err(BusError::Form);
        }
        Answer::parse(head[1], &rest[..fields], &rest[padded..])
    }
}

struct Call<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
}

impl Call<'_> {
    fn message(&self, serial: u32, arguments: &[Argument]) -> Vec<u8> {
        let mut body = Writer::default();
        let mut signature = String::new();
        for argument in arguments {
            body.argument(argument, &mut signature);
        }
        let mut writer = Writer::default();
        writer.0.extend([b'l', METHOD_CALL, 0, 1]);
        writer.number(body.0.len());
        writer.0.extend(serial.to_le_bytes());
        writer.array(8, |fields| {
            for (code, kind, text) in [
                (1, "o", self.path),
                (2, "s", self.interface),
                (3, "s", self.member),
                (6, "s", self.destination),
                (8, "g", &signature),
            ] {
                if text.is_empty() {
                    continue;
                }
                fields.align(8);
                fields.0.push(code);
                fields.signature(kind);
                if kind == "g" { fields.signature(text) } else { fields.text(text) }
            }
        });
        writer.align(8);
        writer.0.extend(body.0);
        writer.0
    }
}

/// Bytes of a message. Every value lies at a multiple of its size, counted from the message's beginning; the body
/// begins at a multiple of eight, so it can be written by itself.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: usize) {
        self.align(4);
        // Nothing here is longer than a few kilobytes.
        self.0.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// The length of an array does not count the padding before its first element.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.number(0);
        let at = self.0.len() - 4;
        self.align(alignment);
        let begin = self.0.len();
        elements(self);
        let length = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn argument(&mut self, argument: &Argument, signature: &mut String) {
        match argument {
            Argument::Text(text) => {
                signature.push('s');
                self.text(text);
            }
            Argument::Flag(flag) => {
                signature.push('b');
                self.number(usize::from(*flag));
            }
            Argument::Properties(properties) => {
                signature.push_str("a(sv)");
                self.array(8, |writer| {
                    for (name, value) in properties {
                        writer.align(8);
                        writer.text(name);
                        writer.value(value);
                    }
                });
            }
            Argument::NoUnits => {
                signature.push_str("a(sa(sv))");
                self.array(8, |_| {});
            }
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::Flag(flag) => {
                self.signature("b");
                self.number(usize::from(*flag));
            }
            Value::Number(number) => {
                self.signature("t");
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::List(texts) => {
                self.signature("as");
                self.array(4, |writer| texts.iter().for_each(|text| writer.text(text)));
            }
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    kind: u8,
    reply_to: Option<u32>,
    error_name: String,
    /// The first argument, where it is text: what errors say.
    text: String,
}

impl Answer {
    fn parse(kind: u8, fields: &[u8], body: &[u8]) -> Result<Self, BusError> {
        let mut answer = Self { kind, ..Self::default() };
        let mut reader = Reader { bytes: fields, at: 0 };
        let mut signature = String::new();
        while reader.at < fields.len() {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?.as_str()) {
                (5, "u") => answer.reply_to = Some(reader.number()?),
                (4, "s") => answer.error_name = reader.text()?,
                (8, "g") => signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.number()?),
                _ => return Err(BusError::Form),
            }
        }
        if signature.starts_with('s') {
            answer.text = Reader { bytes: body, at: 0 }.text()?;
        }
        Ok(answer)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&[u8], BusError> {
        let end = self.at.checked_add(count).ok_or(BusError::Form)?;
        let taken = self.bytes.get(self.at..end).ok_or(BusError::Form)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, BusError> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Result<u32, BusError> {
        self.align(4);
        let bytes = self.take(4)?.try_into().map_err(|_| BusError::Form)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn string(&mut self, length: usize) -> Result<String, BusError> {
        let text = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| BusError::Form)?;
        self.take(1)?;
        Ok(text)
    }

    fn text(&mut self) -> Result<String, BusError> {
        let length = self.number()?;
        self.string(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn signature(&mut self) -> Result<String, BusError> {
        let length = self.byte()?;
        self.string(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let call = Call { destination: "d.d", path: "/p", interface: "i.i", member: "M" };
        let properties = Argument::Properties(vec![("A", Value::Number(7)), ("B", Value::List(vec!["x".into()]))]);
        let message = call.message(3, &[Argument::Text("u".into()), Argument::Flag(true), properties]);
        let body = u32::from_le_bytes(message[4..8].try_into().unwrap()) as usize;
        let fields = u32::from_le_bytes(message[12..16].try_into().unwrap()) as usize;
        assert_eq!(message.len(), 16 + fields.next_multiple_of(8) + body);
        assert_eq!(&message[..4], b"l\x01\0\x01");
        let mut reader = Reader { bytes: &message[message.len() - body..], at: 0 };
        assert_eq!((reader.text().unwrap(), reader.number().unwrap()), ("u".to_owned(), 1));
        let length = reader.number().unwrap() as usize;
        assert_eq!(reader.at.next_multiple_of(8) + length, body);
        reader.align(8);
        assert_eq!((reader.text().unwrap(), reader.signature().unwrap()), ("A".to_owned(), "t".to_owned()));
        reader.align(8);
        assert_eq!(reader.take(8).unwrap(), 7u64.to_le_bytes());
        reader.align(8);
        assert_eq!((reader.text().unwrap(), reader.signature().unwrap()), ("B".to_owned(), "as".to_owned()));
    }

    #[test]
    fn an_error_is_read_and_damage_is_no_panic() {
        let mut fields = Writer::default();
        for (code, kind, text) in [(4, "s", "org.x.Failed"), (8, "g", "s")] {
            fields.align(8);
            fields.0.push(code);
            fields.signature(kind);
            if kind == "g" { fields.signature(text) } else { fields.text(text) }
        }
        fields.align(8);
        fields.0.push(5);
        fields.signature("u");
        fields.number(9);
        let mut body = Writer::default();
        body.text("no such unit");
        let answer = Answer::parse(ERROR, &fields.0, &body.0).unwrap();
        assert_eq!((answer.reply_to, &*answer.error_name, &*answer.text), (Some(9), "org.x.Failed", "no such unit"));
        for end in 0..fields.0.len() {
            // Cut anywhere, it is understood in part or refused.
            let _ = Answer::parse(ERROR, &fields.0[..end], &body.0[..body.0.len().min(end)]);
        }
    }
}
