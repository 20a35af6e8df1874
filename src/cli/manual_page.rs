//! Output of the command line for other programs: completions for shells, the generated documents,
//! and the manual page, which is made from the command line and the table of settings.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use jobcache::config::{self, FILE_TABLES, ReloadClass, SECTIONS, SettingSection, SettingSpec};

use super::{AFTER, Cli, Document, flags::with_choices, print_at_once};

/// Sections of the page after the settings.
const REST: [(&str, &[(&str, &str)]); 3] = [
    (
        "EXIT STATUS",
        &[
            ("0", "jobcache was asked to end and has ended, or the command was successful."),
            (
                "1",
                "jobcache could not start or serve, or check --strict or healthcheck found something \
                 unreachable.",
            ),
            ("2", "The command line is wrong."),
            ("78", "The configuration is wrong."),
            ("130", "A second signal ended jobcache at once."),
        ],
    ),
    (
        "SIGNALS",
        &[
            ("SIGTERM, SIGINT", "Drain and end; a second signal ends jobcache at once."),
            ("SIGHUP", "Read the configuration and the certificates again."),
        ],
    ),
    (
        "FILES",
        &[(
            "--config FILE, or JOBCACHE_CONFIG",
            "The configuration in TOML. No other file is read. Settings without a table stand at the top of \
             the file, before the first [table].",
        )],
    ),
];

/// The page of the whole command, or of one of its commands.
pub(super) fn manual_page(command: Option<&str>) -> io::Result<Vec<u8>> {
    let mut all = Cli::command().subcommand_help_heading("COMMANDS");
    all.build();
    let Some(name) = command else { return render(all, true) };
    // The command line has been checked, so the command exists.
    let one = all.find_subcommand(name).cloned().ok_or(io::ErrorKind::NotFound)?;
    render(one, false)
}

fn render(command: Command, has_settings: bool) -> io::Result<Vec<u8>> {
    let man = Man::new(command).source(concat!("jobcache ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    whole_words().to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_settings {
        man.render_subcommands_section(&mut page)?;
        all_settings().to_writer(&mut page)?;
        rest().to_writer(&mut page)?;
    }
    Ok(page)
}

/// Turns off hyphens and justified lines: flags and variables are long, and readers search and copy them.
fn whole_words() -> Roff {
    let mut roff = Roff::new();
    roff.control("nh", []).control("ad", ["l"]);
    roff
}

fn all_settings() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SETTINGS"]);
    for section in &SECTIONS {
        render_section(&mut roff, section);
    }
    for list in FILE_TABLES {
        roff.control("SS", [&*format!("{} ([[{}]])", list.title, list.key)]);
        for (assignment, text) in list.lines() {
            roff.control("TP", []).text([bold(assignment)]).text([roman(text)]);
        }
    }
    roff
}

fn render_section(roff: &mut Roff, section: &SettingSection) {
    let title = match section.table() {
        "" => section.title.to_owned(),
        table => format!("{} ([{table}])", section.title),
    };
    roff.control("SS", [title.as_str()]);
    if !section.intro.is_empty() {
        roff.text([roman(section.intro)]);
    }
    for spec in section.settings {
        roff.control("TP", []).text([bold(spec.assignment())]);
        roff.text([roman(explanation(spec))]);
    }
}

fn explanation(spec: &SettingSpec) -> String {
    let default =
        if spec.default.is_empty() { format!(" Default: {}.", spec.unset) } else { String::new() };
    let change = match spec.reload {
        ReloadClass::AtStart => "A change needs a restart.",
        ReloadClass::OnReload => "A reload applies a change.",
    };
    format!(
        "{}{default} Allowed: {}. {change} Set by {}.",
        spec.explanation(),
        spec.limits(),
        spec.sources()
    )
}

fn rest() -> Roff {
    let mut roff = Roff::new();
    for (section, items) in REST {
        roff.control("SH", [section]);
        for (name, text) in items {
            roff.control("TP", []).text([bold(*name)]).text([roman(*text)]);
        }
    }
    roff.control("SH", ["NOTES"]).text([roman(AFTER)]);
    roff
}

const NAME: &str = "jobcache";

/// Prints a generated document.
pub(crate) fn document(document: Document) -> io::Result<()> {
    match document {
        Document::Settings => print_at_once(config::settings_page().as_bytes()),
        Document::Toml => print_at_once(config::reference_toml().as_bytes()),
        Document::Man => manual(None),
    }
}

/// Prints the script that makes a shell complete the command line.
pub(crate) fn completions(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut with_choices(Cli::command()), NAME, &mut script);
    print_at_once(&script)
}

/// Prints the manual page of the whole command, or of one of its commands.
pub(crate) fn manual(command: Option<&str>) -> io::Result<()> {
    print_at_once(&manual_page(command)?)
}

#[cfg(test)]
mod tests {
    use jobcache::config::settings;

    use super::*;

    #[test]
    fn the_page_has_every_setting_with_its_variable() {
        let page = String::from_utf8(manual_page(None).unwrap()).unwrap().replace("\\-", "-");
        for spec in settings() {
            assert!(page.contains(&format!("{} = ", spec.key)), "{}", spec.key);
            assert!(spec.variables().iter().all(|name| page.contains(name)), "{}", spec.key);
        }
        for text in ["store.budget = ", "upstream.tls.ca = ", "JOBCACHE_WEBHOOK_SECRET_FILE"] {
            assert!(page.contains(text), "{text} is missing");
        }
    }
}
