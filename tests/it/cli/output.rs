//! Unwritable output: the exit status is 2 with a message on stderr, and `keygen` prints no credential whose entry is
//! not stored.

use std::fs;
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::acl;
use crate::support::process::{Process, command, command_under};
use crate::support::redis::shared_url;
use crate::support::sinks;

/// A reader that closes the pipe early, such as `head`, is not an error.
const BROKEN_PIPE_STATUS: Option<i32> = Some(0);
const KEYGEN: [&str; 2] = ["keygen", "--all-businesses"];

/// Runs the program with this stdout. Returns its exit status and what it wrote to stderr.
fn run_into(stdout: impl Into<Stdio>, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = command(arguments, variables).stdout(stdout).output().expect("the program");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn an_unwritable_stdout_is_an_error_and_a_closed_pipe_is_not() {
    let url = shared_url();
    let (_service, base) = Process::serve(&["--key-prefix", "sd:output"], &[("REDIS_URL", &url)]);
    let ready = reqwest::get(format!("{base}/readyz")).await.expect("a response");
    assert_eq!(ready.status().as_u16(), 200);
    let address = base.trim_start_matches("http://");
    let commands: [&[&str]; 8] = [
        &["openapi"],
        &["check-config"],
        &["--help"],
        &["--version"],
        &["keygen", "--help"],
        &["healthcheck", "--listen", address],
        &["audit", "--key-prefix", "sd:output"],
        &["audit", "--key-prefix", "sd:output", "--format", "json"],
    ];
    let variables = [("REDIS_URL", acl::audit_url(&url))];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for arguments in commands {
        for stdout in [sinks::full(), sinks::read_only()] {
            let (status, errors) = run_into(stdout, arguments, &variables);
            assert_eq!(status, Some(2), "{arguments:?}: {errors}");
            assert!(errors.contains("cannot write to stdout"), "{arguments:?}: {errors}");
        }
        let (status, errors) = run_into(sinks::broken_pipe(), arguments, &variables);
        assert_eq!((status, errors.as_str()), (BROKEN_PIPE_STATUS, ""), "{arguments:?}");
    }
}

#[test]
fn an_unwritable_stderr_does_not_change_the_exit_status() {
    let (_reader, stuck) = sinks::stuck_pipe();
    let stderrs: [Stdio; 3] = [sinks::full().into(), sinks::broken_pipe().into(), stuck.into()];
    for stderr in stderrs {
        let output = command(&["--idle-timeout", "soon", "check-config"], &[]).stderr(stderr).output();
        assert_eq!(output.expect("the program").status.code(), Some(2));
    }
    let (_reader, stuck) = sinks::stuck_pipe();
    let output = command(&["--no-such-flag"], &[]).stderr(stuck).output();
    assert_eq!(output.expect("the program").status.code(), Some(2));
}

#[test]
fn keygen_prints_no_credential_if_its_entry_is_not_stored() {
    let stdouts: [(&str, Stdio); 4] = [
        ("full", sinks::full().into()),
        ("not open for writing", sinks::read_only().into()),
        ("without a reader", sinks::broken_pipe().into()),
        ("discarded", Stdio::null()),
    ];
    for (name, stdout) in stdouts {
        let (status, errors) = run_into(stdout, &KEYGEN, &[]);
        assert_eq!(status, Some(2), "{name}: {errors}");
        assert!(errors.contains("stdout") && !errors.contains("credential ("), "{name}: {errors}");
    }
    let on_small_disk = "mount -t tmpfs -o size=4k tmpfs /mnt && head -c 4000 /dev/zero >/mnt/keys.toml && \
                         exec \"$0\" \"$@\" >>/mnt/keys.toml";
    let wrappers: [&[&str]; 2] = [
        &["sh", "-c", "exec \"$0\" \"$@\" >&-"],
        &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", on_small_disk],
    ];
    for wrapper in wrappers {
        let output = command_under(wrapper, &KEYGEN, &[]).output().expect("the program");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrapper:?}: {errors}");
        assert!(errors.contains("stdout") && !errors.contains("credential ("), "{wrapper:?}: {errors}");
    }
}

#[test]
fn keygen_stores_no_entry_if_the_credential_cannot_be_printed() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("keys.toml");
    let output = command(&KEYGEN, &[]).stdout(fs::File::create(&file).expect("a file")).stderr(Stdio::null()).status();
    assert_eq!(output.expect("the program").code(), Some(2));
    assert_eq!(fs::read_to_string(&file).expect("a file"), "");
    let stderrs: [Stdio; 2] = [sinks::full().into(), sinks::broken_pipe().into()];
    for stderr in stderrs {
        let output = command(&KEYGEN, &[]).stderr(stderr).output().expect("the program");
        assert_eq!(output.status.code(), Some(2), "the credential was not printed");
    }
    let output = command(&KEYGEN, &[]).stdout(fs::File::create(&file).expect("a file")).output().expect("the program");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("credential ("), "{output:?}");
    assert!(fs::read_to_string(&file).expect("a file").contains("[[key]]"));
}
