//! Credentials: which calls are accepted, which are rejected, and what a rejection discloses.

mod limits;
mod matrix;
mod other_tenant;
mod roles;
mod rotation;
mod secrets;
mod settings;
mod tokens;
mod whoami;

use reqwest::Method;
use serde_json::Value;

use crate::support::service::{Answer, Service};

impl Service {
    /// Sends a call with these headers, and with a JSON body if `body` is given.
    async fn call_as(&self, headers: &[(&str, &str)], method: Method, path: &str, body: Option<&Value>) -> Answer {
        let mut headers = headers.to_vec();
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        self.send(method, path, &headers, body).await
    }

    /// Sends a `GET` with this credential as a bearer token.
    pub async fn get_as(&self, credential: &str, path: &str) -> Answer {
        self.call_as(&[("authorization", &format!("Bearer {credential}"))], Method::GET, path, None).await
    }

    /// Sends a call with this credential as a bearer token, and with a JSON body unless `body` is null.
    pub async fn bearer(&self, credential: &str, method: Method, path: &str, body: Value) -> Answer {
        let header = format!("Bearer {credential}");
        self.call_as(&[("authorization", &header)], method, path, Some(&body).filter(|body| !body.is_null())).await
    }
}
