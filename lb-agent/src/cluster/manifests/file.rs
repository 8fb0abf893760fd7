//! One manifest file: text → objects, or the line and the reason why not.
//!
//! A file is taken whole or not at all, so that a half-edited one never half-applies. Kinds that
//! aren't ours are skipped. What an object means is `convert`'s to say; here only those defaults
//! are filled in that the API server would have filled in before anybody saw the object.

use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tracing::debug;

use crate::cluster::convert::{Converted, cidr, endpoints, node, service, slice};
use crate::cluster::snapshot::{Node, ObjectName, Problem, Service, ServiceCidr, Slice};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// Why a file can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileError {
    /// Where, counted from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub reason: String,
}

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// Where its document begins, counted from 1.
    pub line: usize,
    pub name: ObjectName,
    /// `Service default/web`.
    pub object: String,
    pub problems: Vec<Problem>,
    pub content: Content,
}

/// What a manifest says; `None` for objects that don't belong into the datapath.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Service { value: Option<Arc<Service>>, has_selector: bool },
    Slice(Option<Arc<Slice>>),
    Endpoints(Option<Vec<Arc<Slice>>>),
    Node(Option<Arc<Node>>),
    Cidr(Option<ServiceCidr>),
}

impl Manifest {
    fn new<T>(line: usize, converted: Converted<T>, content: fn(Option<T>) -> Content) -> Self {
        Self {
            line,
            name: converted.name,
            object: converted.object,
            problems: converted.problems,
            content: content(converted.value),
        }
    }
}

/// The kinds that are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Service,
    Slice,
    Endpoints,
    Node,
    Cidr,
}

/// What `apiVersion` and `kind` say.
enum Recognized {
    Object(Kind),
    /// A list; of one kind (`ServiceList`), whose items needn't say theirs, or of any (`List`).
    List(Option<Kind>),
    Other,
}

/// Reads all objects of a file.
pub(super) fn parse(text: &str, format: Format) -> Result<Vec<Manifest>, FileError> {
    let mut manifests = Vec::new();
    for (index, value) in documents(text, format)?.into_iter().enumerate() {
        if !value.is_null() {
            Document { text, format, index }.read(value, &mut manifests)?;
        }
    }
    Ok(manifests)
}

/// All documents, untyped: the kind must be known before the type is.
fn documents(text: &str, format: Format) -> Result<Vec<Value>, FileError> {
    match format {
        Format::Yaml if text.trim().is_empty() => Ok(Vec::new()),
        Format::Yaml => serde_yaml_ng::Deserializer::from_str(text)
            .map(|document| Value::deserialize(document).map_err(|error| yaml_error(&error)))
            .collect(),
        Format::Json => serde_json::Deserializer::from_str(text)
            .into_iter()
            .map(|document| document.map_err(|error| json_error(&error)))
            .collect(),
    }
}

fn yaml_error(error: &serde_yaml_ng::Error) -> FileError {
    let line = error.location().map_or(1, |location| location.line());
    FileError { line, reason: format!("is not usable YAML: {error}; correct it") }
}

fn json_error(error: &serde_json::Error) -> FileError {
    FileError { line: error.line(), reason: format!("is not usable JSON: {error}; correct it") }
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    format: Format,
    index: usize,
}

