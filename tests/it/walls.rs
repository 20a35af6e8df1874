//! The walls of `docs/architecture.md`: which room may import which, no circles between files, and no
//! type that is spread over many of them. Reads the `use` lines and the paths of `src`. Test modules may
//! import anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The rooms from bottom to top: each may import those before it. A file at the top of `src` is a
/// room of its own.
const ROOMS: [&str; 23] = [
    "clock",
    "systemd",
    "transport",
    "semantics",
    "mutants",
    "config",
    "observe",
    "limits",
    "service",
    "tls",
    "store",
    "cache",
    "upstream",
    "run_error",
    "telemetry",
    "proxy",
    "server",
    "warm",
    "admin",
    "reload",
    "lib",
    "demo",
    "cli",
];

/// What a room must not import although it is further up.
const WALLS: [(&str, &[&str]); 4] = [
    ("semantics", &["clock", "limits", "mutants"]),
    ("observe", &["config", "semantics"]),
    ("upstream", &["cache", "store"]),
    ("server", &["cache", "proxy", "store", "upstream"]),
];

/// Most files that may implement one struct or enum: more of them are several concepts.
const MAX_IMPL_FILES: usize = 3;

/// A file of `src` as the path of its module; the crate itself is empty.
type Module = Vec<String>;

/// The files that each file imports.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// What is needed of a file, without its tests and comments.
struct Source {
    path: PathBuf,
    uses: Vec<Use>,
    /// The code without its `use` and `mod` lines.
    code: String,
}

/// One path of a `use` tree.
struct Use {
    path: String,
    /// The name under which this file knows it.
    name: String,
    is_reexport: bool,
}

#[test]
fn rooms_import_only_what_the_architecture_allows() {
    let sources = sources();
    let mut wrong = Vec::new();
    // Neither may a re-export lead around a wall, nor a wall be crossed to a re-export.
    for imports in [imports(&sources, as_written), imports(&sources, definition)] {
        for (from, to) in
            imports.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to)))
        {
            let (from_room, to_room) = (room(from), room(to));
            let height =
                |name| ROOMS.iter().position(|room| *room == name).expect("a room of ROOMS");
            let walls = WALLS.iter().filter(|(name, _)| *name == from_room);
            let is_walled = walls.flat_map(|(_, others)| *others).any(|other| *other == to_room);
            if height(to_room) > height(from_room) || is_walled {
                wrong.push(format!("{} -> {}", from.join("::"), to.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the direction:\n{}", wrong.join("\n"));
}

/// A re-export is no import of the file that has it: what counts is the file that defines a name, and
/// the file that uses it.
#[test]
fn no_file_imports_itself_through_others() {
    let circles = circles(&imports(&sources(), definition));
    let shown = circles
        .iter()
        .map(|circle| circle.iter().map(|m| m.join("::")).collect::<Vec<_>>().join(" "));
    let shown: Vec<String> = shown.collect();
    assert!(shown.is_empty(), "circles:\n{}", shown.join("\n"));
}

/// Counts inherent `impl`s, and those of the traits of this crate: those of other crates say how a type
/// is printed, compared or polled.
#[test]
fn no_struct_or_enum_is_implemented_in_more_than_three_files() {
    let sources = sources();
    let named = |kinds: &[&str]| -> BTreeSet<String> {
        let lines = sources.values().flat_map(|source| source.code.lines());
        lines.filter_map(|line| declared(line, kinds)).collect()
    };
    let (types, traits) = (named(&["struct ", "enum "]), named(&["trait "]));
    let mut files: BTreeMap<String, BTreeSet<&PathBuf>> = BTreeMap::new();
    for source in sources.values() {
        for line in source.code.lines().filter(|line| line.starts_with("impl")) {
            let (of_trait, name) = implemented(line);
            if of_trait.is_none_or(|name| traits.contains(name)) && types.contains(name) {
                files.entry(name.to_owned()).or_default().insert(&source.path);
            }
        }
    }
    files.retain(|_, files| files.len() > MAX_IMPL_FILES);
    assert!(files.is_empty(), "split these: {files:#?}");
}

/// Returns the name that a line declares as one of these kinds of items.
fn declared(line: &str, kinds: &[&str]) -> Option<String> {
    let item = line.trim_start();
    let item = match item.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ").map_or("", |(_, rest)| rest),
        Some(rest) => rest.trim_start(),
        None => item,
    };
    kinds.iter().find_map(|kind| item.strip_prefix(kind)).map(|rest| word(rest).to_owned())
}

/// Returns the trait, if any, and the type of a line that begins with `impl`.
fn implemented(line: &str) -> (Option<&str>, &str) {
    let mut rest = &line["impl".len()..];
    if rest.starts_with('<') {
        let mut depth = 0;
        let end = rest.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            depth == 0
        });
        rest = end.map_or("", |(end, _)| &rest[end + 1..]);
    }
    match rest.split_once(" for ") {
        Some((of_trait, of)) => (Some(last_word(of_trait)), last_word(of)),
        None => (None, last_word(rest)),
    }
}

