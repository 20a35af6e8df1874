//! The documents that are made from the table of settings: `config/jobcache.toml`, every setting at its
//! default, and `docs/settings.md`, the page about all settings.

use std::fmt::Write as _;

use super::{
    RawValue, ReloadClass, SECTIONS, SettingSection, SettingSpec,
    file_tables::TableSpec,
    setting_sources::FILE_TABLES,
    settings,
    traces::{TRACE_VARIABLES, TRACES_INTRO},
};

/// Longest line of the file.
const TOML_WIDTH: usize = 100;

const TOML_INTRO: &[&str] = &[
    "jobcache: every setting with its default. Copy the lines you change, and start jobcache with \
     `--config FILE`.",
    "A flag wins over a variable, a variable over this file, and this file over the default. Below each \
     explanation stand the limits, when a change applies, and the flag and the variables of the \
     setting. Variables separate the items of a list by commas. Times need a unit (\"50ms\", \"5s\", \
     \"5m\", \"1h\"). Sizes are bytes, or have the unit KiB, MiB or GiB (\"1MiB\").",
    "`jobcache check` prints the effective values and their origins. SIGHUP makes a running jobcache \
     read its configuration again.",
    "This file is made from src/config/settings by `cargo run -- docs toml > config/jobcache.toml`; \
     docs/settings.md has the same as a web page.",
];

/// The text of the file.
pub fn reference_toml() -> String {
    let mut out = String::new();
    for (number, paragraph) in TOML_INTRO.iter().enumerate() {
        if number > 0 {
            out.push_str("#\n");
        }
        comment(&mut out, paragraph);
    }
    for section in &SECTIONS {
        toml_section(&mut out, section);
    }
    for list in FILE_TABLES {
        toml_table(&mut out, list);
    }
    out
}

fn toml_section(out: &mut String, section: &SettingSection) {
    out.push('\n');
    comment(out, &format!("----- {} -----", section.title));
    if !section.intro.is_empty() {
        comment(out, section.intro);
    }
    if !section.table().is_empty() {
        let _ = writeln!(out, "[{}]", section.table());
    }
    for spec in section.settings {
        out.push('\n');
        setting_block(out, spec);
    }
}

fn setting_block(out: &mut String, spec: &SettingSpec) {
    comment(out, &spec.explanation());
    let change = match spec.reload {
        ReloadClass::AtStart => "A change needs a restart.",
        ReloadClass::OnReload => "A reload applies a change.",
    };
    comment(out, &format!("Allowed: {}. {change}", spec.limits()));
    comment(out, &spec.sources());
    if spec.default.is_empty() {
        comment(out, &format!("Default: {}.", spec.unset));
        let _ = writeln!(out, "# {} = {}", spec.name(), spec.example);
    } else {
        let _ = writeln!(out, "{} = {}", spec.name(), toml_value(&spec.setter.split(spec.default)));
    }
}

/// The value on one line, or on several if it is a long list.
fn toml_value(value: &RawValue) -> String {
    let line = value.to_string();
    let RawValue::Many(items) = value else { return line };
    if line.len() <= TOML_WIDTH - 20 {
        return line;
    }
    let items: Vec<_> = items.iter().map(|item| format!("{item:?},")).collect();
    format!("[\n  {}\n]", wrapped(&items.join(" "), TOML_WIDTH - 2).join("\n  "))
}

fn toml_table(out: &mut String, list: &TableSpec) {
    out.push('\n');
    comment(out, &format!("----- {} -----", list.title));
    comment(out, &format!("{} Only the file can hold them. See docs/{}.md.", list.intro, list.see));
    let _ = writeln!(out, "# [[{}]]", list.key);
    for key in list.keys {
        out.push_str("#\n");
        comment(out, key.help);
        if !key.limits.is_empty() {
            comment(out, &format!("Allowed: {}.", key.limits));
        }
        if key.unset != "required" {
            comment(out, &format!("Default: {}.", key.unset));
        }
        let _ = writeln!(out, "# {} = {}", key.name, key.example);
    }
}

/// Appends `text` as comment lines.
fn comment(out: &mut String, text: &str) {
    for line in wrapped(text, TOML_WIDTH - 2) {
        let _ = writeln!(out, "# {line}");
    }
}

/// The lines of `text` with at most `width` characters each, unless a word is longer.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Longest line of prose.
const WIDTH: usize = 110;

const INTRO: &str = "\
<!-- Made from src/config/settings by `cargo run -- docs settings > docs/settings.md`: change it there. -->

# Settings

Every setting has a default, so jobcache starts without any configuration. To change a setting, use a flag,
an environment variable or the file:

- **Precedence**: a flag wins over a variable, a variable over the file, and the file over the default.
- **File**: TOML, named by `--config FILE` or `JOBCACHE_CONFIG`; no other file is read.
  [config/jobcache.toml](../config/jobcache.toml) has every setting with its default and its explanation.
  Settings without a table stand at the top of the file, before the first `[table]`. In the tables below,
  `store.budget` is the key `budget` in the table `[store]`.
- **Variables**: an empty variable counts as unset. The items of a list are separated by commas. Where a
  variable is listed with `_FILE`, `<variable>_FILE` may name a file that holds the value, as secrets are
  mounted.
- **Values**: times need a unit (`50ms`, `5s`, `5m`, `1h`, `1day`). Sizes are bytes, or have the unit `KiB`,
  `MiB` or `GiB`. Switches are `true` or `false`.
- **Secrets** have no flag, because other users of the machine can read the command line.