impl Document<'_> {
    fn read(&self, mut value: Value, manifests: &mut Vec<Manifest>) -> Result<(), FileError> {
        match self.recognize(&value, None)? {
            Recognized::Object(kind) => manifests.push(self.object(kind, value, None)?),
            Recognized::Other => {}
            Recognized::List(items_kind) => {
                let items = match value.get_mut("items").map(Value::take) {
                    Some(Value::Array(items)) => items,
                    None | Some(Value::Null) => Vec::new(),
                    Some(_) => return Err(self.error("has items that are no list; make them one")),
                };
                for (index, item) in items.into_iter().enumerate() {
                    match self.recognize(&item, items_kind)? {
                        Recognized::Object(kind) => {
                            manifests.push(self.object(kind, item, Some(index))?);
                        }
                        Recognized::Other => {}
                        Recognized::List(_) => {
                            return Err(self.error("has a list within a list; flatten it"));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn recognize(&self, value: &Value, default: Option<Kind>) -> Result<Recognized, FileError> {
        let Some(map) = value.as_object() else {
            return Err(self.error("is not a Kubernetes object; write apiVersion, kind, metadata"));
        };
        let field = |name| map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (version, kind) = match (field("apiVersion"), field("kind"), default) {
            (_, None, Some(kind)) => return Ok(Recognized::Object(kind)),
            (Some(version), Some(kind), _) => (version, kind),
            (_, None, None) => return Err(self.error("has no kind; write one")),
            (None, Some(kind), _) => {
                return Err(self.error(&format!("has kind {kind} but no apiVersion; write one")));
            }
        };
        Ok(match (version, kind) {
            ("v1", "Service") => Recognized::Object(Kind::Service),
            ("v1", "Endpoints") => Recognized::Object(Kind::Endpoints),
            ("v1", "Node") => Recognized::Object(Kind::Node),
            ("discovery.k8s.io/v1", "EndpointSlice") => Recognized::Object(Kind::Slice),
            ("networking.k8s.io/v1", "ServiceCIDR") => Recognized::Object(Kind::Cidr),
            ("networking.k8s.io/v1", "ServiceCIDRList") => Recognized::List(Some(Kind::Cidr)),
            ("v1", "List") => Recognized::List(None),
            ("v1", "ServiceList") => Recognized::List(Some(Kind::Service)),
            ("v1", "EndpointsList") => Recognized::List(Some(Kind::Endpoints)),
            ("v1", "NodeList") => Recognized::List(Some(Kind::Node)),
            ("discovery.k8s.io/v1", "EndpointSliceList") => Recognized::List(Some(Kind::Slice)),
            (old, "EndpointSlice") if old.starts_with("discovery.k8s.io/") => {
                return Err(self.error(&format!(
                    "has an EndpointSlice of {old}; only discovery.k8s.io/v1 is read: convert it"
                )));
            }
            (version, kind) => {
                debug!(version, kind, "manifest of a kind that is not ours, ignored");
                Recognized::Other
            }
        })
    }

    fn object(&self, kind: Kind, value: Value, item: Option<usize>) -> Result<Manifest, FileError> {
        let line = self.line();
        let manifest = match kind {
            Kind::Service => {
                let object: core::Service = self.typed(value, item)?;
                let selector = object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                let has_selector = selector.is_some_and(|selector| !selector.is_empty());
                let mut manifest = Manifest::new(line, service::service(&object), |value| {
                    Content::Service { value: value.map(Arc::new), has_selector: false }
                });
                if let Content::Service { has_selector: said, .. } = &mut manifest.content {
                    *said = has_selector;
                }
                manifest
            }
            Kind::Slice => {
                let mut object: discovery::EndpointSlice = self.typed(value, item)?;
                // SetDefaults_EndpointPort: a port without name has the empty one.
                for port in object.ports.iter_mut().flatten() {
                    port.name.get_or_insert_default();
                }
                Manifest::new(line, slice::slice(&object), |value| {
                    Content::Slice(value.map(Arc::new))
                })
            }
            Kind::Endpoints => {
                let object: core::Endpoints = self.typed(value, item)?;
                Manifest::new(line, endpoints::endpoints(&object), |value| {
                    Content::Endpoints(value.map(|all| all.into_iter().map(Arc::new).collect()))
                })
            }
            Kind::Node => {
                let object: core::Node = self.typed(value, item)?;
                Manifest::new(line, node::node(&object), |value| Content::Node(value.map(Arc::new)))
            }
            Kind::Cidr => {
                let object: networking::ServiceCIDR = self.typed(value, item)?;
                Manifest::new(line, cidr::cidr(&object), Content::Cidr)
            }
        };
        if manifest.name.name.is_empty() {
            return Err(self.error(&format!("has a {kind:?} without metadata.name; write one")));
        }
        Ok(manifest)
    }

    /// Gives the value its type. A value has forgotten its lines, so only when it fails the text is
    /// read once more to find the place.
    fn typed<K: DeserializeOwned>(
        &self,
        value: Value,
        item: Option<usize>,
    ) -> Result<K, FileError> {
        serde_json::from_value(value).map_err(|error| {
            self.relocate::<K>(item)
                .err()
                .unwrap_or_else(|| self.error(&format!("can't be read: {error}; correct it")))
        })
    }

    fn relocate<K: DeserializeOwned>(&self, item: Option<usize>) -> Result<(), FileError> {
        let seed = Place::<K> { item, kind: PhantomData };
        match self.format {
            Format::Yaml => {
                let document = serde_yaml_ng::Deserializer::from_str(self.text).nth(self.index);
                document
                    .map_or(Ok(()), |document| seed.deserialize(document))
                    .map_err(|error| yaml_error(&error))
            }
            Format::Json => {
                let mut documents = serde_json::Deserializer::from_str(self.text);
                for _ in 0..self.index {
                    IgnoredAny::deserialize(&mut documents).map_err(|error| json_error(&error))?;
                }
                seed.deserialize(&mut documents).map_err(|error| json_error(&error))
            }
        }
    }

    fn error(&self, reason: &str) -> FileError {
        FileError { line: self.line(), reason: reason.to_owned() }
    }

    fn line(&self) -> usize {
        match self.format {
            Format::Yaml => document_line(self.text, self.index),
            Format::Json => 1,
        }
    }
}

/// The first line of a YAML document: after its `---`, or the first line with content. (A marker
/// can't be inside a document: even block scalars end at one in the first column.)
fn document_line(text: &str, index: usize) -> usize {
    let mut documents = 0;
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let begins = if line == "---" || line.starts_with("--- ") {
            Some(if line.trim_end() == "---" { number + 1 } else { number })
        } else if line == "..." {
            open = false;
            None
        } else {
            let content = !line.trim().is_empty() && !line.starts_with(['#', '%']);
            (!open && content).then_some(number)
        };
        if let Some(begins) = begins {
            if documents == index {
                return begins;
            }
            documents += 1;
            open = true;
        }
    }
    1
}

/// Reads a `K` where it stands in a document (the document itself, or one of its `items`), only to
/// fail there with the right line.
struct Place<K> {
    item: Option<usize>,
    kind: PhantomData<K>,
}

impl<'de, K: Deserialize<'de>> DeserializeSeed<'de> for Place<K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.item {
            None => K::deserialize(deserializer).map(drop),
            Some(_) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de, K: Deserialize<'de>> Visitor<'de> for Place<K> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Place::<K> { ..self })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for _ in 0..self.item.unwrap_or_default() {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element::<K>()?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}
