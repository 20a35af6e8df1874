//! Route templates and ids, compared with a model of the API that they are for: which jobs it reads in a
//! path, and under which keys reads of those jobs are cached.
//!
//! Input: bytes that build the routes, the model and two paths; the rest is a template as a user might
//! write it.

use hyper::{Method, Request};
use jobcache::semantics::{
    identity::ReadJob,
    job_id::{Ids, JobId},
    route::{Route, Routes, WriteScope},
    settings::{ApiConfig, RouteConfig},
};

use super::route::{Stage, decoded, integer, uuid};

const LITERALS: [&str; 6] = ["jobs", "t", "v1", "a.b", "x-y", "7"];
const BEFORE: [&str; 6] = ["", "", "", "v", "job-", "."];
const AFTER: [&str; 6] = ["", "", "", ".json", ":x", "-z"];
const NAMES: [&str; 3] = ["tenant", "run", "a-1"];
const BETWEEN: [&str; 4] = [":", "", "-", "x"];
const PREFIXES: [Option<&str>; 4] = [None, None, Some("p:"), Some("q:")];
const TEXTS: [&str; 16] = [
    "7",
    "a",
    "a1",
    "b",
    "a:b1",
    ":",
    "007",
    "latest",
    "A1",
    "a b1",
    "a+b1",
    "é1",
    "..",
    "7.json",
    "0F8FAD5B-D9CB-469F-A165-70867728950E",
    "x{1",
];
/// What a spelling may add to a segment.
const ADDED: [&str; 8] = ["", "", "/", "/.", ";p=1", "/x/..", "%2F", "\\"];

/// Checks one input.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut shapes: Vec<Shape> = Vec::new();
    for _ in 0..=bytes.below(3) {
        let shape = Shape::build(&mut bytes);
        // Two routes with the same paths are refused.
        if shapes.iter().all(|other| other.paths() != shape.paths()) {
            shapes.push(shape);
        }
    }
    let model = Model::build(&mut bytes, &shapes);
    let paths = [bytes.path(&shapes), bytes.path(&shapes)];
    let except = bytes.except(&shapes);
    let text = String::from_utf8_lossy(bytes.0);
    check_template(&text);

    let api = ApiConfig {
        tables: shapes.iter().map(Shape::config).collect(),
        except: except.iter().map(|path| format!("/{}", path.join("/"))).collect(),
        ..ApiConfig::default()
    };
    let routes = Routes::new(&api).unwrap_or_else(|why| panic!("{why}: {api:?}"));
    let reads = paths.each_ref().map(|path| read(&routes, path));
    for (path, read) in paths.iter().zip(&reads) {
        check_write(&routes, &model, path);
        if let Some(job) = read {
            check_read(&model, path, job, except.as_deref());
        }
    }
    check_identities(&model, &paths, &reads);
    check_path_of(&routes, &JobId::new(text.trim(), 0));
}

/// A mistake in a template is named in one line, and the path that is proposed instead is a route.
fn check_template(text: &str) {
    let Err(why) = Routes::parse(&[text]) else { return };
    let why = why.to_string();
    assert!(why.contains(&text.escape_debug().to_string()), "{why:?} does not name {text:?}");
    assert!(!why.contains(char::is_control), "{why:?} could forge a line of a log");
    let proposed = why.rsplit_once("write '").or_else(|| why.rsplit_once("job {id}: '"));
    if let Some((path, _)) = proposed.and_then(|(_, rest)| rest.rsplit_once('\'')) {
        assert!(Routes::parse(&[path]).is_ok(), "{why}");
    }
}

/// A cached read is read alike by every API, and is none of the paths that are never cached.
fn check_read(model: &Model<'_>, path: &str, job: &ReadJob<'_>, except: Option<&[String]>) {
    check_key(&job.key);
    let route = job.place.route.position();
    for (_, texts) in model.readings(path).into_iter().filter(|(at, _)| *at == route) {
        // An API that does not decode has other texts for the same jobs.
        let texts: Vec<_> = texts.iter().map(|text| decoded(text)).collect();
        assert_eq!(variables(job), texts.join("/"), "{path} by {model:?}");
        let segments = model.shapes[route].segments(&texts);
        let is_same = |except: &[String]| {
            let mut pairs = segments.iter().zip(except);
            segments.len() == except.len() && pairs.all(|(a, b)| a.eq_ignore_ascii_case(b))
        };
        assert!(!except.is_some_and(is_same), "{path} is never cached, by {model:?}");
    }
}

