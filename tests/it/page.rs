//! The status page: its policy, and its behaviour in a browser.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use hyper::{Method, StatusCode};
use jobcache::config::{CacheMode, Config, Secret};

use crate::support::{
    SOON, Setup, browser::Browser, client::Reply, eventually, upstream::with_headers,
};

const X: &str = "/jobs/x1";
const SECRET: &str = "a-secret-of-the-test";
/// Size limit of the page in bytes, because it is read over slow links during incidents.
const MOST: usize = 68 << 10;

async fn front(setup: &Setup) -> Reply {
    let page = setup.sidecar.admin.get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    page
}

fn url(setup: &Setup) -> String {
    format!("http://{}/", setup.sidecar.admin.address())
}

/// Returns the text between two marks, which must occur once.
fn between<'t>(text: &'t str, from: &str, to: &str) -> &'t str {
    let mut parts = text.split(from).skip(1);
    let part = parts.next().unwrap_or_else(|| panic!("no {from}"));
    assert!(parts.next().is_none(), "{from} twice");
    part.split_once(to).unwrap_or_else(|| panic!("no {to}")).0
}

/// Computes the hash with another implementation than jobcache's.
fn sha256_base64(text: &str) -> String {
    let script = "import base64, hashlib, sys; print(base64.b64encode(hashlib.sha256(sys.stdin.buffer.read()).digest()).decode(), end='')";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    python.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("a child that reads");
    String::from_utf8(python.wait_with_output().expect("a child that ends").stdout).expect("base64")
}

#[tokio::test]
async fn the_page_may_do_nothing_but_run_its_own_script_and_ask_this_listener() {
    let setup = Setup::cold(crate::support::RedisServer::absent(), |_| {}).await;
    let page = front(&setup).await;

    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("cross-origin-resource-policy"), "same-origin");
    let script = sha256_base64(between(page.text(), "<script>", "</script>"));
    let style = sha256_base64(between(page.text(), "<style>", "</style>"));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    assert_eq!(page.header("content-security-policy"), policy);
}

