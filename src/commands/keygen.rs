//! `sessiond keygen`.

use std::process::ExitCode;

use sessiond::config::KeygenArgs;
use sessiond::{auth, output};

use super::{EXIT_USAGE, fail, fail_with};

/// Makes an API key. Writes only the entry to stdout, where it can be appended to the file of API keys. The credential
/// must not be in that file, so it is written to stderr.
///
/// The credential is shown only if its entry was written, and an entry is written only if its credential can be shown:
/// each is useless without the other.
pub(crate) fn run(args: KeygenArgs) -> ExitCode {
    let [stdout, stderr] = [output::is_discarded(std::io::stdout()), output::is_discarded(std::io::stderr())];
    for (name, is_discarded) in [("stdout", stdout), ("stderr", stderr)] {
        match is_discarded {
            Ok(false) => {}
            Ok(true) => return fail(&format!("no key was made: {name} is closed or /dev/null"), EXIT_USAGE),
            Err(error) => return fail(&format!("no key was made: cannot use {name}: {error}"), EXIT_USAGE),
        }
    }
    let (credential, entry) = match auth::generate(&args.into_key()) {
        Ok(made) => made,
        Err(problem) => return fail_with(&[problem]),
    };
    if let Err(error) = output::print(&format!("\n{entry}\n")) {
        let advice = "remove any part of it that was written; its credential is not shown";
        return fail(&format!("cannot write the entry to stdout: {error}: {advice}"), EXIT_USAGE);
    }
    match output::print_error(&format!("credential (shown only now): {credential}\n")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot show the credential: {error}: remove its entry"), EXIT_USAGE),
    }
}
