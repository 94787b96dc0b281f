//! The schema table: numbers the types, names first in order of name, then lists, maps and plain scalars.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use anyhow::{Context, Result, bail};

use super::HEADER;
use super::facts::{Field, Member, Type};

/// Scalars that have an OpenAPI definition: word in the facts, definition, variant.
const NAMED_SCALARS: [(&str, &str, &str); 10] = [
    ("time", "io.k8s.apimachinery.pkg.apis.meta.v1.Time", "Time"),
    ("microtime", "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "MicroTime"),
    ("quantity", "io.k8s.apimachinery.pkg.api.resource.Quantity", "Quantity"),
    ("intorstring", "io.k8s.apimachinery.pkg.util.intstr.IntOrString", "IntOrString"),
    ("fieldsv1", "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "FieldsV1"),
    ("raw", "io.k8s.apimachinery.pkg.runtime.RawExtension", "RawExtension"),
    ("json", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "Json"),
    (
        "orbool",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
        "JsonSchemaPropsOrBool",
    ),
    (
        "orarray",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
        "JsonSchemaPropsOrArray",
    ),
    (
        "orstringarray",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
        "JsonSchemaPropsOrStringArray",
    ),
];

/// Scalars without one.
const PLAIN_SCALARS: [(&str, &str); 7] = [
    ("string", "String"),
    ("bool", "Bool"),
    ("int32", "Int32"),
    ("int64", "Int64"),
    ("double", "Double"),
    ("bytes", "Bytes"),
    ("duration", "Duration"),
];

/// A field after embedding is resolved.
struct Flat<'a> {
    json: &'a str,
    number: u32,
    within: Vec<u32>,
    ty: u32,
    presence: &'static str,
    required: bool,
    default: Option<&'a str>,
    patch: String,
}

pub(crate) struct Table<'a> {
    types: &'a BTreeMap<String, Type>,
    named: Vec<&'a str>,
    ids: HashMap<String, u32>,
    /// The constructor calls of the types after the named ones.
    anonymous: Vec<String>,
    objects: Vec<(&'a str, Vec<Flat<'a>>)>,
    /// Structs that are one value to server-side apply except where a field says otherwise.
    granular: BTreeSet<&'a str>,
}

impl<'a> Table<'a> {
    pub(crate) fn build(types: &'a BTreeMap<String, Type>) -> Result<Self> {
        let mut named: Vec<&str> = types.keys().map(String::as_str).collect();
        named.extend(NAMED_SCALARS.iter().map(|(_, name, _)| *name));
        named.sort_unstable();
        let mut table = Table {
            types,
            named,
            ids: HashMap::new(),
            anonymous: Vec::new(),
            objects: Vec::new(),
            granular: BTreeSet::new(),
        };
        for (index, name) in table.named.iter().enumerate() {
            table.ids.insert((*name).to_owned(), u32::try_from(index)?);
        }
        for (word, name, _) in NAMED_SCALARS {
            let id = table.ids[name];
            table.ids.insert(word.to_owned(), id);
        }
        for (word, variant) in PLAIN_SCALARS {
            table.anonymous_id(word.to_owned(), format!("scalar(\"\", Scalar::{variant})"));
        }
        for (name, ty) in types {
            let mut fields = Vec::new();
            table.flatten(ty, &mut Vec::new(), &mut fields)?;
            if ty.kind.is_some() {
                let string = table.ids["string"];
                fields.extend(["apiVersion", "kind"].map(|json| Flat {
                    json,
                    number: 0,
                    within: Vec::new(),
                    ty: string,
                    presence: "O",
                    required: false,
                    default: None,
                    patch: "NONE".to_owned(),
                }));
            }
            fields.sort_by_key(|field| field.json);
            table.objects.push((name, fields));
        }
        Ok(table)
    }

    fn anonymous_id(&mut self, key: String, call: String) -> u32 {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = (self.named.len() + self.anonymous.len()) as u32;
        self.anonymous.push(call);
        self.ids.insert(key, id);
        id
    }

