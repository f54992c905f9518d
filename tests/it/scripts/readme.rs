//! The table and the example of `lua/README.md`.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::{SCRIPTS, TOUCH_DUE, WRITES, project};
use crate::support::monitor::Monitor;
use crate::support::redis;
use crate::support::service::Service;

fn readme() -> String {
    fs::read_to_string(project().join("lua/README.md")).expect("lua/README.md")
}

#[test]
fn the_readme_lists_exactly_the_scripts() {
    let text = readme();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(".lua` |"));
    let listed: Vec<_> = rows.map(|(operation, _)| operation.to_owned()).collect();
    let files: Vec<_> = SCRIPTS.iter().map(|script| script.operation.clone()).collect();
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(sorted, files, "the table of lua/README.md and the files");
}

#[tokio::test]
async fn the_readme_shows_the_commands_of_a_session() {
    let service = Service::start(&[]).await;
    let start = service.now().0;
    let monitor = Monitor::start(&redis::shared());
    let body = json!({"businessId": "B0100001", "userId": "user_123"});
    let id = service.post("/api/sessions", body.clone()).await.expect(201).string("sessionId");
    service.advance(TOUCH_DUE);
    service.post("/api/sessions", body).await.expect(200);
    service.advance(Duration::from_secs(1));
    let appended = service.now();
    let message = json!({"messageId": "m-1", "role": "user", "content": "Hello!"});
    service.post(&format!("/api/sessions/{id}/messages"), message).await.expect(201);
    service.advance(Duration::from_secs(60));
    service.patch(&format!("/api/sessions/{id}"), json!({"status": "ended"})).await.expect(200);
    let commands = monitor.finish(&service.probe).await;

    // Replaces random and changing parts by those of the example, which starts at 2026-11-22T10:00:00.000Z.
    let shown = |word: &String| {
        let word = word.replace(&id, "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e");
        let word = word.replace(&format!("{}:{{", service.config.redis.key_prefix), "sd:{");
        let word = word.replace(&appended.to_string(), "2026-11-22T10:02:01.000Z");
        let of_example = |ms: i64| ms - start + 1_795_341_600_000;
        // A notification begins with a time.
        let notified = word.split_once(' ').and_then(|(ms, rest)| Some((ms.parse::<i64>().ok()?, rest)));
        match word.parse::<i64>() {
            Ok(ms) if ms >= start => of_example(ms).to_string(),
            _ if notified.is_some_and(|(ms, _)| ms >= start) => {
                notified.map(|(ms, rest)| format!("'{} {rest}'", of_example(ms))).unwrap_or_default()
            }
            _ if word.is_empty() || word.contains([' ', '"', '{']) && !word.starts_with("sd:") => format!("'{word}'"),
            _ => word,
        }
    };
    let own = format!("{}:", service.config.redis.key_prefix);
    let inner = commands.iter().flat_map(|command| &command.inner);
    let writes = inner.filter(|words| WRITES.contains(&words[0].as_str()) && words[1].starts_with(&own));
    let lines: Vec<_> = writes
        .map(|words| {
            let mut words: Vec<_> = words.iter().map(shown).collect();
            if let Some(index) = words.iter().position(|word| word == "mutations") {
                words[index + 1] = "'0x2mR7vQk1s '".to_owned();
            }
            words.join(" ")
        })
        .collect();
    let text = readme();
    let shown: Vec<_> =
        text.lines().filter(|line| WRITES.iter().any(|name| line.starts_with(&format!("{name} ")))).collect();
    assert_eq!(shown, lines, "lua/README.md must show:\n{}", lines.join("\n"));
}
