//! The walls of `docs/architecture.md`: which room may import which, and no circles between files.
//! Reads the `use` lines and `crate::` paths of `src`. Test modules may import anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The rooms from bottom to top: each may import those before it. A file at the top of `src` is a
/// room of its own.
const ROOMS: [&str; 26] = [
    "clock",
    "drain",
    "mutants",
    "open_files",
    "systemd",
    "transport",
    "semantics",
    "config",
    "observe",
    "limits",
    "informational",
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

/// Rooms in which files still import each other in a circle.
const ROOMS_WITH_CIRCLES: [&str; 6] = ["cache", "config", "proxy", "semantics", "upstream", "warm"];

/// A file of `src` as the path of its module; the crate itself is empty.
type Module = Vec<String>;

#[test]
fn rooms_import_only_what_the_architecture_allows() {
    let imports = imports();
    let mut wrong = Vec::new();
    for (from, to) in imports.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
        let (from_room, to_room) = (room(from), room(to));
        let height = |name| ROOMS.iter().position(|room| *room == name).expect("a room of ROOMS");
        let walls = WALLS.iter().filter(|(name, _)| *name == from_room);
        let is_walled = walls.flat_map(|(_, others)| *others).any(|other| *other == to_room);
        if height(to_room) > height(from_room) || is_walled {
            wrong.push(format!("{} -> {}", from.join("::"), to.join("::")));
        }
    }
    assert!(wrong.is_empty(), "imports against the direction:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_imports_itself_through_others() {
    let circles = circles(&imports());
    let is_new = |circle: &&BTreeSet<Module>| {
        circle.iter().any(|module| !ROOMS_WITH_CIRCLES.contains(&room(module)))
    };
    let new: Vec<String> = circles
        .iter()
        .filter(is_new)
        .map(|circle| circle.iter().map(|m| m.join("::")).collect::<Vec<_>>().join(" "))
        .collect();
    assert!(new.is_empty(), "circles:\n{}", new.join("\n"));
}

fn room(module: &Module) -> &str {
    module.first().map_or("lib", String::as_str)
}

/// Returns what each file imports.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&root, &mut files);
    let modules: BTreeMap<Module, PathBuf> =
        files.into_iter().map(|file| (module_of(&root, &file), file)).collect();
    let read = |(module, file): (&Module, &PathBuf)| {
        let text = fs::read_to_string(file).expect("a source file");
        let paths = paths(&without_tests(&text));
        let targets = paths.iter().filter_map(|path| target(&modules, module, path));
        (module.clone(), targets.filter(|target| target != module).collect())
    };
    modules.iter().map(read).collect()
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

/// Returns all paths that begin with `crate`, `super` or `self`: those of `use` trees, and others.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let Some((_, tree)) = statement.rsplit_once("use ") else { continue };
        if ["crate", "super", "self"].iter().any(|start| tree.starts_with(start)) {
            expand("", tree, &mut paths);
        }
    }
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let path = &rest[..rest.find(|c| !is_path(c)).unwrap_or(rest.len())];
        // `pub(in crate::x)` imports nothing, and what ends with `::` is the start of a `use` tree.
        if !path.is_empty() && !path.ends_with("::") && !code[..at].ends_with("in ") {
            paths.push(format!("crate::{path}"));
        }
    }
    paths
}

/// Expands a `use` tree into its paths.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((start, rest)) = tree.split_once('{') else {
        let name = tree.split_whitespace().next().unwrap_or_default();
        return paths.push(format!("{prefix}{name}"));
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

/// Returns the file that a path in `module` leads to.
fn target(modules: &BTreeMap<Module, PathBuf>, module: &Module, path: &str) -> Option<Module> {
    let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
    let mut at = module.clone();
    match parts.next()? {
        "crate" => at.clear(),
        "self" => {}
        "super" => {
            at.pop();
        }
        _ => return None,
    }
    while parts.next_if_eq(&"super").is_some() {
        at.pop();
    }
    at.extend(parts.map(str::to_owned));
    while !at.is_empty() && !modules.contains_key(&at) {
        at.pop();
    }
    Some(at)
}

/// Returns the sets of files each of which leads to all others.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<BTreeSet<Module>> {
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

fn reachable<'m>(
    imports: &'m BTreeMap<Module, BTreeSet<Module>>,
    from: &Module,
) -> BTreeSet<&'m Module> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Module> = imports[from].iter().collect();
    while let Some(module) = open.pop() {
        if reached.insert(module) {
            open.extend(imports.get(module).into_iter().flatten());
        }
    }
    reached
}
