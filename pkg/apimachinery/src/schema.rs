//! The structure of types, as data. One table drives the protobuf codec, strict field validation,
//! server-side apply, strategic merge patch, OpenAPI, pruning and CEL typing, for built-in kinds
//! (generated, `static`) and custom resources (compiled at run time) alike.
//!
//! A type is a [`TypeId`] into a [`SchemaSet`]. Everything that varies per *use* of a list or map
//! (its merge keys, its patch strategy) has a [`TypeDef`] of its own, so a node needs no context.

use std::borrow::Cow;

/// Index into a [`SchemaSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// A closed set of types. Custom resources extend the built-in set: ids below `base.len()` are built in.
#[derive(Clone, Debug)]
pub struct SchemaSet {
    base: &'static [TypeDef],
    own: Vec<TypeDef>,
}

impl SchemaSet {
    /// The types of a generated table.
    pub const fn builtin(types: &'static [TypeDef]) -> Self {
        Self { base: types, own: Vec::new() }
    }

    /// A set that starts with everything in `self`.
    #[must_use]
    pub fn extend(&self) -> Self {
        self.clone()
    }

    /// Adds a type and says where it is.
    pub fn push(&mut self, definition: TypeDef) -> TypeId {
        let index = self.base.len() + self.own.len();
        self.own.push(definition);
        TypeId(u32::try_from(index).expect("a schema set holds fewer than 2^32 types"))
    }

    /// The definition of `id`.
    ///
    /// # Panics
    /// For an id of another set.
    pub fn get(&self, id: TypeId) -> &TypeDef {
        let index = id.0 as usize;
        match self.base.get(index) {
            Some(definition) => definition,
            None => &self.own[index - self.base.len()],
        }
    }

    /// Whether `id` is of the generated table, whose types mirror Go structs.
    pub fn is_builtin(&self, id: TypeId) -> bool {
        (id.0 as usize) < self.base.len()
    }

    pub fn len(&self) -> usize {
        self.base.len() + self.own.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One type.
#[derive(Clone, Debug)]
pub struct TypeDef {
    /// The OpenAPI v2 definition name (`io.k8s.api.core.v1.Pod`) of named types; empty for lists, maps,
    /// scalars and inline structs.
    pub name: Cow<'static, str>,
    pub shape: Shape,
}

#[derive(Clone, Debug)]
pub enum Shape {
    Scalar(Scalar),
    Object(Object),
    List(List),
    Map(Map),
}

/// Leaf types with their JSON and protobuf forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    /// JSON number, protobuf `double`. Only `CustomResourceDefinition` validation has any.
    Double,
    /// base64 in JSON, bytes in protobuf.
    Bytes,
    /// `metav1.Time`: RFC 3339 with seconds; in protobuf a message of seconds and nanos.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six digits.
    MicroTime,
    /// `metav1.Duration`: Go duration text in JSON; in protobuf a message with nanoseconds.
    Duration,
    /// `resource.Quantity`: text in canonical form; in protobuf a message with a string.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.FieldsV1`: any JSON object; in protobuf a message with raw JSON bytes.
    FieldsV1,
    /// `runtime.RawExtension`: any JSON object; in protobuf a message with raw bytes.
    RawExtension,
    /// `apiextensions.JSON` and other "any JSON value": in protobuf a message with raw JSON bytes.
    Json,
    /// `apiextensions.JSONSchemaPropsOrBool` and its two siblings, which hold a bool, a schema, a list of
    /// schemas or a list of strings: the codec knows them by name.
    JsonSchemaPropsOrBool,
    JsonSchemaPropsOrArray,
    JsonSchemaPropsOrStringArray,
}

/// A struct: named fields.
#[derive(Clone, Debug)]
pub struct Object {
    /// Sorted by JSON name.
    pub fields: Cow<'static, [Field]>,
    /// Positions in `fields` of those with a protobuf number, in the order they are encoded.
    pub wire: Cow<'static, [u16]>,
    /// Custom resources: fields outside `fields` are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// The struct is one value to server-side apply (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
}

impl Object {
    pub fn field(&self, json_name: &str) -> Option<&Field> {
        let found = self.fields.binary_search_by(|field| field.json.as_ref().cmp(json_name)).ok()?;
        self.fields.get(found)
    }
}

/// One field of a struct.
#[derive(Clone, Debug)]
pub struct Field {
    pub json: Cow<'static, str>,
    /// The protobuf field number; 0 for fields that have none.
    pub number: u32,
    /// Numbers of the messages the field lies in, outermost first: Go embeds structs whose fields are
    /// inline in JSON and a message in protobuf (`Volume.volumeSource`). Nearly always empty.
    pub within: Cow<'static, [u32]>,
    pub ty: TypeId,
    /// In the OpenAPI `required` list.
    pub required: bool,
    /// How Go writes the field when it is empty, and so how we do.
    pub presence: Presence,
    /// The OpenAPI `default`, as JSON text.
    pub default: Option<Cow<'static, str>>,
    /// `patchStrategy` of a struct field: `retainKeys` on `Deployment.spec.strategy` and volumes' items.
    pub patch: PatchStrategy,
}

/// What happens to a field whose value is Go's zero value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A pointer: absent and zero differ; zero is written, nil is not.
    Pointer,
    /// A pointer without `omitempty`: nil is `null` in JSON and absent in protobuf.
    Nullable,
    /// `omitempty` on a value: zero, empty list and empty map are not written in JSON. In protobuf
    /// scalars and structs are written all the same.
    OmitEmpty,
    /// A value without `omitempty` (or a struct, on which it has no effect): always written, in JSON (an
    /// absent list, map or time is `null`) and in protobuf, where only empty lists and maps are not.
    Always,
}

#[derive(Clone, Debug)]
pub struct List {
    pub item: TypeId,
    /// Server-side apply's view.
    pub kind: ListKind,
    /// Strategic merge patch's view.
    pub patch: PatchStrategy,
    /// Strategic merge patch's single key; empty for lists it does not merge and for lists of scalars.
    pub patch_merge_key: Cow<'static, str>,
    /// Protobuf puts the list in a message of its own, with the items in field 1 (`ExtraValue`, `Verbs`).
    pub wrapped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// Items are objects with a unique combination of these fields, in this order.
    Map {
        keys: Cow<'static, [Cow<'static, str>]>,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

#[derive(Clone, Debug)]
pub struct Map {
    pub value: TypeId,
    /// One value to server-side apply (label selectors, resource selectors).
    pub atomic: bool,
}