`jobcache check` validates the configuration and prints every effective value with its origin, without secrets.
It also tries Redis and the API; with `--strict` it exits with 1 if anything named in the configuration cannot be
reached. A mistake in the configuration ends jobcache with exit code 78 and a message for every mistake. An
unknown key of the file is a mistake; an unknown `JOBCACHE_` variable is a warning.

`jobcache man | man -l -` shows this page in a terminal, and `jobcache completions bash` (or `zsh`, `fish`,
`elvish`, `powershell`) prints a script that completes the flags.
";

const RELOAD: &str = "\
## Change settings at run time

SIGHUP makes a running jobcache read its configuration again: the file, and the files that `_FILE` variables
name. Flags and variables keep their values and still win.
";

const RELOAD_RULES: &str = "\
Everything else needs a restart. The new values apply to requests that arrive from then on. A change of
`routes`, `query.*` or `[[invalidate]]` drops every entry, at once and again after `store.linger`, because writes
may invalidate other entries than before. A shorter TTL applies to what is stored from then on.

A reload is all or nothing. If the configuration has a mistake, or a setting that needs a restart has another
value, nothing changes, and the log says at ERROR level which setting it is and what to do. See
[operations.md](operations.md).
";

/// The text of the page.
pub fn settings_page() -> String {
    let mut out = String::from(INTRO);
    let _ = write!(out, "\n{RELOAD}");
    paragraph(&mut out, &reloaded());
    let _ = write!(out, "\n{RELOAD_RULES}");
    for section in &SECTIONS {
        section_block(&mut out, section);
    }
    for list in FILE_TABLES {
        table_block(&mut out, list);
    }
    traces_block(&mut out);
    out
}

/// The sentence that lists the settings that a reload changes.
fn reloaded() -> String {
    let keys = settings().filter(|spec| spec.reload == ReloadClass::OnReload);
    let keys: Vec<_> = keys.map(|spec| format!("`{}`", spec.key)).collect();
    format!(
        "A reload changes {} and the tables of `[[route]]` and `[[invalidate]]`.",
        keys.join(", ")
    )
}

fn section_block(out: &mut String, section: &SettingSection) {
    let _ = writeln!(out, "\n## {}", section.title);
    if !section.table().is_empty() {
        paragraph(out, &format!("Table `[{}]` of the file. {}", section.table(), section.intro));
    } else if !section.intro.is_empty() {
        paragraph(out, section.intro);
    }
    out.push_str(
        "\n| setting | flag, variable | default | limits | a change applies | what it does |\n\
         |---|---|---|---|---|---|\n",
    );
    for spec in section.settings {
        let applies = match spec.reload {
            ReloadClass::AtStart => "after a restart",
            ReloadClass::OnReload => "on reload",
        };
        row(
            out,
            &[
                &format!("`{}`", spec.key),
                &sources(spec),
                &default(spec),
                &spec.limits(),
                applies,
                &explanation(spec),
            ],
        );
    }
}

/// Appends an empty line and `text`.
fn paragraph(out: &mut String, text: &str) {
    let _ = writeln!(out, "\n{}", wrapped(text, WIDTH).join("\n"));
}

fn row(out: &mut String, cells: &[&str]) {
    for cell in cells {
        out.push_str("| ");
        // A bar would end the cell, also between backticks.
        out.push_str(&cell.replace('|', "\\|"));
        if !cell.is_empty() {
            out.push(' ');
        }
    }
    out.push_str("|\n");
}

fn sources(spec: &SettingSpec) -> String {
    let flag = spec.flag.map(|flag| {
        let repeats = if spec.is_list() { " (repeats)" } else { "" };
        format!("`--{}`{repeats}", flag.name)
    });
    let names = spec.variables().into_iter().map(|name| format!("`{name}`"));
    let file = spec.has_env_file.then(|| "with `_FILE`".to_owned());
    flag.into_iter().chain(names).chain(file).collect::<Vec<_>>().join(", ")
}

fn default(spec: &SettingSpec) -> String {
    /// Items of a long list that are shown.
    const SHOWN: usize = 3;
    if spec.default.is_empty() {
        return spec.unset.to_owned();
    }
    if !spec.is_list() {
        return format!("`{}`", spec.default);
    }
    let items: Vec<_> = spec.default.split(',').collect();
    let shown: Vec<_> = items.iter().take(SHOWN).map(|item| format!("`{item}`")).collect();
    let more = items.len() - shown.len();
    let more = if more > 0 { format!(", {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

fn explanation(spec: &SettingSpec) -> String {
    let mut text = format!("{} {}", spec.help, spec.note).trim_end().to_owned();
    if spec.default.is_empty() {
        let _ = write!(text, " Example: `{}`.", spec.example);
    }
    if !spec.see.is_empty() {
        let _ = write!(text, " See [{0}.md]({0}.md).", spec.see);
    }
    text
}

fn table_block(out: &mut String, list: &TableSpec) {
    let _ = write!(out, "\n## {}\n", list.title);
    paragraph(
        out,
        &format!(
            "Tables `[[{}]]` of the file. {} Only the file can hold them. They change on reload.",
            list.key, list.intro
        ),
    );
    out.push_str("\n| key | default | limits | what it does |\n|---|---|---|---|\n");
    for key in list.keys {
        row(out, &[&format!("`{}`", key.name), key.unset, key.limits, key.help]);
    }
}

fn traces_block(out: &mut String) {
    out.push_str("\n## Traces\n");
    paragraph(out, TRACES_INTRO);
    out.push_str("\n| variable | default | what it does |\n|---|---|---|\n");
    for (names, default, help) in TRACE_VARIABLES {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let is_word = !default.contains(' ') && default != "none";
        let default = if is_word { format!("`{default}`") } else { default.to_owned() };
        row(out, &[&names.join(", "), &default, help]);
    }
}
