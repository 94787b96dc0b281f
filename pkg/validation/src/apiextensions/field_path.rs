//! Simple JSON paths into what a schema describes: `.spec.color`, `.map['key']`.
//!
//! Behaves as ValidFieldPath of apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go, v1.36.

use rkube_api::apiextensions::pkg::apis::apiextensions::v1::JSONSchemaProps;
use rkube_apimachinery::field::Path;

use super::structural::additional;

/// The field that a path leads to, and its schema. `arrays`: whether `['key']` may be used.
pub(super) fn resolve<'a>(
    path: &str,
    schema: &'a JSONSchemaProps,
    arrays: bool,
) -> Result<(Path, &'a JSONSchemaProps), String> {
    const NOT_FOUND: &str = "does not refer to a valid field";
    let (mut found, mut schema, mut rest) = (Path::root(), schema, path);
    while !rest.is_empty() {
        let name;
        if let Some(inside) = rest.strip_prefix('[') {
            if !arrays {
                return Err("array notation is not allowed".to_owned());
            }
            let text = inside.strip_prefix('\'').ok_or("expected single quoted string")?;
            let (key, after) = text.split_once("']").ok_or("unexpected end of JSON path")?;
            (name, rest) = (key.replace("\\'", "'"), after);
        } else if let Some(inside) = rest.strip_prefix('.') {
            let end = inside.find(['.', '[']).unwrap_or(inside.len());
            let (key, after) = inside.split_at(end);
            if key.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            (name, rest) = (key.to_owned(), after);
        } else {
            return Err(format!("expected [ or . but got: {rest}"));
        }
        schema = match (&schema.properties, additional(schema)) {
            (Some(properties), _) => {
                found = found.child(&name);
                properties.get(&name).ok_or(NOT_FOUND)?
            }
            (None, Some(additional)) => {
                found = found.key(&name);
                additional
            }
            (None, None) => return Err(NOT_FOUND.to_owned()),
        };
    }
    Ok((found, schema))
}
