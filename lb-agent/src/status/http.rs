//! One request to a server on this node.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use http::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// It is on this machine: whoever doesn't answer within this doesn't.
const PATIENCE: Duration = Duration::from_secs(2);
/// A page of metrics has some 50 kB.
const LONGEST: usize = 16 << 20;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Text.
    pub body: String,
}

/// GET; the error in words for people.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer, String> {
    let uri: Uri = format!("http://{address}{path}").parse().map_err(|error| format!("{error}"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = async {
        let answer = client.get(uri).await.map_err(|error| root_cause(&error))?;
        let status = answer.status().as_u16();
        let body = to_bytes(Body::new(answer.into_body()), LONGEST).await;
        let body = body.map_err(|error| root_cause(&error))?;
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
