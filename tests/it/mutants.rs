//! The mutants are patches of this repository. `tests/mutants/run` shows that the test suite catches them; this test
//! only checks that they still apply.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_mutant_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut patches = 0;
    for entry in fs::read_dir(root.join("tests/mutants")).expect("the folder of mutants").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let output = Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root).output();
            let output = output.expect("git, which this test needs");
            let advice = "update the patch for the current source, and run tests/mutants/run";
            assert!(output.status.success(), "{}: {advice}: {output:?}", path.display());
            patches += 1;
        }
    }
    assert!(patches >= 7, "found only {patches} mutants in tests/mutants");
}
