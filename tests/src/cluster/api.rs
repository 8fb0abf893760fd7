//! What a test asks of the API server, as plain blocking calls over YAML and JSON.
//!
//! Objects are dynamic on purpose: a test must be able to send what a typed client would not let it
//! write. Writing is server-side apply by one field manager, so applying a changed manifest removes
//! what it no longer mentions, as `kubectl apply --server-side` does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GetParams, ListParams, Patch, PatchParams,
    PostParams, Request,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config};
use serde::Deserialize;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::process::Namespace;

/// The field manager of all that tests write.
const MANAGER: &str = "lb-tests";

/// No call outlives this: an API server that was killed must not hang a test.
const PATIENCE: Duration = Duration::from_secs(10);

/// Is an applied object kept?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persist {
    /// Yes.
    Yes,
    /// No: validated, defaulted and admitted only. Unknown and duplicate fields are errors.
    DryRun,
}

/// A client that lives inside the control plane's namespace.
#[derive(Clone)]
pub struct ApiClient {
    namespace: Arc<Namespace>,
    runtime: Arc<Runtime>,
    client: Client,
}

impl ApiClient {
    /// Makes a client of `kubeconfig`; connects at the first call only.
    ///
    /// # Errors
    /// The kubeconfig or the certificate that it names can't be read.
    pub fn new(namespace: Arc<Namespace>, kubeconfig: &Path) -> Result<Self> {
        // One thread, the namespace's: sockets are made where the calling thread is.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("making the API client's runtime")?;
        let runtime = Arc::new(runtime);
        let kubeconfig = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
        let inside = Arc::clone(&runtime);
        let client = namespace.run(move || {
            inside.block_on(async {
                let options = KubeConfigOptions::default();
                let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .context("understanding the kubeconfig")?;
                config.connect_timeout = Some(PATIENCE);
                config.read_timeout = Some(PATIENCE);
                config.write_timeout = Some(PATIENCE);
                Client::try_from(config).context("making an API client")
            })
        })??;
        Ok(Self { namespace, runtime, client })
    }

    /// Runs one call on the namespace's thread.
    fn call<T, F>(&self, call: F) -> Result<kube::Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = kube::Result<T>> + Send + 'static,
    {
        let runtime = Arc::clone(&self.runtime);
        self.namespace.run(move || runtime.block_on(call))
    }