/// A write names the keys of the jobs that the API reads in its path.
fn check_write(routes: &Routes, model: &Model<'_>, path: &str) {
    let Some(request) = request(&Method::DELETE, path) else { return };
    let scope = match routes.classify(&request) {
        Route::Write(scope) => scope,
        Route::Pass(_) => WriteScope::default(),
        Route::Read(job) => panic!("DELETE reads {job:?}"),
    };
    let named = scope.all_jobs();
    for job in &named {
        check_key(job.as_str());
        check_path_of(routes, job);
    }
    if scope.too_many {
        return;
    }
    let forms = [false, true].map(|plus_is_space| Model { plus_is_space, ..model.clone() });
    for (route, texts) in forms.iter().flat_map(|model| model.readings(path)) {
        let canonical = model.shapes[route].path(&texts);
        // A limit: where the text of one route is part of the id of another one, which comes first, a
        // write in another spelling names the jobs of both routes in that spelling alone.
        let is_limit = |job: &ReadJob<'_>| {
            job.place.route.position() != route && decoded(path) != decoded(&canonical)
        };
        if let Some(job) = read(routes, &canonical).filter(|job| !is_limit(job)) {
            assert!(
                named.contains(&job.id()),
                "{path:?} is {canonical:?} to {model:?}, whose key {job:?} is not among {named:?}"
            );
        }
    }
}

/// Two reads have one identity only if the API reads the same job in both.
fn check_identities(model: &Model<'_>, paths: &[String; 2], reads: &[Option<ReadJob<'static>>; 2]) {
    let [Some(one), Some(other)] = reads else { return };
    let route = one.place.route;
    if route != other.place.route || variables(one) != variables(other) {
        return;
    }
    assert_eq!(one.id(), other.id(), "{paths:?}");
    let texts = |path: &str| {
        let readings = model.readings(path).into_iter();
        let texts = readings.filter(|(at, _)| *at == route.position()).flat_map(|(_, texts)| texts);
        texts.map(|text| decoded(&text)).collect::<Vec<_>>()
    };
    let (one, other) = (texts(&paths[0]), texts(&paths[1]));
    assert!(one.is_empty() || other.is_empty() || one == other, "{paths:?} by {model:?}");
}

fn variables<'j>(job: &'j ReadJob<'_>) -> &'j str {
    job.place.variables.as_deref().unwrap_or(&job.key)
}

/// The path that stands for a job is read as a job with this key, or as none.
fn check_path_of(routes: &Routes, job: &JobId) {
    if let Some(path) = routes.path_of(job) {
        let found = read(routes, &path).map(|job| job.id());
        assert!(found.is_none_or(|found| found == *job), "{path} is not of {job:?}");
    }
}

fn check_key(key: &str) {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '{' | '}');
    assert!((1..=512).contains(&key.len()) && key.chars().all(is_plain), "{key:?}");
}

fn request(method: &Method, path: &str) -> Option<Request<()>> {
    let request = Request::builder().method(method).uri(path).body(()).ok()?;
    (request.uri().path() == path).then_some(request)
}

fn read(routes: &Routes, path: &str) -> Option<ReadJob<'static>> {
    match routes.classify(&request(&Method::GET, path)?) {
        Route::Read(job) => Some(job),
        Route::Write(_) | Route::Pass(_) => None,
    }
}

/// A route as the API knows it.
#[derive(Debug)]
struct Shape {
    segments: Vec<Part>,
    has_slash: bool,
    key: Option<String>,
    prefix: Option<&'static str>,
    ids: Ids,
}

/// A segment: a literal, or a variable with its name between two texts.
#[derive(Debug)]
struct Part {
    before: &'static str,
    name: Option<&'static str>,
    after: &'static str,
}

impl Shape {
    fn build(bytes: &mut Bytes<'_>) -> Self {
        let count = 1 + bytes.below(4);
        let id_at = bytes.below(count);
        let mut names = NAMES.iter();
        let segments = (0..count).map(|at| {
            let is_variable = at == id_at || bytes.below(3) == 0;
            let name = if at == id_at { Some("id") } else { names.next().copied() };
            match name.filter(|_| is_variable) {
                Some(name) => {
                    let (before, after) = (bytes.of(&BEFORE), bytes.of(&AFTER));
                    Part { before, name: Some(name), after }
                }
                None => Part { before: bytes.of(&LITERALS), name: None, after: "" },
            }
        });
        let segments: Vec<Part> = segments.collect();
        let names: Vec<_> = segments.iter().filter_map(|part| part.name).collect();
        let between = bytes.of(&BETWEEN);
        let key = names.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(between);
        let key = (bytes.below(2) == 0).then_some(key);
        let has_slash = bytes.below(3) == 0;
        let (prefix, ids) = (bytes.of(&PREFIXES), bytes.of(&[Ids::Auto, Ids::Opaque]));
        Self { segments, has_slash, key, prefix, ids }
    }

    fn config(&self) -> RouteConfig {
        let variables: Vec<_> =
            self.segments.iter().filter_map(|part| Some(format!("{{{}}}", part.name?))).collect();
        RouteConfig {
            key: self.key.clone(),
            prefix: self.prefix.map(str::to_owned),
            ids: Some(self.ids),
            ..RouteConfig::at(&self.filled(&variables))
        }
    }

    /// The path with an empty name for each variable.
    fn paths(&self) -> String {
        let variables = self.segments.iter().filter(|part| part.name.is_some());
        self.filled(&variables.map(|_| "{}".to_owned()).collect::<Vec<_>>())
    }

