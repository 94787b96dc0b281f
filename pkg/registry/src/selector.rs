//! What a list or a watch selects, ready to be asked of stored objects.

use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::resource::{Resource, SelectableField};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::{fields, labels};

/// Labels and fields of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only this namespace.
    pub(crate) namespace: Option<Arc<str>>,
    /// Only this name.
    name: Option<Arc<str>>,
    cluster_scoped: bool,
    labels: Option<labels::Selector>,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    source: Source,
    equals: bool,
    value: String,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Name,
    Namespace,
    /// Index into the selection's fields.
    Field(usize),
}

impl Filter {
    /// Everything in a namespace, or everywhere.
    pub(crate) fn namespace(namespace: &str) -> Self {
        Self { namespace: (!namespace.is_empty()).then(|| Arc::from(namespace)), ..Self::default() }
    }

    /// Parses the selectors of a request to `row`, whose objects have `stored_fields` in their selection.
    pub(crate) fn parse(
        row: &Resource,
        stored_fields: &[SelectableField],
        namespace: &str,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Self, ApiStatus> {
        let mut filter = Self::namespace(namespace);
        filter.cluster_scoped = !row.namespaced;
        if !label_selector.is_empty() {
            let labels = labels::Selector::parse(label_selector).map_err(|e| ApiStatus::bad_request(e.to_string()))?;
            filter.labels = (!labels.is_everything()).then_some(labels);
        }
        if !field_selector.is_empty() {
            let fields = fields::Selector::parse(field_selector).map_err(|e| ApiStatus::bad_request(e.to_string()))?;
            for requirement in fields.requirements() {
                filter.add(row, stored_fields, requirement)?;
            }
        }
        Ok(filter)
    }

    fn add(
        &mut self,
        row: &Resource,
        stored_fields: &[SelectableField],
        requirement: &fields::Requirement,
    ) -> Result<(), ApiStatus> {
        let source = match requirement.field.as_str() {
            "metadata.name" => Source::Name,
            "metadata.namespace" => Source::Namespace,
            label => {
                let path = row.selectable_fields.iter().find(|field| field.label == label).map(|field| &field.path);
                let index = path.and_then(|path| stored_fields.iter().position(|field| field.path == *path));
                Source::Field(index.ok_or_else(|| unknown_field(row, label))?)
            }
        };
        let equals = requirement.operator == fields::Operator::Equals;
        match source {
            Source::Name if equals && self.name.is_none() => self.name = Some(Arc::from(requirement.value.as_str())),
            Source::Namespace if equals && self.namespace.is_none() && row.namespaced => {
                self.namespace = Some(Arc::from(requirement.value.as_str()));
            }
            _ => self.terms.push(Term { source, equals, value: requirement.value.clone() }),
        }
        Ok(())
    }

    pub(crate) fn matches(&self, object: &StoredObject) -> bool {
        let key = &object.key;
        self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
            && self.terms.iter().all(|term| {
                let value = match term.source {
                    Source::Name => &key.name,
                    Source::Namespace => &key.namespace,
                    Source::Field(index) => object.selection.fields.get(index).map_or("", String::as_str),
                };
                (value == term.value) == term.equals
            })
            && self.labels.as_ref().is_none_or(|labels| labels.matches(object.selection.labels.as_slice()))
    }

    /// Whether the client gave a selector: then the number of remaining items is not known.
    pub(crate) fn selects(&self) -> bool {
        self.name.is_some() || self.labels.is_some() || !self.terms.is_empty()
    }

    /// The only object that can match, if there is one.
    pub(crate) fn key(&self) -> Option<ObjectKey> {
        let name = self.name.clone()?;
        match &self.namespace {
            Some(namespace) => Some(ObjectKey::new(namespace.clone(), name)),
            None if self.cluster_scoped => Some(ObjectKey::cluster(name)),
            None => None,
        }
    }

    /// A field that must have one value.
    pub(crate) fn field_value(&self) -> Option<(usize, &str)> {
        self.terms.iter().find_map(|term| match term.source {
            Source::Field(index) if term.equals => Some((index, term.value.as_str())),
            _ => None,
        })
    }
}

fn unknown_field(row: &Resource, label: &str) -> ApiStatus {
    ApiStatus::bad_request(if row.selectable_fields.is_empty() {
        format!("{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {label}")
    })
}
