//! The job that a request names, compared with models of upstreams. A model reads paths in two
//! stages (a gateway and a framework), each of which may decode, resolve dot segments, merge
//! slashes, take `\` for `/` and cut off parameters, in either order.
//!
//! Input: three bytes that select the model, the method and the target, then header lines.

use hyper::{Method, Request};
use jobcache::semantics::{
    job_id::{JobId, is_canonical, possible_ids},
    route::{MAX_NAMED, Route, Routes, WriteScope},
};
use percent_encoding::percent_decode_str;

/// Jobs from which on a path counts as made for the purpose; only a real write then says whether it covers
/// all of them.
const MANY_JOBS: usize = 32;

/// Checks one input.
pub fn run(data: &[u8]) {
    let Some((&[first, second, reader], text)) = data.split_first_chunk() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (target, lines) = super::line(text);
    let routes = Routes::parse(&["/jobs/{id}", "/x/{id}/status"]).expect("valid templates");
    let model = Model { stages: [Stage(first), Stage(second)], reader };

    check_segment(target.rsplit('/').next().unwrap_or_default());
    let jobs = routes.named_by_path(target).all_jobs();
    check_jobs(&jobs);
    if jobs.len() < MANY_JOBS
        && target.starts_with('/')
        && !target.starts_with("//")
        && !target.contains("://")
    {
        let path = target.trim().split(['?', '#']).next().unwrap_or_default();
        check_write(&jobs, &model, path);
    }
    check_requests(&routes, &model, target, lines);
}

/// A write covers every job that an upstream may read in the path; a cached read has a path that no
/// upstream may read as another job.
fn check_requests(routes: &Routes, model: &Model, target: &str, lines: &str) {
    let request = |method: &Method| {
        let mut request = Request::builder().method(method).uri(target).body(()).ok()?;
        *request.headers_mut() = super::headers(lines);
        Some(request)
    };
    let (Some(get), Some(delete)) = (request(&Method::GET), request(&Method::DELETE)) else {
        return;
    };
    let path = get.uri().path().to_owned();
    let written = match routes.classify(&delete) {
        Route::Write(scope) => scope,
        Route::Pass(_) => WriteScope::default(),
        Route::Read(job) => panic!("DELETE reads {job:?}"),
    };
    let named = [&written.jobs[..], &written.elsewhere].concat();
    check_jobs(&named);
    // A write that names too many counts as one that changes every job.
    if path.starts_with('/') && !path.starts_with("//") && !written.too_many {
        check_write(&named, model, &path);
    }
    match routes.classify(&get) {
        Route::Read(job) => {
            let id = job.id();
            assert!(is_canonical(id.as_str()), "{id}");
            assert_eq!(
                written.jobs,
                std::slice::from_ref(&id),
                "the path of a read has several readings: {path}"
            );
            if let Some(read) = model.job(&path) {
                assert_eq!(read, id.as_str(), "{path} by {model:?}");
            }
            assert!(get.uri().query().is_none());
            let overridden = |name| get.headers().contains_key(name);
            assert!(!overridden("x-http-method-override") && !overridden("x-original-url"));
        }
        // A method override header makes the read a write.
        Route::Write(scope) => {
            assert_eq!((scope.jobs, scope.elsewhere), (written.jobs, written.elsewhere));
        }
        Route::Pass(_) => {}
    }
}

fn check_jobs(jobs: &[JobId]) {
    assert!(jobs.len() <= MAX_NAMED);
    for (at, job) in jobs.iter().enumerate() {
        assert!(is_canonical(job.as_str()), "{job}");
        assert!(!jobs[..at].contains(job), "{job} twice");
    }
}

/// The job that the model reads is among the jobs of the write.
fn check_write(jobs: &[JobId], model: &Model, path: &str) {
    if let Some(read) = model.job(path).filter(|id| is_canonical(id)) {
        let read = JobId::new(&read, 0);
        assert!(
            jobs.contains(&read),
            "{model:?} reads {path:?} as {read}, which is not in {jobs:?}"
        );
    }
}

/// A segment has the readings that integer and UUID parsers give.
fn check_segment(segment: &str) {
    let ids = possible_ids(segment);
    for id in &ids {
        assert_eq!(possible_ids(id), std::slice::from_ref(id), "a reading is not canonical");
    }
    let id = integer(segment).or_else(|| uuid(segment));
    if let Some(id) = id.filter(|id| is_canonical(id)) {
        assert!(ids.contains(&id), "{segment:?} is {id}, not {ids:?}");
    }
}

/// A model of an upstream.
#[derive(Debug)]
struct Model {
    stages: [Stage; 2],
    /// Selects the parser of the id.
    reader: u8,
}

impl Model {
    fn job(&self, path: &str) -> Option<String> {
        let path = self.stages.iter().fold(path.to_owned(), |path, stage| stage.apply(&path));
        let mut segments = path.strip_prefix('/')?.split('/');
        let literal = segments.next()?;
        let known = ["jobs", "x"].iter().any(|known| known.eq_ignore_ascii_case(literal));
        let id = segments.next().filter(|id| known && !id.is_empty())?;
        match self.reader % 4 {
            0 => Some(id.to_owned()),
            1 => integer(id),
            2 => uuid(id),
            _ => id.strip_suffix(".json").map(str::to_owned),
        }
    }
}

/// The steps that a gateway or a framework applies to a path, with a bit for each step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage(pub(super) u8);

impl Stage {
    pub(super) fn apply(self, path: &str) -> String {
        match self.0 >> 6 {
            0 => self.walk(path),
            1 => self.walk(&decoded(path)),
            2 => decoded(&self.walk(path)),
            _ => path.to_owned(),
        }
    }

    fn does(self, bit: u8) -> bool {
        self.0 & (1 << bit) != 0
    }

    fn walk(self, path: &str) -> String {
        let path = if self.does(0) { path.replace('\\', "/") } else { path.to_owned() };
        let mut stack = Vec::new();
        let Some(rest) = path.strip_prefix('/') else { return path };
        for segment in rest.split('/') {
            let bare = segment.split(';').next().unwrap_or_default();
            match if self.does(1) { bare } else { segment } {
                "." if self.does(2) => {}
                ".." if self.does(2) => drop(stack.pop()),
                "" if self.does(3) => {}
                segment => stack.push(segment),
            }
        }
        format!("/{}", stack.join("/"))
    }
}

pub(super) fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Parses an integer as Python's `int` does.
pub(super) fn integer(text: &str) -> Option<String> {
    let text = text.trim();
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let is_number = |group: &str| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit());
    let number = digits.split('_').all(is_number).then(|| digits.replace('_', ""))?;
    let number = number.trim_start_matches('0');
    Some(if number.is_empty() { "0".to_owned() } else { format!("{sign}{number}") })
}

/// Parses a UUID as Python's `UUID` does.
pub(super) fn uuid(text: &str) -> Option<String> {
    let hex = text.replace("urn:", "").replace("uuid:", "");
    let hex = hex.trim_matches(['{', '}']).replace('-', "").to_ascii_lowercase();
    let is_uuid = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_uuid.then(|| [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}
