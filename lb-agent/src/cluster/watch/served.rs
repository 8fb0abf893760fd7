//! A Service as the watch decodes it: without what nobody here reads and the decoder may refuse.
//!
//! Go writes a time that isn't set as `null`, also where the API's schema requires one: in the conditions
//! of a Service's status. One such Service, if it were refused, would end the watch of all of them.

use std::borrow::Cow;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// A Service whose status holds nothing but its load balancer's addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub(super) struct Served(pub core::Service);

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<core::ServiceSpec>,
    status: Option<WireStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireStatus {
    load_balancer: Option<core::LoadBalancerStatus>,
}

impl From<Wire> for Served {
    fn from(Wire { metadata, spec, status }: Wire) -> Self {
        let status = status.map(|WireStatus { load_balancer }| core::ServiceStatus {
            load_balancer,
            conditions: None,
        });
        Self(core::Service { metadata, spec, status })
    }
}

impl Resource for Served {
    type DynamicType = ();
    type Scope = <core::Service as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        core::Service::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        core::Service::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        core::Service::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        core::Service::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}