#[tokio::test]
async fn the_page_is_one_small_answer_that_needs_nothing_else() {
    let setup = Setup::cold(crate::support::RedisServer::absent(), |_| {}).await;
    let page = front(&setup).await;

    let text = page.text();
    assert!(text.len() < MOST, "{} bytes", text.len());
    for elsewhere in ["http://", "https://", "\"//", "@import", "url(", " src=", "innerHTML"] {
        let found = text.find(elsewhere);
        assert_eq!(found.map(|at| &text[at.saturating_sub(40)..at + 40]), None, "{elsewhere}");
    }
    let head = setup.sidecar.admin.request(Method::HEAD, "/").send().await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    let post = setup.sidecar.admin.request(Method::POST, "/").send().await;
    assert_eq!(post.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_browser_shows_figures_events_and_why_a_job_is_not_cached() {
    let Some(mut browser) = Browser::start().await else { return };
    let setup = Setup::new().await;
    setup
        .upstream
        .respond_to("/jobs/mine1", |_| with_headers("{}", &[("cache-control", "private")]));
    setup.hit(X).await;
    setup.get("/jobs/mine1").await;

    browser.open(&url(&setup)).await;
    browser.until("document.querySelector('#link').innerText === 'live'").await;
    browser.until("/%/.test(document.querySelector('#ratio').innerText)").await;
    browser.until("/up/.test(document.querySelector('#health').innerText)").await;
    browser.until("/ms/.test(document.querySelector('#latency').innerText)").await;
    browser.until("/x/.test(document.querySelector('#busiest').innerText)").await;
    browser.until("document.querySelector('path.line.saved').getAttribute('d').length > 10").await;

    let purged = setup.sidecar.admin.request(Method::POST, "/purge");
    let purged = purged.header("webhook-id", "msg_7").body(r#"{"job_id":"x1"}"#);
    assert_eq!(purged.send().await.status, StatusCode::OK);
    browser.until("/purge[^]*x[^]*msg_7/.test(document.querySelector('#events').innerText)").await;

    browser.fill("#id", &format!("{X}?t=1")).await;
    browser.click("#ask button.main").await;
    browser.until("/query string/.test(document.querySelector('#answer').innerText)").await;
    browser.fill("#id", "mine1").await;
    browser.click("#ask button.main").await;
    browser.until("/marked private/.test(document.querySelector('#answer').innerText)").await;

    setup.hit(X).await;
    browser.fill("#id", "x1").await;
    browser.click("#purge").await;
    assert!(setup.get(X).await.is_hit(), "purged without a confirmation");
    browser.click("#purge").await;
    browser.until("/Purged.*entry of/.test(document.querySelector('#receipt').innerText)").await;
    assert!(!setup.get(X).await.is_hit());

    assert_eq!(browser.complaints(), Vec::<&serde_json::Value>::new());
    let own = url(&setup);
    let asked = browser.asked();
    assert!(asked.iter().any(|url| url.ends_with("/events")), "{asked:?}");
    for url in asked {
        assert!(url.starts_with(&own) || url.starts_with("data:"), "{url}");
    }
}

#[tokio::test]
async fn a_browser_shows_what_shadow_mode_has_found_and_when_not_to_go_on() {
    let Some(mut browser) = Browser::start().await else { return };
    let redis = crate::support::RedisServer::start().await;
    let setup = Setup::cold(redis, |config| config.cache.mode = CacheMode::Shadow).await;
    let would_hit = async || setup.get(X).await.cache_status().ends_with("shadow-hit");
    eventually(SOON, would_hit).await;
    browser.open(&url(&setup)).await;
    let next = |words: &str| format!("/{words}/.test(document.querySelector('#next').innerText)");
    browser.until("/%/.test(document.querySelector('#would').innerText)").await;
    browser.until(&next("are few|is few")).await;

    setup.upstream.respond_to(X, |_| with_headers("{}", &[("set-cookie", "sid=1")]));
    assert!(would_hit().await);
    browser.until(&next("find out why 1 answer")).await;
    browser.until("/different 1/.test(document.querySelector('#found').innerText)").await;
    assert!(!browser.text("body").await.contains("set mode to on"));
    let status = setup.sidecar.admin.get("/status").await.json();
    assert_eq!((&status["shadow"]["different"], &status["verify"]["same"]), (&1.into(), &0.into()));
    assert!(status["shadow"]["same"].as_u64() >= Some(1), "{status}");
}

#[tokio::test]
async fn a_browser_shows_no_text_of_clients_as_markup() {
    let Some(mut browser) = Browser::start().await else { return };
    let setup = Setup::new().await;
    browser.open(&url(&setup)).await;
    browser.until("document.querySelector('#link').innerText === 'live'").await;
    browser.fill("#id", "<img src=x onerror=alert(1)>").await;
    browser.click("#ask button.main").await;
    browser.until("/is not a job id/.test(document.querySelector('#answer').innerText)").await;
    assert_eq!(browser.eval("document.images.length").await, 0);
    // The page's policy would reject it as well.
    let markup = "(() => { try { document.body.innerHTML = '<b>'; return 'done' } catch { return 'refused' } })()";
    assert_eq!(browser.eval(markup).await, "refused");
}

#[tokio::test]
async fn a_browser_asks_for_the_secret_and_tells_when_jobcache_is_gone() {
    let Some(mut browser) = Browser::start().await else { return };
    let secret = |config: &mut Config| config.webhook.secrets = vec![Secret::new(SECRET)];
    let mut setup = Setup::with(secret).await;
    browser.open(&url(&setup)).await;
    browser.until("!document.querySelector('#unlock').hidden").await;
    browser.fill("#secret", "wrong").await;
    browser.click("#unlock button").await;
    browser
        .until("/not the webhook secret/.test(document.querySelector('#refused').innerText)")
        .await;
    browser.fill("#secret", SECRET).await;
    browser.click("#unlock button").await;
    browser.until("document.querySelector('#link').innerText === 'live'").await;
    browser.until("/per second/.test(document.querySelector('#second').innerText)").await;
    assert_eq!(browser.eval("localStorage.length + document.cookie.length").await, 0);

    setup.sidecar.shutdown().await.expect("a clean end");
    browser
        .until("/No connection to jobcache/.test(document.querySelector('#alarms').innerText)")
        .await;
    assert_eq!(browser.text("#link").await, "connection lost");
}

#[tokio::test]
async fn a_browser_purges_nothing_for_a_page_of_another_origin() {
    let Some(mut browser) = Browser::start().await else { return };
    let setup = Setup::new().await;
    setup.hit(X).await;
    browser.open(&format!("{}/", setup.upstream.url())).await;
    // As forms do: without a preflight, and the answer cannot be read.
    let forged = format!(
        "Promise.all(['purge/x', 'purge'].map((path) => fetch('{}' + path, {{ method: 'POST', mode: \
         'no-cors', body: '{{\"all\":true}}' }}).catch(() => 0))).then(() => true)",
        url(&setup)
    );
    assert_eq!(browser.eval(&forged).await, true);
    assert!(setup.get(X).await.is_hit());
}
