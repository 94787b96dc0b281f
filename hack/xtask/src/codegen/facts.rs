//! The fact files as data. Their formats are described in their first lines.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

const ABBREVIATIONS: [(&str, &str); 3] = [
    ("api:", "io.k8s.api."),
    ("meta:", "io.k8s.apimachinery.pkg.apis.meta.v1."),
    ("ext:", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."),
];

/// One struct.
#[derive(Default)]
pub(crate) struct Type {
    /// Group and version, for types with `apiVersion` and `kind`.
    pub(crate) kind: Option<(String, String)>,
    pub(crate) atomic: bool,
    pub(crate) unions: Option<String>,
    pub(crate) members: Vec<Member>,
}

pub(crate) enum Member {
    Field(Field),
    /// An embedded struct: number of its message, its type.
    Embedded(u32, String),
}

pub(crate) struct Field {
    pub(crate) json: String,
    pub(crate) number: u32,
    pub(crate) ty: String,
    pub(crate) presence: String,
    pub(crate) required: bool,
    pub(crate) default: Option<String>,
    pub(crate) list_set: bool,
    pub(crate) undeclared: bool,
    pub(crate) list_keys: Vec<String>,
    pub(crate) atomic: bool,
    pub(crate) granular: bool,
    pub(crate) patch: Vec<String>,
    pub(crate) merge_key: String,
}

fn expand(name: &str) -> String {
    for modifier in ["[]", "{}", "wrapped:"] {
        if let Some(rest) = name.strip_prefix(modifier) {
            return format!("{modifier}{}", expand(rest));
        }
    }
    for (short, long) in ABBREVIATIONS {
        if let Some(rest) = name.strip_prefix(short) {
            return format!("{long}{rest}");
        }
    }
    name.to_owned()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

pub(crate) fn parse_types(text: &str) -> Result<BTreeMap<String, Type>> {
    let mut types = BTreeMap::new();
    let mut current: Option<(String, Type)> = None;
    for line in lines(text) {
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default();
        if first == "=" {
            if let Some((name, ty)) = current.take() {
                types.insert(name, ty);
            }
            let name = expand(words.next().with_context(|| format!("no name in {line:?}"))?);
            let mut ty = Type::default();
            for word in words {
                match word.split_once('=') {
                    Some(("kind", value)) => {
                        let (group, version) = value.split_once('/').with_context(|| line.to_owned())?;
                        ty.kind = Some((group.to_owned(), version.to_owned()));
                    }
                    Some(("unions", value)) => ty.unions = Some(value.to_owned()),
                    None if word == "atomic" => ty.atomic = true,
                    _ => bail!("unknown word {word:?} in {line:?}"),
                }
            }
            current = Some((name, ty));
            continue;
        }
        let Some((_, ty)) = &mut current else { bail!("a field before the first type: {line:?}") };
        let number_and_type = (words.next(), words.next());
        let (Some(number), Some(field_type)) = number_and_type else { bail!("a short line: {line:?}") };
        // `+ NUMBER TYPE` and `JSON NUMBER TYPE ..` have their words in the same places.
        let number: u32 = number.parse().with_context(|| line.to_owned())?;
        if first == "+" {
            ty.members.push(Member::Embedded(number, expand(field_type)));
            continue;
        }
        ty.members.push(Member::Field(parse_field(first, number, field_type, words, line)?));
    }
    types.extend(current);
    Ok(types)
}

fn parse_field<'a>(
    json: &str,
    number: u32,
    ty: &str,
    mut words: impl Iterator<Item = &'a str>,
    line: &str,
) -> Result<Field> {
    let mut field = Field {
        json: json.to_owned(),
        number,
        ty: expand(ty),
        presence: words.next().with_context(|| format!("no presence in {line:?}"))?.to_owned(),
        required: false,
        default: None,
        list_set: false,
        undeclared: false,
        list_keys: Vec::new(),
        atomic: false,
        granular: false,
        patch: Vec::new(),
        merge_key: String::new(),
    };
    let split = |value: &str| value.split(',').map(str::to_owned).collect();
    for word in words {
        match word.split_once('=') {
            Some(("default", value)) => field.default = Some(value.to_owned()),
            Some(("map", value)) => field.list_keys = split(value),
            Some(("patch", value)) => field.patch = split(value),
            Some(("key", value)) => field.merge_key = value.to_owned(),
            None if word == "required" => field.required = true,
            None if word == "set" => field.list_set = true,
            None if word == "undeclared" => field.undeclared = true,
            None if word == "atomic" => field.atomic = true,
            None if word == "granular" => field.granular = true,
            _ => bail!("unknown word {word:?} in {line:?}"),
        }
    }
    Ok(field)
}

pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) versions: Vec<String>,
    pub(crate) resources: Vec<Resource>,
}

