//! Sets the revision of the build: the variable `SESSIOND_REVISION`, otherwise the commit of git, otherwise `unknown`.
//! Makes the web pages that the binary embeds: the console, and Swagger UI.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{Cursor, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::write::GzEncoder;
use xxhash_rust::xxh3::xxh3_64;
use zip::ZipArchive;

/// The files that the console loads, in `console/dist`. `console/build.js` makes them.
const CONSOLE_FILES: [&str; 3] = ["console.js", "console.css", "icon.svg"];
/// The files that the page at `/docs` loads: those of Swagger UI, and those in `src/http/docs`.
const SWAGGER_UI_FILES: [&str; 3] = ["swagger-ui-bundle.js", "swagger-ui.css", "index.css"];
const DOCS_FILES: [&str; 1] = ["docs.js"];

#[expect(clippy::disallowed_methods, reason = "build parameters, not settings of the service")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=SESSIOND_REVISION");
    // Git appends to this log with every commit and checkout. Without git, no commit triggers a rerun.
    let log = if Path::new(".git/logs/HEAD").exists() { ".git/logs/HEAD" } else { "build.rs" };
    println!("cargo::rerun-if-changed={log}");
    let revision = std::env::var("SESSIOND_REVISION").ok().or_else(git_revision);
    println!("cargo::rustc-env=SESSIOND_REVISION={}", revision.as_deref().unwrap_or("unknown"));

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let console = files_of("console/dist", &CONSOLE_FILES)?;
    embed(&out, "console", &fs::read_to_string("console/dist/index.html")?, &console)?;
    let mut docs = files_of("src/http/docs", &DOCS_FILES)?;
    docs.extend(swagger_ui_files()?);
    docs.push(("icon.svg", fs::read("console/dist/icon.svg")?));
    embed(&out, "docs", &fs::read_to_string("src/http/docs/index.html")?, &docs)
}

fn git_revision() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}

/// The contents of files, by their names.
type Files = Vec<(&'static str, Vec<u8>)>;

fn files_of(folder: &str, names: &[&'static str]) -> Result<Files, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={folder}");
    names.iter().map(|name| Ok((*name, fs::read(Path::new(folder).join(name))?))).collect()
}

fn swagger_ui_files() -> Result<Files, Box<dyn Error>> {
    let mut archive = ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED))?;
    let mut files = Files::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let path = entry.enclosed_name().unwrap_or_default();
        let is_wanted = |name: &&&str| path.ends_with(Path::new("dist").join(name));
        if let Some(name) = SWAGGER_UI_FILES.iter().find(is_wanted) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.push((name, content));
        }
    }
    if files.len() == SWAGGER_UI_FILES.len() { Ok(files) } else { Err("Swagger UI lacks a file".into()) }
}

/// Writes `<name>.html`, in which the files have the hashes of their contents in their names, and `<name>.rs`: a list
/// of these files with their compressed contents, as `src/http/static_files.rs` includes it.
fn embed(out: &Path, name: &str, page: &str, files: &Files) -> Result<(), Box<dyn Error>> {
    let (mut page, mut list) = (page.to_owned(), String::from("&[\n"));
    for (file, content) in files {
        let (stem, extension) = file.rsplit_once('.').ok_or("a file without extension")?;
        let hashed = format!("{stem}-{:016x}.{extension}", xxh3_64(content));
        if !page.contains(&format!("{file}\"")) {
            return Err(format!("the page {name} does not load {file}").into());
        }
        page = page.replace(&format!("{file}\""), &format!("{hashed}\""));
        // Compressing takes seconds, and this program runs with every commit.
        let brotli = out.join(format!("{hashed}.br"));
        if !brotli.exists() {
            fs::write(out.join(&hashed), content)?;
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(content)?;
            fs::write(out.join(format!("{hashed}.gz")), encoder.finish()?)?;
            fs::write(brotli, brotli_of(content)?)?;
        }
        writeln!(
            list,
            "StaticFile {{ name: \"{hashed}\", identity: include_bytes!(\"{hashed}\"), \
             gzip: include_bytes!(\"{hashed}.gz\"), brotli: include_bytes!(\"{hashed}.br\") }},"
        )?;
    }
    fs::write(out.join(format!("{name}.html")), page)?;
    fs::write(out.join(format!("{name}.rs")), list + "]\n")?;
    Ok(())
}

fn brotli_of(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let parameters = brotli::enc::BrotliEncoderParams { size_hint: content.len(), ..Default::default() };
    let mut compressed = Vec::new();
    brotli::BrotliCompress(&mut &content[..], &mut compressed, &parameters)?;
    Ok(compressed)
}
