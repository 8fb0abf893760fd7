//! An object as the watch decodes it: by itself, so that one that can't be decoded is a problem of its own.
//!
//! kube decodes whole lists and events: an object that doesn't fit its type would end the watch of all
//! others. Go makes such objects (a time that isn't set is `null`, also where the API's schema requires one).

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A kind that is watched.
pub(super) trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + Default + DeserializeOwned + Send + 'static
{
    /// Where objects hold what nobody here reads (`/a/b`): it is neither decoded nor kept.
    const UNREAD: &[&str];
}

/// Who wrote which field when: as large as the object.
const MANAGED_FIELDS: &str = "/metadata/managedFields";

impl Kind for core::Service {
    const UNREAD: &[&str] = &[MANAGED_FIELDS, "/status/conditions"];
}

impl Kind for discovery::EndpointSlice {
    const UNREAD: &[&str] = &[MANAGED_FIELDS];
}

impl Kind for core::Node {
    const UNREAD: &[&str] = &[MANAGED_FIELDS, "/status/conditions", "/status/images"];
}

impl Kind for networking::ServiceCIDR {
    const UNREAD: &[&str] = &[MANAGED_FIELDS, "/status"];
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Served<K> {
    /// The object; one that can't be decoded has its names and version, and nothing else.
    pub object: K,
    /// Why it can't be decoded, and which field is to blame.
    pub error: Option<String>,
}

impl<'de, K: Kind> Deserialize<'de> for Served<K> {
    /// # Errors
    /// When it isn't JSON, or has no name: then there is nobody to blame.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut json = Value::deserialize(deserializer)?;
        for path in K::UNREAD {
            remove(&mut json, path);
        }
        // Only the second attempt keeps track of where it is: that takes a copy of each field's name.
        match K::deserialize(&json).or_else(|_| serde_path_to_error::deserialize(&json)) {
            Ok(object) => Ok(Self { object, error: None }),
            Err(error) => {
                let mut object = K::default();
                *object.meta_mut() = identity(&json).ok_or_else(|| D::Error::custom(&error))?;
                Ok(Self { object, error: Some(error.to_string()) })
            }
        }
    }
}

fn remove(json: &mut Value, path: &str) {
    if let Some((parent, key)) = path.rsplit_once('/')
        && let Some(Value::Object(fields)) = json.pointer_mut(parent)
    {
        fields.remove(key);
    }
}

/// What tells an object from others, and when it was so: kube resumes a watch there.
fn identity(json: &Value) -> Option<ObjectMeta> {
    let text = |key| json["metadata"][key].as_str().map(str::to_owned);
    Some(ObjectMeta {
        name: Some(text("name")?),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    })
}

impl<K: Kind> Resource for Served<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.object.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.object.meta_mut()
    }
}
