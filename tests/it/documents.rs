//! The documents name files that exist, and their links lead somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders of the repository that paths in the documents begin with.
const FOLDERS: [&str; 6] = ["src/", "tests/", "benches/", "config/", "docs/", ".ci/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Markdown files of a folder, without those of its subfolders.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    entries(folder).filter(is_page).collect()
}

/// The Markdown files of a folder and its subfolders.
fn pages_below(folder: &Path) -> Vec<PathBuf> {
    let below = entries(folder).filter(|path| path.is_dir()).flat_map(|path| pages_below(&path));
    pages(folder).into_iter().chain(below).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
}

/// The words of a text that could be paths.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-/*<>".contains(c);
    text.split(move |c| !is_part(c)).map(|word| word.trim_end_matches('.'))
}

/// Whether a word is a path of one file, and neither a pattern nor part of a URL.
fn is_path(word: &str) -> bool {
    !word.contains(['*', '<', '>']) && !word.contains("//")
}

#[test]
fn every_file_that_a_document_names_exists() {
    let mut documents = pages_below(&root().join("docs"));
    documents.push(root().join("CONTRIBUTING.md"));
    let mut missing = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        for path in paths(&text).filter(|word| is_path(word)) {
            let below_root = FOLDERS.iter().any(|folder| path.starts_with(folder));
            let is_source = [".rs", ".lua", ".js"].iter().any(|end| path.ends_with(end));
            // Without a folder of the repository, a source file is named from `src`.
            let exists = match (below_root, is_source && path.contains('/')) {
                (true, _) => root().join(path).exists(),
                (false, true) => root().join("src").join(path).exists(),
                (false, false) => true,
            };
            if !exists {
                missing.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The targets of the links in a page, code blocks apart.
fn links(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    targets.map(str::to_owned).collect()
}

/// The anchors of the headings in a page, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let titles = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    titles
        .map(|title| {
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut documents = pages_below(&root().join("docs"));
    documents.extend(pages(root()));
    for folder in ["tests", "benches", "tests/fuzz", "tests/http-cache", "tests/judges"] {
        documents.extend(pages(&root().join(folder)));
    }
    let mut broken = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        let folder = document.parent().expect("its folder");
        for link in links(&text).into_iter().filter(|link| !link.contains(':')) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            let is_page = target.extension().is_some_and(|extension| extension == "md");
            let leads = target.exists()
                && (anchor.is_empty()
                    || !is_page
                    || anchors(&fs::read_to_string(&target).expect("a page"))
                        .contains(&anchor.to_owned()));
            if !leads {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
