//! The planted mutants are patches of this tree; `tests/mutants/run` shows that the suite catches them. Here only that it
//! still could: a patch that does not apply shows nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_mutant_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if Command::new("git").arg("--version").output().is_err() {
        return;
    }
    let mut patches = 0;
    for entry in fs::read_dir(root.join("tests/mutants")).expect("the folder of mutants").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let checked = Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root).output();
            let checked = checked.expect("git");
            let advice = "make it anew against this tree, and run tests/mutants/run";
            assert!(checked.status.success(), "{}: {advice}: {checked:?}", path.display());
            patches += 1;
        }
    }
    assert!(patches >= 7, "{patches} mutants: is this test looking in the right place?");
}
