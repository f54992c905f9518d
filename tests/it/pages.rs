//! The web pages that the binary embeds, `/console/` and `/docs`: redirects, caching, compression, security headers and
//! settings. The tests of the console itself are in `console/test`.

use std::io::Read;

use flate2::read::GzDecoder;
use reqwest::{Method, redirect};

use crate::support::raw::RawRequest;
use crate::support::service::{Answer, Service};

/// The pages, with the folder of their files.
const PAGES: [(&str, &str); 2] = [("/console/", "/console/"), ("/docs", "/")];

/// The links of a page to its own files: those of `href` and `src`.
fn files(page: &Answer, folder: &str) -> Vec<String> {
    let links = ["href=\"", "src=\""].into_iter().flat_map(|start| page.text.split(start).skip(1));
    let links = links.filter_map(|rest| rest.split('"').next()).filter(|link| !link.starts_with('#'));
    links.map(|link| format!("{folder}{link}")).collect()
}

async fn get(service: &Service, path: &str, headers: &[(&str, &str)]) -> Answer {
    service.send(Method::GET, path, headers, Vec::new()).await
}

async fn bytes(service: &Service, path: &str, coding: &str) -> (Vec<u8>, Option<String>) {
    let request = reqwest::Client::new().get(format!("{}{path}", service.base)).header("accept-encoding", coding);
    let response = request.send().await.expect("a response").error_for_status().expect("200");
    let used = response.headers().get("content-encoding").map(|value| value.to_str().expect("text").to_owned());
    (response.bytes().await.expect("a body").to_vec(), used)
}

#[tokio::test]
async fn a_page_is_revalidated_and_its_files_are_immutable() {
    let service = Service::start(&[]).await;
    for (path, folder) in PAGES {
        let page = service.get(path).await.expect(200);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(page.header("cache-control"), Some("no-cache"));
        let tag = page.header("etag").expect("an entity tag").to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {}-gzip\"", tag.trim_end_matches('"'))] {
            let unchanged = get(&service, path, &[("if-none-match", &known)]).await.expect(304);
            assert_eq!((unchanged.header("etag"), unchanged.text.as_str()), (Some(tag.as_str()), ""), "{known}");
            assert!(unchanged.header("content-security-policy").is_some(), "{known}");
        }
        get(&service, path, &[("if-none-match", "\"other\"")]).await.expect(200);
        let files = files(&page, folder);
        assert!(files.len() >= 3, "{page:?}");
        for file in files {
            let response = service.get(&file).await.expect(200);
            assert_eq!(response.header("cache-control"), Some("public, max-age=31536000, immutable"), "{file}");
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{file}");
            let kind = response.header("content-type").expect("a type");
            assert!(["text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"].contains(&kind));
        }
    }
    // All other responses are not cached, including errors of these pages.
    for path in ["/livez", "/openapi.json", "/console/console.js", "/docs/swagger-ui.css", "/console/console.js/x"] {
        assert_eq!(service.get(path).await.header("cache-control"), Some("no-store"), "{path}");
    }
    service.get("/console/console.js").await.expect_problem(404, "route_not_found");
}

#[tokio::test]
async fn files_are_compressed_for_clients_that_accept_it() {
    let service = Service::start(&[]).await;
    for (path, folder) in PAGES {
        for file in files(&service.get(path).await, folder) {
            let (identity, coding) = bytes(&service, &file, "identity").await;
            assert_eq!(coding, None);
            let (gzip, coding) = bytes(&service, &file, "gzip;q=1.0, deflate").await;
            assert_eq!(coding.as_deref(), Some("gzip"));
            let mut decoded = Vec::new();
            GzDecoder::new(gzip.as_slice()).read_to_end(&mut decoded).expect("gzip");
            assert!(decoded == identity, "{file}");
            let (brotli, coding) = bytes(&service, &file, "gzip, deflate, br, zstd").await;
            assert_eq!(coding.as_deref(), Some("br"));
            let mut decoded = Vec::new();
            brotli::Decompressor::new(brotli.as_slice(), 4096).read_to_end(&mut decoded).expect("brotli");
            assert!(decoded == identity, "{file}");
            if identity.len() > 1000 {
                assert!(gzip.len() * 2 < identity.len() && brotli.len() < gzip.len(), "{file}");
            }
            let head = service.send(Method::HEAD, &file, &[("accept-encoding", "br")], Vec::new()).await;
            assert_eq!(head.header("content-length"), Some(brotli.len().to_string().as_str()), "{file}");
            assert_eq!(head.header("vary"), Some("accept-encoding"), "{file}");
        }
    }
}