pub(crate) struct Resource {
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) hash: String,
    /// Prefix, group, version.
    pub(crate) stored: Option<[String; 3]>,
    pub(crate) subresources: Vec<Subresource>,
    /// Label, path, zero.
    pub(crate) selectable: Vec<[String; 3]>,
}

pub(crate) struct Subresource {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) verbs: Vec<String>,
}

pub(crate) fn parse_resources(text: &str) -> Result<Vec<Group>> {
    let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let group_name = |name: &str| if name == "-" { String::new() } else { name.to_owned() };
    let mut groups: Vec<Group> = Vec::new();
    for line in lines(text) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["group", name, versions @ ..] => groups.push(Group {
                name: group_name(name),
                versions: versions.iter().map(|&version| version.to_owned()).collect(),
                resources: Vec::new(),
            }),
            ["resource", version, plural, singular, kind, scope, verbs, rest @ ..] => {
                let group = groups.last_mut().with_context(|| format!("no group before {line:?}"))?;
                let mut resource = Resource {
                    version: (*version).to_owned(),
                    plural: (*plural).to_owned(),
                    singular: (*singular).to_owned(),
                    kind: (*kind).to_owned(),
                    namespaced: *scope == "namespaced",
                    verbs: list(verbs),
                    short_names: Vec::new(),
                    categories: Vec::new(),
                    hash: String::new(),
                    stored: None,
                    subresources: Vec::new(),
                    selectable: Vec::new(),
                };
                for word in rest {
                    match word.split_once('=') {
                        Some(("short", value)) => resource.short_names = list(value),
                        Some(("categories", value)) => resource.categories = list(value),
                        Some(("hash", value)) => resource.hash = value.to_owned(),
                        Some(("stored", value)) => {
                            let parts: [String; 3] =
                                list(value).try_into().map_err(|_| anyhow::anyhow!("bad stored= in {line:?}"))?;
                            resource.stored = Some(parts);
                        }
                        _ => bail!("unknown word {word:?} in {line:?}"),
                    }
                }
                group.resources.push(resource);
            }
            ["sub", name, group, version, kind, verbs] => last(&mut groups, line)?.subresources.push(Subresource {
                name: (*name).to_owned(),
                group: group_name(group),
                version: (*version).to_owned(),
                kind: (*kind).to_owned(),
                verbs: list(verbs),
            }),
            ["select", label, path, zero @ ..] => {
                let zero = zero.first().copied().unwrap_or_default();
                let entry = [(*label).to_owned(), (*path).to_owned(), zero.to_owned()];
                last(&mut groups, line)?.selectable.push(entry);
            }
            _ => bail!("unknown line {line:?}"),
        }
    }
    Ok(groups)
}

fn last<'a>(groups: &'a mut [Group], line: &str) -> Result<&'a mut Resource> {
    groups
        .last_mut()
        .and_then(|group| group.resources.last_mut())
        .with_context(|| format!("no resource before {line:?}"))
}
