//! `config/jobcache.toml`: every setting at its default, made from the table of settings.

use std::fmt::Write as _;

use super::{
    RawValue, ReloadClass, SECTIONS, SettingSection, SettingSpec,
    invalidate_rules::{self, KEYS},
};

/// Longest line of the file.
const WIDTH: usize = 100;

const INTRO: &[&str] = &[
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
    for (number, paragraph) in INTRO.iter().enumerate() {
        if number > 0 {
            out.push_str("#\n");
        }
        comment(&mut out, paragraph);
    }
    for section in &SECTIONS {
        section_block(&mut out, section);
    }
    rules_block(&mut out);
    out
}

fn section_block(out: &mut String, section: &SettingSection) {
    out.push('\n');
    comment(out, &format!("----- {} -----", section.title));
    if !section.intro.is_empty() {
        comment(out, section.intro);
    }
    if !section.table.is_empty() {
        let _ = writeln!(out, "[{}]", section.table);
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
        let _ = writeln!(out, "{} = {}", spec.name(), list(&spec.split(spec.default)));
    }
}

/// The value on one line, or on several if it is a long list.
fn list(value: &RawValue) -> String {
    let line = value.to_string();
    let RawValue::Many(items) = value else { return line };
    if line.len() <= WIDTH - 20 {
        return line;
    }
    let items: Vec<_> = items.iter().map(|item| format!("{item:?},")).collect();
    format!("[\n  {}\n]", wrapped(&items.join(" "), WIDTH - 2).join("\n  "))
}

fn rules_block(out: &mut String) {
    out.push('\n');
    comment(out, "----- Writes that change further jobs -----");
    comment(out, &format!("{} See docs/what-is-cached.md.", invalidate_rules::INTRO));
    let _ = writeln!(out, "# [[{}]]", invalidate_rules::KEY);
    for key in &KEYS {
        out.push_str("#\n");
        comment(out, key.help);
        match (key.name, key.unset) {
            ("max_body", _) => {
                comment(out, &format!("Allowed: {}.", invalidate_rules::body_limits()));
            }
            (_, "" | "required") => {}
            (_, unset) => comment(out, &format!("Default: {unset}.")),
        }
        let _ = writeln!(out, "# {} = {}", key.name, invalidate_rules::example(key));
    }
}

/// Appends `text` as comment lines.
fn comment(out: &mut String, text: &str) {
    for line in wrapped(text, WIDTH - 2) {
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