/// The status and the `Location` of a response to a browser.
async fn redirected(service: &Service, path: &str) -> (u16, Option<String>) {
    let client = reqwest::Client::builder().redirect(redirect::Policy::none()).build().expect("a client");
    let request = client.get(format!("{}{path}", service.base));
    let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let response = request.header("accept", accept).send().await.expect("a response");
    let location = response.headers().get("location").map(|value| value.to_str().expect("text").to_owned());
    (response.status().as_u16(), location)
}

#[tokio::test]
async fn short_addresses_redirect_to_the_pages() {
    let service = Service::start(&[]).await;
    for (path, status, location) in [("/", 307, "console/"), ("/console", 308, "console/"), ("/docs/", 308, "../docs")]
    {
        // Relative, because a proxy may serve the service under another path.
        assert_eq!(redirected(&service, path).await, (status, Some(location.to_owned())), "{path}");
    }
    // reqwest follows redirects.
    let page = get(&service, "/", &[("accept", "text/html")]).await.expect(200);
    assert!(page.text.contains("<title>sessiond console"), "{page:?}");
    assert!(service.get("/docs/").await.expect(200).text.contains("swagger-ui"));
    for accept in ["application/json", "*/*"] {
        let index = get(&service, "/", &[("accept", accept)]).await.expect(200);
        assert_eq!(index.string("name"), "sessiond");
        for name in ["console", "docs", "openapi", "ready"] {
            service.get(&index.string(name)).await.expect(200);
        }
    }
    for path in ["/", "/console", "/console/", "/docs/"] {
        RawRequest::new("POST", path).send(&service.base).await.expect_problem(405, "method_not_allowed");
    }
}

#[tokio::test]
async fn the_console_can_be_disabled() {
    let service = Service::start(&["--no-console"]).await;
    for path in ["/console", "/console/", "/console/icon.svg"] {
        service.get(path).await.expect_problem(404, "route_not_found");
    }
    assert_eq!(redirected(&service, "/").await, (307, Some("docs".to_owned())));
    let index = service.get("/").await.expect(200);
    assert!(index.member("console").is_null(), "{index:?}");
    service.get("/docs").await.expect(200);
}

#[tokio::test]
async fn pages_run_only_their_own_scripts_and_escape_the_label() {
    let service = Service::start(&["--console-label", "<script>\"prod\" & more"]).await;
    let page = service.get("/console/").await.expect(200);
    assert!(page.text.contains("content=\"&lt;script>&quot;prod&quot; &amp; more\""), "{page:?}");
    assert_ne!(page.header("etag"), Service::start(&[]).await.get("/console/").await.header("etag"));
    let policy = page.header("content-security-policy").expect("a policy");
    for directive in ["default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'"] {
        assert!(policy.split("; ").any(|part| part == directive), "{policy}");
    }
    for (path, _) in PAGES {
        let page = service.get(path).await;
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(!policy.contains("unsafe-eval") && policy.contains("script-src 'self';"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"), "{policy}");
        // The page has no inline script.
        let scripts = page.text.split("<script").skip(1).filter_map(|rest| rest.split_once('>'));
        for (attributes, rest) in scripts {
            assert!(attributes.contains("src=\"") && rest.starts_with("</script>"), "{page:?}");
        }
    }
}
