//! A conversation with sessiond, call by call: create, append, page, title, end, resume, history.
//!
//! Run it with `cargo run --example conversation`. It calls the service at `SESSIOND_URL` (default
//! <http://127.0.0.1:3000>), checks every response, and exits with an error at the first unexpected one.
#![expect(clippy::print_stdout, reason = "the example prints its progress")]

use std::error::Error;

use reqwest::header::{ETAG, HeaderMap, IF_MATCH, LINK};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BUSINESS: &str = "B0100001";
const USER: &str = "example-rust";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let api = Api { client: Client::new(), base: base_url() };
    let first = create(&api).await?;
    append(&api, &first).await?;
    page(&api, &first).await?;
    title(&api, &first).await?;
    end(&api, &first).await?;
    let second = create_another(&api, &first).await?;
    resume(&api, &first, &second).await?;
    history(&api, &first, &second).await?;
    delete(&api, &[first, second]).await
}

#[expect(clippy::disallowed_methods, reason = "the only setting of this example")]
fn base_url() -> String {
    std::env::var("SESSIOND_URL").unwrap_or_else(|_| "http://127.0.0.1:3000".to_owned())
}

/// A client of the API.
struct Api {
    client: Client,
    base: String,
}

/// A response of the API, read to its end.
struct Response {
    headers: HeaderMap,
    /// Null if the response has no body.
    body: Value,
}

impl Api {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    fn patch(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::PATCH, path).json(body)
    }
}

/// Sends a request whose response must have this status.
async fn send(request: RequestBuilder, expected: StatusCode) -> Result<Response> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await?;
    if status != expected {
        return Err(format!("{status} instead of {expected}: {text}").into());
    }
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
    Ok(Response { headers, body })
}

/// Fails unless a member of a body has this value.
fn check(body: &Value, member: &str, expected: impl Into<Value>) -> Result<()> {
    let expected = expected.into();
    if body[member] == expected {
        return Ok(());
    }
    Err(format!("{member} is {} instead of {expected}: {body}", body[member]).into())
}

/// The `seq` of every message of a page.
fn seqs(page: &Value) -> Vec<u64> {
    page.as_array().into_iter().flatten().filter_map(|message| message["seq"].as_u64()).collect()
}

fn session_id(session: &Value) -> Result<String> {
    let id = session["sessionId"].as_str().ok_or_else(|| format!("no sessionId: {session}"))?;
    Ok(id.to_owned())
}

/// The path in the `Link` header for a relation.
fn link<'a>(headers: &'a HeaderMap, relation: &str) -> Option<&'a str> {
    let relation = format!("; rel=\"{relation}\"");
    let links = headers.get(LINK)?.to_str().ok()?;
    let target = links.split(", ").find_map(|link| link.strip_suffix(relation.as_str()))?;
    target.strip_prefix('<')?.strip_suffix('>')
}

/// Creates a session. If an earlier run left an active one, `replace` ends it in the same step.
async fn create(api: &Api) -> Result<String> {
    let user = json!({"businessId": BUSINESS, "userId": USER});
    let new = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
    let created = send(api.post("/api/sessions", &new), StatusCode::CREATED).await?.body;
    check(&created, "status", "active")?;
    let id = session_id(&created)?;
    println!("created {id}");

    // The next page load gets the same session: at most one session of a user is active.
    let found = send(api.post("/api/sessions", &user), StatusCode::OK).await?.body;
    check(&found, "sessionId", id.as_str())?;
    let path = format!("/api/sessions/business/{BUSINESS}/user/{USER}/active");
    let active = send(api.get(&path), StatusCode::OK).await?.body;
    check(&active, "sessionId", id.as_str())?;
    println!("found it again");
    Ok(id)
}

/// Appends messages. A `messageId` makes a retry safe: the second call stores nothing.
async fn append(api: &Api, id: &str) -> Result<()> {
    let path = format!("/api/sessions/{id}/messages");
    let question = json!({"messageId": "m-1", "role": "user", "content": "When do you open?"});
    for status in [StatusCode::CREATED, StatusCode::OK] {
        let stored = send(api.post(&path, &question), status).await?.body;
        check(&stored, "seq", 1)?;
    }

    // Either all messages of a call are appended or none. Content is any JSON value except null.
    let several = json!([
        {"messageId": "m-2", "role": "assistant", "content": "At nine.", "metadata": {"model": "example"}},
        {"messageId": "m-3", "role": "user", "content": {"text": "Thanks", "stars": 5}},
    ]);
    let stored = send(api.post(&path, &several), StatusCode::CREATED).await?.body;
    if seqs(&stored) != [2, 3] {
        return Err(format!("not messages 2 and 3: {stored}").into());
    }
    println!("appended 3 messages");
    Ok(())
}

