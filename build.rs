//! Sets the revision of the build: the variable `SESSIOND_REVISION`, otherwise the commit of git, otherwise `unknown`.

use std::path::Path;
use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "a build parameter, not a setting of the service")]
fn main() {
    println!("cargo::rerun-if-env-changed=SESSIOND_REVISION");
    // Git appends to this log with every commit and checkout. Without git, no commit triggers a rerun.
    let log = if Path::new(".git/logs/HEAD").exists() { ".git/logs/HEAD" } else { "build.rs" };
    println!("cargo::rerun-if-changed={log}");
    let revision = std::env::var("SESSIOND_REVISION").ok().or_else(git_revision);
    println!("cargo::rustc-env=SESSIOND_REVISION={}", revision.as_deref().unwrap_or("unknown"));
}

fn git_revision() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}