    /// The segments of the path with these texts of the variables.
    fn segments(&self, texts: &[String]) -> Vec<String> {
        let mut texts = texts.iter();
        let mut text = || texts.next().map_or("", String::as_str);
        let segment =
            |part: &Part| [part.before, part.name.map_or("", |_| text()), part.after].concat();
        self.segments.iter().map(segment).collect()
    }

    fn filled(&self, texts: &[String]) -> String {
        let slash = if self.has_slash { "/" } else { "" };
        format!("/{}{slash}", self.segments(texts).join("/"))
    }

    /// The path of the job with these variables, as a client spells it.
    fn path(&self, texts: &[String]) -> String {
        self.filled(&texts.iter().map(|text| encoded(text)).collect::<Vec<_>>())
    }
}

/// The API and the gateway before it.
#[derive(Clone, Debug)]
struct Model<'s> {
    shapes: &'s [Shape],
    stages: [Stage; 2],
    /// Whether variables are decoded once more.
    decodes_texts: bool,
    plus_is_space: bool,
    ignores_case: bool,
    /// How `{id}` is parsed if ids are not text.
    parser: usize,
}

impl<'s> Model<'s> {
    fn build(bytes: &mut Bytes<'_>, shapes: &'s [Shape]) -> Self {
        Self {
            shapes,
            stages: [Stage(bytes.byte()), Stage(bytes.byte())],
            decodes_texts: bytes.below(2) == 0,
            plus_is_space: false,
            ignores_case: bytes.below(2) == 0,
            parser: bytes.below(3),
        }
    }

    /// The routes that match a path, each with the texts of its variables.
    fn readings(&self, path: &str) -> Vec<(usize, Vec<String>)> {
        let plain = self.stages.iter().fold(path.to_owned(), |path, stage| stage.apply(&path));
        let Some(rest) = plain.strip_prefix('/') else { return Vec::new() };
        let segments: Vec<&str> = rest.strip_suffix('/').unwrap_or(rest).split('/').collect();
        let shapes = self.shapes.iter().enumerate();
        shapes.filter_map(|(at, shape)| Some((at, self.texts(shape, &segments)?))).collect()
    }

    fn texts(&self, shape: &Shape, segments: &[&str]) -> Option<Vec<String>> {
        if segments.len() != shape.segments.len() {
            return None;
        }
        let is_same = |a: &str, b: &str| a == b || self.ignores_case && a.eq_ignore_ascii_case(b);
        let mut texts = Vec::new();
        for (part, segment) in shape.segments.iter().zip(segments) {
            let (before, rest) = segment.split_at_checked(part.before.len())?;
            let (text, after) = rest.split_at_checked(rest.len().checked_sub(part.after.len())?)?;
            if !is_same(before, part.before) || !is_same(after, part.after) {
                return None;
            }
            match part.name {
                None if text.is_empty() => {}
                Some(name) if !text.is_empty() => texts.push(self.parsed(shape.ids, name, text)?),
                _ => return None,
            }
        }
        Some(texts)
    }

    fn parsed(&self, ids: Ids, name: &str, text: &str) -> Option<String> {
        let text = if self.plus_is_space { text.replace('+', " ") } else { text.to_owned() };
        let text = if self.decodes_texts { decoded(&text) } else { text };
        match (ids, name, self.parser) {
            (Ids::Auto, "id", 1) => integer(&text),
            (Ids::Auto, "id", 2) => uuid(&text),
            _ => Some(text),
        }
    }
}

/// The bytes of an input.
struct Bytes<'d>(&'d [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Texts for the variables of a shape.
    fn texts(&mut self, shape: &Shape) -> Vec<String> {
        let variables = shape.segments.iter().filter(|part| part.name.is_some());
        variables.map(|_| self.of(&TEXTS).to_owned()).collect()
    }

    /// A path of a job in some spelling.
    fn path(&mut self, shapes: &[Shape]) -> String {
        let shape = &shapes[self.below(shapes.len())];
        let texts = self.texts(shape);
        if self.below(4) == 0 {
            return shape.path(&texts);
        }
        let mut path = String::new();
        for segment in shape.segments(&texts) {
            path.push('/');
            for c in segment.chars() {
                let text = c.to_string();
                match self.below(12) {
                    0 => path.extend(text.bytes().map(|byte| format!("%{byte:02X}"))),
                    1 => path.extend(text.bytes().map(|byte| format!("%25{byte:02x}"))),
                    2 => path.push_str(&encoded(&text.to_ascii_uppercase())),
                    _ => path.push_str(&encoded(&text)),
                }
            }
            path.push_str(self.of(&ADDED));
        }
        if self.below(3) == 0 { format!("{path}/") } else { path }
    }

    /// The segments of a path that is never cached.
    fn except(&mut self, shapes: &[Shape]) -> Option<Vec<String>> {
        let shape = &shapes[self.below(shapes.len())];
        let segments = shape.segments(&self.texts(shape));
        let is_pattern = || Routes::parse(&[format!("/{}/{{id}}", segments.join("/"))]).is_ok();
        (self.below(2) == 0 && is_pattern()).then_some(segments)
    }
}

/// A text as a client spells it in a path, apart from `+`.
fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:+".contains(&byte);
    let byte = |byte: u8| {
        if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(byte).collect()
}