    fn objects(&self, namespace: &str, kind: &Kind) -> kube::Api<DynamicObject> {
        if kind.namespaced {
            kube::Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            kube::Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    /// Is the API server ready to serve?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let client = self.client.clone();
        let answer = self.call(async move {
            // The API's own request builder, for a path that is no resource: GET /readyz.
            let request = Request::new("").get("readyz", &GetParams::default());
            client.request_text(request.map_err(kube::Error::BuildRequest)?).await
        });
        matches!(answer, Ok(Ok(_)))
    }

    /// Applies every document of `yaml`; objects without a namespace get `namespace`.
    ///
    /// # Errors
    /// No YAML, or the API server's refusal (a [`kube::Error`] in the chain).
    pub fn apply(&self, namespace: &str, yaml: &str) -> Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let object = Value::deserialize(document).context("reading YAML")?;
            if !object.is_null() {
                self.apply_object(namespace, object, Persist::Yes)?;
            }
        }
        Ok(())
    }

    /// Applies one object and returns what the API server made of it.
    ///
    /// # Errors
    /// The API server's refusal (a [`kube::Error`] in the chain).
    pub fn apply_object(
        &self,
        namespace: &str,
        object: Value,
        persist: Persist,
    ) -> Result<DynamicObject> {
        let kind = Kind::of_object(&object)?;
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let name = name.to_owned();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(namespace).to_owned();
        let api = self.objects(&namespace, &kind);
        let what = format!("applying {} {namespace}/{name}", kind.resource.kind);
        let mut parameters = PatchParams::apply(MANAGER).force();
        match persist {
            Persist::Yes => {}
            Persist::DryRun => parameters = parameters.dry_run().validation_strict(),
        }
        self.call(async move { api.patch(&name, &parameters, &Patch::Apply(object)).await })?
            .context(what)
    }

    /// Creates one object that does not exist; cheaper than applying for large ones.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn create(&self, namespace: &str, object: Value) -> Result<()> {
        let api = self.objects(namespace, &Kind::of_object(&object)?);
        let object: DynamicObject = serde_json::from_value(object).context("reading an object")?;
        self.call(async move { api.create(&PostParams::default(), &object).await })?
            .map(drop)
            .context("creating an object")
    }

    /// Merges `change` into an object (JSON merge patch).
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, change: Value) -> Result<()> {
        let api = self.objects(namespace, &Kind::named(kind)?);
        let (what, name) = (format!("patching {kind} {namespace}/{name}"), name.to_owned());
        let parameters = PatchParams::default();
        self.call(async move { api.patch(&name, &parameters, &Patch::Merge(change)).await })?
            .map(drop)
            .context(what)
    }

    /// Merges `status` into an object's status, as a kubelet or a cloud would.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn patch_status(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        status: Value,
    ) -> Result<()> {
        let api = self.objects(namespace, &Kind::named(kind)?);
        let what = format!("patching the status of {kind} {namespace}/{name}");
        let name = name.to_owned();
        let patch = Patch::Merge(serde_json::json!({ "status": status }));
        self.call(async move { api.patch_status(&name, &PatchParams::default(), &patch).await })?
            .map(drop)
            .context(what)
    }

    /// Deletes an object at once, without a grace period: nobody is there to end a Pod.
    ///
    /// # Errors
    /// The API server's refusal; never because the object is gone already.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let api = self.objects(namespace, &Kind::named(kind)?);
        let (what, name) = (format!("deleting {kind} {namespace}/{name}"), name.to_owned());
        let parameters = DeleteParams::default().grace_period(0);
        match self.call(async move { api.delete(&name, &parameters).await })? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).context(what),
        }
    }

    /// Reads an object; `None` if there is none.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<DynamicObject>> {
        let api = self.objects(namespace, &Kind::named(kind)?);
        let (what, name) = (format!("reading {kind} {namespace}/{name}"), name.to_owned());
        self.call(async move { api.get_opt(&name).await })?.context(what)
    }

    /// Lists the objects of a namespace whose labels match `selector` (empty for all).
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn list(&self, kind: &str, namespace: &str, selector: &str) -> Result<Vec<DynamicObject>> {
        let api = self.objects(namespace, &Kind::named(kind)?);
        let what = format!("listing {kind} of {namespace}");
        let parameters = ListParams::default().labels(selector);
        let list = self.call(async move { api.list(&parameters).await })?.context(what)?;
        Ok(list.items)
    }
}

/// A resource of the API, and whether its objects live in namespaces.
struct Kind {
    resource: ApiResource,
    namespaced: bool,
}

impl Kind {
    /// The kinds that tests name in calls; manifests carry their own version.
    fn named(kind: &str) -> Result<Self> {
        let version = match kind {
            "Namespace" | "Node" | "Pod" | "Service" | "Endpoints" | "ConfigMap" | "Secret" => "v1",
            "EndpointSlice" => "discovery.k8s.io/v1",
            "ServiceCIDR" => "networking.k8s.io/v1",
            "Event" => "events.k8s.io/v1",
            "DaemonSet" => "apps/v1",
            "Job" => "batch/v1",
            "CustomResourceDefinition" => "apiextensions.k8s.io/v1",
            other => anyhow::bail!("api.rs does not know the API version of {other}: add it"),
        };
        Self::new(version, kind)
    }

    fn of_object(object: &Value) -> Result<Self> {
        let field = |name: &str| {
            object[name].as_str().with_context(|| format!("an object without {name}: {object}"))
        };
        Self::new(field("apiVersion")?, field("kind")?)
    }

    fn new(version: &str, kind: &str) -> Result<Self> {
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let identity = GroupVersionKind::gvk(group, version, kind);
        let resource = match kind {
            // The only kind whose name is a plural already.
            "Endpoints" => ApiResource::from_gvk_with_plural(&identity, "endpoints"),
            _ => ApiResource::from_gvk(&identity),
        };
        let namespaced = !matches!(
            kind,
            "Namespace"
                | "Node"
                | "ClusterRole"
                | "ClusterRoleBinding"
                | "ServiceCIDR"
                | "CustomResourceDefinition"
        );
        Ok(Self { resource, namespaced })
    }
}