/// Reads the newest two messages, in ascending order, then the page that `Link` announces.
async fn page(api: &Api, id: &str) -> Result<()> {
    let newest = send(api.get(&format!("/api/sessions/{id}/messages?limit=2")), StatusCode::OK).await?;
    let older = link(&newest.headers, "prev").ok_or("no link to older messages")?;
    let older = send(api.get(older), StatusCode::OK).await?;
    if (seqs(&newest.body), seqs(&older.body)) != (vec![2, 3], vec![1]) {
        return Err(format!("not the pages of 3 messages: {} {}", newest.body, older.body).into());
    }
    println!("read them in two pages");
    Ok(())
}

/// Gives the session a title. `If-Match` protects a change that depends on what was read.
async fn title(api: &Api, id: &str) -> Result<()> {
    let path = format!("/api/sessions/{id}");
    let read = send(api.get(&path), StatusCode::OK).await?;
    let tag = read.headers.get(ETAG).ok_or("no ETag")?;
    let change = json!({"title": "Opening hours", "metadata": {"topic": "hours"}});
    let changed = send(api.patch(&path, &change).header(IF_MATCH, tag), StatusCode::OK).await?.body;
    check(&changed, "title", "Opening hours")?;
    check(&changed, "version", 2)?;

    // The tag names the previous version.
    let stale = api.patch(&path, &json!({"title": "Closing hours"})).header(IF_MATCH, tag);
    let rejected = send(stale, StatusCode::PRECONDITION_FAILED).await?.body;
    check(&rejected, "code", "version_mismatch")?;
    println!("gave it a title");
    Ok(())
}

/// Ends the session. It can still be read, but not appended to.
async fn end(api: &Api, id: &str) -> Result<()> {
    let path = format!("/api/sessions/{id}");
    let ended = send(api.patch(&path, &json!({"status": "ended"})), StatusCode::OK).await?.body;
    check(&ended, "endReason", "client")?;
    let late = api.post(&format!("{path}/messages"), &json!({"role": "user", "content": "Hello?"}));
    let rejected = send(late, StatusCode::CONFLICT).await?.body;
    check(&rejected, "code", "session_not_active")?;
    println!("ended it");
    Ok(())
}

/// Creates another session. The idempotency key makes a retry return that session instead of replacing it again.
async fn create_another(api: &Api, first: &str) -> Result<String> {
    let new = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
    let request = || api.post("/api/sessions", &new).header("Idempotency-Key", format!("after-{first}"));
    let id = session_id(&send(request(), StatusCode::CREATED).await?.body)?;
    let retried = send(request(), StatusCode::OK).await?.body;
    check(&retried, "sessionId", id.as_str())?;
    println!("created {id}");
    Ok(id)
}

/// Resumes the first session in place of the second.
async fn resume(api: &Api, first: &str, second: &str) -> Result<()> {
    let path = format!("/api/sessions/{first}");
    let rejected = send(api.patch(&path, &json!({"status": "active"})), StatusCode::CONFLICT).await?.body;
    check(&rejected, "code", "another_session_active")?;
    check(&rejected, "activeSessionId", second)?;
    let resume = json!({"status": "active", "ifActive": "replace"});
    let resumed = send(api.patch(&path, &resume), StatusCode::OK).await?.body;
    check(&resumed, "status", "active")?;
    let replaced = send(api.get(&format!("/api/sessions/{second}")), StatusCode::OK).await?.body;
    check(&replaced, "endReason", "replaced")?;

    // An empty patch is a heartbeat: it keeps the session active while the user only reads.
    let touched = send(api.patch(&path, &json!({})), StatusCode::OK).await?.body;
    check(&touched, "status", "active")?;
    println!("resumed {first}");
    Ok(())
}

/// Lists the user's sessions of every status.
async fn history(api: &Api, first: &str, second: &str) -> Result<()> {
    let path = format!("/api/sessions/business/{BUSINESS}/user/{USER}/history?limit=2");
    let sessions = send(api.get(&path), StatusCode::OK).await?.body;
    let ids: Vec<_> = sessions.as_array().into_iter().flatten().filter_map(|one| one["sessionId"].as_str()).collect();
    if !(ids.contains(&first) && ids.contains(&second)) {
        return Err(format!("not both sessions: {sessions}").into());
    }
    println!("found both in the history");
    Ok(())
}

/// Deletes the sessions and their messages, so this run leaves no data.
async fn delete(api: &Api, ids: &[String]) -> Result<()> {
    for id in ids {
        let path = format!("/api/sessions/{id}");
        send(api.request(Method::DELETE, &path), StatusCode::NO_CONTENT).await?;
        let missing = send(api.get(&path), StatusCode::NOT_FOUND).await?.body;
        check(&missing, "code", "session_not_found")?;
    }
    println!("deleted both");
    Ok(())
}