/// Returns the last segment of a path, without its parameters.
fn last_word(path: &str) -> &str {
    let path = path.trim_start().split(['<', ' ', '{']).next().unwrap_or_default();
    path.rsplit("::").next().unwrap_or_default()
}

fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

fn room(module: &Module) -> &str {
    module.first().map_or("lib", String::as_str)
}

/// Reads `src`.
fn sources() -> BTreeMap<Module, Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&root, &mut files);
    let read = |path: PathBuf| {
        let text = without_tests(&fs::read_to_string(&path).expect("a source file"));
        let (uses, code) = split_uses(&text);
        (module_of(&root, &path), Source { path, uses, code })
    };
    files.into_iter().map(read).collect()
}

/// Returns what each file imports: by its `use` lines, and by other paths. `target` says which file a
/// path leads to.
fn imports(
    sources: &BTreeMap<Module, Source>,
    target: fn(&BTreeMap<Module, Source>, &Module, &str) -> Option<Module>,
) -> Imports {
    let read = |(module, source): (&Module, &Source)| {
        let words: BTreeSet<&str> =
            source.code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let is_used = |used: &&Use| !used.is_reexport || words.contains(used.name.as_str());
        let used = source.uses.iter().filter(is_used).map(|used| used.path.as_str());
        let targets = used.chain(inline_paths(&source.code));
        let targets = targets.filter_map(|path| target(sources, module, path));
        (module.clone(), targets.filter(|target| target != module).collect())
    };
    sources.iter().map(read).collect()
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_test = name == "tests" || name == "tests.rs";
        if path.is_dir() && !is_test {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !is_test
            && name != "main.rs"
        {
            files.push(path);
        }
    }
}

fn module_of(root: &Path, file: &Path) -> Module {
    let path = file.strip_prefix(root).expect("a file of src").with_extension("");
    let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
    parts.filter(|part| part != "lib").collect()
}

/// Cuts off the test module at the end, and comments.
fn without_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Returns the `use` lines of a file, and the code without them.
fn split_uses(text: &str) -> (Vec<Use>, String) {
    let (mut uses, mut code) = (Vec::new(), String::new());
    for statement in text.split_inclusive(';') {
        let Some((before, tree)) = use_tree(statement) else {
            let is_mod = |line: &str| declared(line, &["mod "]).is_some() && line.ends_with(';');
            code.extend(statement.lines().filter(|line| !is_mod(line)).flat_map(|l| [l, "\n"]));
            continue;
        };
        code.push_str(before);
        let is_reexport = before.lines().last().is_some_and(|line| line.starts_with("pub"));
        let mut paths = Vec::new();
        expand("", tree.trim_end_matches(';'), &mut paths);
        uses.extend(paths.into_iter().map(|(path, name)| Use { path, name, is_reexport }));
    }
    (uses, code)
}

