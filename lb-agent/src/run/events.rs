//! Kubernetes Events, from [`Notice`]s.
//!
//! An event is a courtesy: whatever goes wrong here is logged at debug level and forgotten; the
//! log and the metrics have said the same.

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::api::ListParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc;

use super::notices::{About, Notice};
use crate::cluster::snapshot::ObjectName;

/// An event's note must not be longer (1 KiB).
const NOTE_MAX: usize = 1_000;

/// Writes events until the other end of `notices` is gone.
pub async fn write(client: Client, node_name: String, mut notices: mpsc::Receiver<Notice>) {
    let reporter = Reporter { controller: "lb-agent".into(), instance: Some(node_name.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    while let Some(notice) = notices.recv().await {
        if let Err(error) = publish(&client, &recorder, &node_name, &notice).await {
            tracing::debug!(?notice, %error, "no event");
        }
    }
}

async fn publish(
    client: &Client,
    recorder: &Recorder,
    node_name: &str,
    notice: &Notice,
) -> kube::Result<()> {
    let object = match &notice.about {
        About::Node => Some(node(node_name)),
        About::Service(name) => service(client, name).await?,
    };
    let Some(object) = object else { return Ok(()) };
    let note = notice.note.as_ref().map(|note| {
        let mut note = format!("{node_name}: {note}");
        note.truncate(note.floor_char_boundary(NOTE_MAX));
        note
    });
    let event = Event {
        type_: if notice.kind.is_warning() { EventType::Warning } else { EventType::Normal },
        reason: notice.kind.reason().into(),
        note,
        action: notice.kind.action().into(),
        secondary: None,
    };
    recorder.publish(&event, &object).await
}

/// As kube-proxy refers to its Node: without a uid, which it need not know.
fn node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        ..ObjectReference::default()
    }
}

/// A Service with its uid, which `kubectl describe` finds events by; `None` if it is gone.
async fn service(client: &Client, name: &ObjectName) -> kube::Result<Option<ObjectReference>> {
    // A list, because kube-proxy's role, which clusters know, allows to list Services and not to
    // get them.
    let services: Api<Service> = Api::namespaced(client.clone(), &name.namespace);
    let field = format!("metadata.name={}", name.name);
    let list = services.list(&ListParams::default().fields(&field)).await?;
    let found = list.items.iter().find(|item| item.name_any() == *name.name);
    Ok(found.map(|service| service.object_ref(&())))
}
