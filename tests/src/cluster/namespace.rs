//! A namespace of the API server: what a test creates in it, and what the controllers make of it.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lb_lab::{Family, Lab};
use serde_json::{Value, json};

use super::api::{ApiClient, Persist};
use super::objects;
use super::reach::eventually;
use super::test_cluster::WEB;

/// A namespace of the API server that one test has for itself.
pub struct TestNamespace {
    api: ApiClient,
    lab: Arc<Lab>,
    name: String,
}

impl TestNamespace {
    pub(super) fn create(api: ApiClient, lab: Arc<Lab>, name: &str) -> Result<Self> {
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
        });
        api.apply_object("", object, Persist::Yes)?;
        Ok(Self { api, lab, name: name.to_owned() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Applies every document of `yaml` in this namespace.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.api.apply(&self.name, yaml)
    }

    /// Creates Pods that stand for pods of the lab, and reports them ready.
    ///
    /// # Errors
    /// The API server's refusal, or the lab has no such pod.
    pub fn pods(&self, labels: &Value, hosts: &[&str]) -> Result<()> {
        for host in hosts {
            self.pod(host, labels, host)?;
        }
        Ok(())
    }

    /// Creates a Pod called `name` that stands for the lab's `host`, and reports it ready.
    ///
    /// # Errors
    /// The API server's refusal, or the lab has no such host.
    pub fn pod(&self, name: &str, labels: &Value, host: &str) -> Result<()> {
        self.pod_with_port(name, labels, host, WEB)
    }

    /// Like [`Self::pod`] with a container whose port `web` has another number.
    ///
    /// # Errors
    /// As those of [`Self::pod`].
    pub fn pod_with_port(&self, name: &str, labels: &Value, host: &str, web: u16) -> Result<()> {
        let object = objects::pod(name, labels, self.lab.host(host)?, web);
        self.api.apply_object(&self.name, object, Persist::Yes)?;
        self.report(name, host, true)
    }

    /// Reports a Pod at the lab's `host` as ready or not, as its kubelet would.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn report(&self, name: &str, host: &str, ready: bool) -> Result<()> {
        let status = objects::pod_status(self.lab.host(host)?, ready);
        self.api.patch_status("Pod", &self.name, name, status)
    }

    /// Whether a Pod that is deleted from now on stays, terminating, as with a kubelet that still ends
    /// it. Letting go of a deleted one removes it.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn hold(&self, pod: &str, held: bool) -> Result<()> {
        let names: &[&str] = if held { &["example.com/hold"] } else { &[] };
        self.api.patch("Pod", &self.name, pod, json!({"metadata": {"finalizers": names}}))
    }

    /// Deletes an object of this namespace.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.api.delete(kind, &self.name, name)
    }

    /// Merges `change` into a Service.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn patch_service(&self, name: &str, change: Value) -> Result<()> {
        self.api.patch("Service", &self.name, name, change)
    }

    /// The ClusterIP that a Service was given in `family`.
    ///
    /// # Errors
    /// There is no such Service, or it has no address of that family.
    pub fn cluster_ip(&self, service: &str, family: Family) -> Result<IpAddr> {
        let object = self.api.get("Service", &self.name, service)?;
        let object = object.with_context(|| format!("no Service {}/{service}", self.name))?;
        let addresses = object.data["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        let addresses = addresses.iter().filter_map(|address| address.as_str()?.parse().ok());
        let wanted = |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
        addresses
            .into_iter()
            .find(wanted)
            .with_context(|| format!("Service {}/{service} has no {family} address", self.name))
    }

    /// Waits until the controllers have published `addresses`, and no others, as ready endpoints of
    /// a Service.
    ///
    /// # Errors
    /// They do not; the error says what is published instead.
    pub fn wait_for_endpoints(&self, service: &str, addresses: &[IpAddr]) -> Result<()> {
        let mut wanted: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        wanted.sort();
        eventually(&format!("endpoints of {}/{service}", self.name), || {
            let published = self.published(service)?;
            if published == wanted {
                return Ok(());
            }
            bail!("expected {wanted:?}, the slices hold {published:?}")
        })
    }

    fn published(&self, service: &str) -> Result<Vec<String>> {
        let selector = format!("kubernetes.io/service-name={service}");
        let slices = self.api.list("EndpointSlice", &self.name, &selector)?;
        let endpoints = slices.iter().filter_map(|slice| slice.data["endpoints"].as_array());
        let ready = endpoints.flatten().filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let mut published: Vec<String> = ready
            .filter_map(|endpoint| Some(endpoint["addresses"][0].as_str()?.to_owned()))
            .collect();
        published.sort();
        Ok(published)
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        // The namespace itself goes some time later; node ports must be free for the next test.
        let services = self.api.list("Service", &self.name, "").unwrap_or_default();
        let mut names = services.into_iter().filter_map(|service| service.metadata.name);
        let deleted = names
            .try_for_each(|name| self.delete("Service", &name))
            .and_then(|()| self.api.delete("Namespace", "", &self.name));
        if let Err(error) = deleted {
            eprintln!("lb-tests: deleting namespace {}: {error:#}", self.name);
        }
    }
}
