//! Leaf values: what Go accepts for each, and what it writes back.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use rkube_apimachinery::schema::{Scalar, SchemaSet, Shape, TypeId};
use rkube_apimachinery::{quantity, time};
use serde_json::Value;

/// Go's standard encoding: padded, and lenient about bits behind the last byte.
pub(crate) const BASE64: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// What Go prints for its zero time, and reads as an absent one.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// The JSON form of text for a scalar, or the error of Go's unmarshaller. `None` is Go's zero time.
/// Only for scalars that are text in JSON.
pub(crate) fn text(scalar: Scalar, text: Cow<'_, str>) -> Result<Option<Value>, String> {
    let value = match scalar {
        Scalar::Time => {
            if is_plain_time(&text) {
                return Ok((text != ZERO_TIME).then(|| Value::String(text.into_owned())));
            }
            time::format(time::parse(&text).map_err(|error| error.to_string())?)
        }
        Scalar::MicroTime => time::format_micro(time::parse_micro(&text).map_err(|error| error.to_string())?),
        Scalar::Duration => time::format_duration(time::parse_duration(&text).map_err(|error| error.to_string())?),
        Scalar::Quantity => match quantity::canonicalize(&text).map_err(|error| error.to_string())? {
            Cow::Borrowed(same) if same.len() == text.len() => text.into_owned(),
            canonical => canonical.into_owned(),
        },
        Scalar::Bytes => canonical_base64(&text)?,
        _ => text.into_owned(),
    };
    if value.starts_with("0001-01-01T00:00:00") && matches!(scalar, Scalar::Time | Scalar::MicroTime) {
        return Ok(None);
    }
    Ok(Some(Value::String(value)))
}

/// `2006-01-02T15:04:05Z` with every digit in range: nearly every time there is.
fn is_plain_time(text: &str) -> bool {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2, b'Z'] = text.as_bytes()
    else {
        return false;
    };
    let number = |tens: &u8, ones: &u8| match (tens, ones) {
        (b'0'..=b'9', b'0'..=b'9') => (tens - b'0') * 10 + (ones - b'0'),
        _ => u8::MAX,
    };
    // Days past 28 depend on the month: the full parser knows.
    number(y1, y2) < 100
        && number(y3, y4) < 100
        && (1..=12).contains(&number(m1, m2))
        && (1..=28).contains(&number(d1, d2))
        && number(h1, h2) < 24
        && number(n1, n2) < 60
        && number(s1, s2) < 60
}

/// Decodes base64 as Go does.
pub(crate) fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let cleaned: Cow<'_, str> =
        if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "").into() } else { text.into() };
    BASE64.decode(cleaned.as_bytes()).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            // Go names the place where it missed the rest.
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => cleaned.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

fn canonical_base64(text: &str) -> Result<String, String> {
    Ok(BASE64.encode(bytes(text)?))
}

/// Go's zero value of a type, as JSON.
pub(crate) fn zero(schema: &SchemaSet, ty: TypeId) -> Value {
    match &schema.get(ty).shape {
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => Value::String(String::new()),
            Scalar::Bool | Scalar::JsonSchemaPropsOrBool => Value::Bool(false),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => Value::from(0),
            Scalar::Duration => Value::from("0s"),
            Scalar::Quantity => Value::from("0"),
            Scalar::Bytes
            | Scalar::Time
            | Scalar::MicroTime
            | Scalar::FieldsV1
            | Scalar::RawExtension
            | Scalar::Json
            | Scalar::JsonSchemaPropsOrArray
            | Scalar::JsonSchemaPropsOrStringArray => Value::Null,
        },
        Shape::List(_) | Shape::Map(_) => Value::Null,
        Shape::Object(object) => {
            let mut members = serde_json::Map::new();
            super::canonical::fill(schema, object, &mut members);
            Value::Object(members)
        }
    }
}

/// Whether `omitempty` leaves the value out. It never does for structs.
pub(crate) fn is_empty(value: &Value, shape: &Shape) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(bool) => !bool && matches!(shape, Shape::Scalar(Scalar::Bool)),
        Value::Number(number) => {
            matches!(shape, Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double))
                && (number.as_i64() == Some(0) || number.as_f64() == Some(0.0))
        }
        Value::String(text) => text.is_empty() && matches!(shape, Shape::Scalar(Scalar::String | Scalar::Bytes)),
        Value::Array(items) => items.is_empty() && matches!(shape, Shape::List(_)),
        Value::Object(members) => members.is_empty() && matches!(shape, Shape::Map(_)),
    }
}

/// Go writes floats without a fraction as integers.
pub(crate) fn float(float: f64) -> Value {
    // Below 2^53 every integral float is that integer exactly.
    if float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 {
        #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
        return Value::from(float as i64);
    }
    Value::from(float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_what_go_writes() {
        let check = |scalar, from: &str, expected: &str| {
            let found = match text(scalar, from.into()) {
                Ok(Some(value)) => value.to_string(),
                Ok(None) => "null".to_owned(),
                Err(error) => error,
            };
            assert_eq!(found, expected, "{scalar:?} {from}");
        };
        check(Scalar::Time, "2024-02-29T12:00:00Z", "\"2024-02-29T12:00:00Z\"");
        check(Scalar::Time, "2024-02-29T12:00:00.5+02:00", "\"2024-02-29T10:00:00Z\"");
        check(Scalar::Time, "0001-01-01T00:00:00Z", "null");
        check(Scalar::Time, "x", "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"");
        check(Scalar::MicroTime, "2024-01-02T03:04:05.000006Z", "\"2024-01-02T03:04:05.000006Z\"");
        check(Scalar::Quantity, "1000m", "\"1\"");
        check(Scalar::Quantity, "0.5", "\"500m\"");
        check(Scalar::Duration, "90s", "\"1m30s\"");
        check(Scalar::Bytes, "YQ\n==", "\"YQ==\"");
        check(Scalar::Bytes, "YQ", "illegal base64 data at input byte 0");
        check(Scalar::Bytes, "!!!!", "illegal base64 data at input byte 0");
    }
}