    fn flatten(&mut self, ty: &'a Type, within: &mut Vec<u32>, out: &mut Vec<Flat<'a>>) -> Result<()> {
        for member in &ty.members {
            match member {
                Member::Embedded(number, name) => {
                    let embedded = self.types.get(name).with_context(|| format!("no type {name}"))?;
                    within.push(*number);
                    self.flatten(embedded, within, out)?;
                    within.pop();
                }
                Member::Field(field) => {
                    let presence = match field.presence.as_str() {
                        "pointer" => "P",
                        "nullable" => "N",
                        "omitempty" => "O",
                        "always" => "A",
                        other => bail!("unknown presence {other}"),
                    };
                    let is_list = field.ty.starts_with("[]") || field.ty.starts_with("wrapped:");
                    let ty = self.resolve(&field.ty, field)?;
                    let patch = if is_list { "NONE".to_owned() } else { patch(&field.patch)? };
                    out.push(Flat {
                        json: &field.json,
                        number: field.number,
                        within: within.clone(),
                        ty,
                        presence,
                        required: field.required,
                        default: field.default.as_deref(),
                        patch,
                    });
                }
            }
        }
        Ok(())
    }

    fn resolve(&mut self, ty: &str, field: &Field) -> Result<u32> {
        if let Some(value) = ty.strip_prefix("{}") {
            // The attributes of the field are the map's, not its values'.
            let value = self.resolve_plain(value)?;
            return Ok(
                self.anonymous_id(format!("{{}}{value}{}", field.atomic), format!("map({value}, {})", field.atomic))
            );
        }
        let (item, wrapped) = match (ty.strip_prefix("[]"), ty.strip_prefix("wrapped:")) {
            (Some(item), _) => (item, false),
            (None, Some(item)) => (item, true),
            (None, None) if field.granular => return self.resolve_granular(ty),
            (None, None) => return self.resolve_plain(ty),
        };
        let item = self.resolve_plain(item)?;
        let kind = if field.list_set {
            "ListKind::Set".to_owned()
        } else if field.list_keys.is_empty() {
            "ListKind::Atomic".to_owned()
        } else {
            format!("ListKind::Map {{ keys: Cow::Borrowed(&{}) }}", keys_name(&field.list_keys))
        };
        let patch = patch(&field.patch)?;
        let call = format!("list({item}, {kind}, {patch}, {:?}, {wrapped})", field.merge_key);
        Ok(self.anonymous_id(call.clone(), call))
    }

    fn resolve_plain(&mut self, ty: &str) -> Result<u32> {
        if let Some(item) = ty.strip_prefix("[]") {
            let item = self.resolve_plain(item)?;
            let call = format!("list({item}, ListKind::Atomic, NONE, \"\", false)");
            return Ok(self.anonymous_id(call.clone(), call));
        }
        if let Some(item) = ty.strip_prefix("wrapped:") {
            let item = self.resolve_plain(item)?;
            let call = format!("list({item}, ListKind::Atomic, NONE, \"\", true)");
            return Ok(self.anonymous_id(call.clone(), call));
        }
        self.ids.get(ty).copied().with_context(|| format!("no type {ty}"))
    }

    /// A struct under its own name that is not one value to server-side apply.
    fn resolve_granular(&mut self, ty: &str) -> Result<u32> {
        let (name, _) = self.types.get_key_value(ty).with_context(|| format!("no type {ty}"))?;
        self.granular.insert(name);
        let index = self.types.keys().position(|known| known == name).context("the type was just found")?;
        Ok(self.anonymous_id(format!("granular {ty}"), format!("object({name:?}, &F{index}, &W{index}, false)")))
    }

    pub(crate) fn render(&self) -> String {
        let mut out = String::from(HEADER);
        out.push_str(
            "use std::borrow::Cow;\n\nuse rkube_apimachinery::schema::{Field, ListKind, Scalar, TypeDef};\n\n",
        );
        out.push_str("use crate::schema::build::*;\n\n");
        let mut keys: BTreeSet<&Vec<String>> = BTreeSet::new();
        for member in self.types.values().flat_map(|ty| &ty.members) {
            if let Member::Field(field) = member
                && !field.list_keys.is_empty()
            {
                keys.insert(&field.list_keys);
            }
        }
        for list in keys {
            let items: Vec<String> = list.iter().map(|key| format!("Cow::Borrowed({key:?})")).collect();
            let name = keys_name(list);
            let _ = writeln!(out, "static {name}: [Cow<'static, str>; {}] = [{}];", list.len(), items.join(", "));
        }
        for (index, (_, fields)) in self.objects.iter().enumerate() {
            let _ = writeln!(out, "static F{index}: [Field; {}] = [", fields.len());
            for field in fields {
                let default = field.default.map_or("\"\"".to_owned(), |text| format!("{text:?}"));
                let _ = writeln!(
                    out,
                    "    f({:?}, {}, &{:?}, {}, {}, {}, {default}, {}),",
                    field.json, field.number, field.within, field.ty, field.presence, field.required, field.patch
                );
            }
            out.push_str("];\n");
            let mut wire: Vec<usize> = (0..fields.len()).filter(|&position| fields[position].number > 0).collect();
            wire.sort_by_key(|&position| {
                let mut path = fields[position].within.clone();
                path.push(fields[position].number);
                path
            });
            let _ = writeln!(out, "static W{index}: [u16; {}] = {wire:?};", wire.len());
        }
        self.render_types(&mut out);
        self.render_kinds(&mut out);
        self.render_unions(&mut out);
        let doc = "Type and field of the lists without `x-kubernetes-list-type`, sorted.";
        self.render_marked(&mut out, "UNDECLARED", doc, |field| field.undeclared);
        let doc = "Type and field of what says `x-kubernetes-map-type: granular`, sorted.";
        self.render_marked(&mut out, "GRANULAR", doc, |field| field.granular);
        out
    }

