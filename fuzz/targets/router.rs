#![no_main]

use std::cell::RefCell;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sessiond_fuzz::Requests;

thread_local! {
    static REQUESTS: RefCell<Requests> = RefCell::new(Requests::start(Path::new(&data_dir())));
}

/// The data directory of the embedded Redis, one per process.
fn data_dir() -> String {
    std::env::temp_dir().join(format!("redis-{}", std::process::id())).to_string_lossy().into_owned()
}

fuzz_target!(|input: &[u8]| REQUESTS.with_borrow_mut(|requests| requests.run(input)));
