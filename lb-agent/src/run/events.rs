//! Kubernetes Events about Services that the datapath has no room for.
//!
//! An event is a courtesy: whatever goes wrong here is logged at debug level and forgotten; the
//! log and the metrics have said the same.

use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc;

use super::reports::Notice;

/// Reason of the events, for `kubectl get events --field-selector reason=…`.
const REASON: &str = "DatapathFull";
/// An event's note must not be longer (1 KiB).
const NOTE_MAX: usize = 1_000;

/// Writes events until the other end of `notices` is gone.
pub async fn write(client: Client, node_name: String, mut notices: mpsc::Receiver<Notice>) {
    let reporter = Reporter { controller: "lb-agent".into(), instance: Some(node_name.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    while let Some(notice) = notices.recv().await {
        let service = notice.service.clone();
        if let Err(error) = publish(&client, &recorder, &node_name, notice).await {
            tracing::debug!(%service, %error, "no event");
        }
    }
}

async fn publish(
    client: &Client,
    recorder: &Recorder,
    node_name: &str,
    notice: Notice,
) -> kube::Result<()> {
    // A list, because kube-proxy's role, which clusters know, allows to list Services and not to
    // get them. The uid is what `kubectl describe` finds events by.
    let services: Api<Service> = Api::namespaced(client.clone(), &notice.service.namespace);
    let field = format!("metadata.name={}", notice.service.name);
    let list = services.list(&ListParams::default().fields(&field)).await?;
    let Some(service) = list.items.iter().find(|item| item.name_any() == notice.service.name)
    else {
        return Ok(());
    };
    let mut note = format!("{node_name}: {}", notice.note);
    note.truncate(note.floor_char_boundary(NOTE_MAX));
    let event = Event {
        type_: EventType::Warning,
        reason: REASON.into(),
        note: Some(note),
        action: "Program".into(),
        secondary: None,
    };
    recorder.publish(&event, &service.object_ref(&())).await
}