    fn render_types(&self, out: &mut String) {
        let _ = writeln!(out, "\n/// The first this many types have names, and are sorted by them.");
        let _ = writeln!(out, "pub(crate) const NAMED: usize = {};", self.named.len());
        let total = self.named.len() + self.anonymous.len();
        let _ = writeln!(out, "\npub(crate) static TYPES: [TypeDef; {total}] = [");
        let mut object = 0;
        for name in &self.named {
            if let Some((_, _, variant)) = NAMED_SCALARS.iter().find(|(_, scalar, _)| scalar == name) {
                let _ = writeln!(out, "    scalar({name:?}, Scalar::{variant}),");
                continue;
            }
            let atomic = self.types[*name].atomic;
            let _ = writeln!(out, "    object({name:?}, &F{object}, &W{object}, {atomic}),");
            object += 1;
        }
        for call in &self.anonymous {
            let _ = writeln!(out, "    {call},");
        }
        out.push_str("];\n");
    }

    fn render_kinds(&self, out: &mut String) {
        let mut kinds: Vec<(&str, &str, &str, u32)> = Vec::new();
        for (name, ty) in self.types {
            if let Some((group, version)) = &ty.kind {
                let kind = name.rsplit('.').next().unwrap_or_default();
                kinds.push((group, version, kind, self.ids[name]));
            }
        }
        kinds.sort_unstable();
        let _ = writeln!(out, "\n/// Group, version, kind and type of everything with an `apiVersion`, sorted.");
        let _ = writeln!(out, "pub(crate) static KINDS: [(&str, &str, &str, u32); {}] = [", kinds.len());
        for kind in kinds {
            let _ = writeln!(out, "    {kind:?},");
        }
        out.push_str("];\n");
    }

    fn render_unions(&self, out: &mut String) {
        let unions: Vec<_> =
            self.types.iter().filter_map(|(name, ty)| ty.unions.as_ref().map(|unions| (name, unions))).collect();
        let _ = writeln!(out, "\n/// `x-kubernetes-unions` of the definitions that have it, as JSON.");
        let _ = writeln!(out, "pub(crate) static UNIONS: [(&str, &str); {}] = [", unions.len());
        for union in unions {
            let _ = writeln!(out, "    {union:?},");
        }
        out.push_str("];\n");
    }

    /// Fields that say more, or less, in OpenAPI than their type does.
    fn render_marked(&self, out: &mut String, name: &str, doc: &str, marked: fn(&Field) -> bool) {
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for (name, ty) in self.types {
            for member in &ty.members {
                if let Member::Field(field) = member
                    && marked(field)
                {
                    fields.push((name, &field.json));
                }
            }
        }
        fields.sort_unstable();
        let _ = writeln!(out, "\n/// {doc}");
        let _ = writeln!(out, "pub(crate) static {name}: [(&str, &str); {}] = [", fields.len());
        for entry in fields {
            let _ = writeln!(out, "    {entry:?},");
        }
        out.push_str("];\n");
    }
}

fn keys_name(keys: &[String]) -> String {
    let words: Vec<String> = keys.iter().map(|key| key.to_uppercase().replace('.', "_")).collect();
    format!("KEYS_{}", words.join("_"))
}

fn patch(words: &[String]) -> Result<String> {
    Ok(match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => "NONE",
        ["merge"] => "MERGE",
        ["replace"] => "REPLACE",
        ["retainKeys"] => "RETAIN",
        ["merge", "retainKeys"] => "MERGE_RETAIN",
        other => bail!("unknown patch strategy {other:?}"),
    }
    .to_owned())
}