/// Splits a statement at the `use` with which its last item begins.
fn use_tree(statement: &str) -> Option<(&str, &str)> {
    let (before, tree) = statement.rsplit_once("use ")?;
    let start = before.rsplit('\n').next().unwrap_or_default().trim_start();
    (start.is_empty() || start.starts_with("pub")).then_some((before, tree))
}

/// Returns the paths in code that are written out where they are used.
fn inline_paths(code: &str) -> impl Iterator<Item = &str> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut parts = code.split("pub(in ");
    let first = parts.next();
    // `pub(in crate::x)` imports nothing.
    let rest = parts.filter_map(|part| Some(part.split_once(')')?.1));
    let paths =
        first.into_iter().chain(rest).flat_map(move |part| part.split(move |c| !is_path(c)));
    paths.filter(|path| path.contains("::") && path.starts_with(char::is_lowercase))
}

/// Expands a `use` tree into its paths, each with the name that it gives.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<(String, String)>) {
    let tree = tree.trim();
    let Some((start, rest)) = tree.split_once('{') else {
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, tree));
        let name = name.rsplit("::").next().unwrap_or_default();
        return paths.push((format!("{prefix}{path}"), name.to_owned()));
    };
    let prefix = format!("{prefix}{}", start.trim());
    let body = rest.rsplit_once('}').map_or(rest, |(body, _)| body);
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in body.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &body[begin..at], paths);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if !body[begin..].trim().is_empty() {
        expand(&prefix, &body[begin..], paths);
    }
}

/// Returns the file that a path in `module` leads to, and what of the path is left there.
fn locate<'p>(
    sources: &BTreeMap<Module, Source>,
    module: &Module,
    path: &'p str,
) -> Option<(Module, Vec<&'p str>)> {
    let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
    let mut at = module.clone();
    match *parts.peek()? {
        "crate" => at.clear(),
        "self" => {}
        "super" => {
            at.pop();
        }
        child if sources.contains_key(&[&at[..], &[child.to_owned()]].concat()) => {
            at.push(child.to_owned());
        }
        _ => return None,
    }
    parts.next();
    while parts.next_if_eq(&"super").is_some() {
        at.pop();
    }
    while let Some(part) = parts.peek() {
        let deeper = [&at[..], &[(*part).to_owned()]].concat();
        if !sources.contains_key(&deeper) {
            break;
        }
        at = deeper;
        parts.next();
    }
    Some((at, parts.collect()))
}

/// Returns the file that a path names.
fn as_written(sources: &BTreeMap<Module, Source>, module: &Module, path: &str) -> Option<Module> {
    locate(sources, module, path).map(|(at, _)| at)
}

/// Returns the file that defines what a path names: follows re-exports.
fn definition(sources: &BTreeMap<Module, Source>, module: &Module, path: &str) -> Option<Module> {
    let (at, rest) = locate(sources, module, path)?;
    let name = rest.first().copied().unwrap_or_default();
    let used = sources[&at].uses.iter().find(|used| used.name == name && at != *module);
    used.and_then(|used| definition(sources, &at, &used.path)).or(Some(at))
}

/// Returns the sets of files each of which leads to all others.
fn circles(imports: &Imports) -> BTreeSet<BTreeSet<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|module| (module, reachable(imports, module))).collect();
    let circle = |module: &&Module| {
        let all = reached[module].iter();
        all.filter(|other| reached.get(*other).is_some_and(|back| back.contains(module)))
            .map(|other| (*other).clone())
            .collect::<BTreeSet<_>>()
    };
    imports.keys().collect::<Vec<_>>().iter().map(circle).filter(|all| all.len() > 1).collect()
}

fn reachable<'m>(imports: &'m Imports, from: &Module) -> BTreeSet<&'m Module> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Module> = imports[from].iter().collect();
    while let Some(module) = open.pop() {
        if reached.insert(module) {
            open.extend(imports.get(module).into_iter().flatten());
        }
    }
    reached
}
