//! What other programs read of the command line: completions for shells, and the manual page.
//!
//! Both are made of the command itself. The page has every setting, also those without a flag, in the
//! words of `config/jobcache.toml`: whoever has the binary has them, where there is no such file.

use std::io::{self, Write as _};

use clap::{Command, CommandFactory as _, builder::PossibleValuesParser};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::{AFTER, Cli};

const NAME: &str = "jobcache";
/// Values that completions offer, by the flag.
const VALUES: [(&str, &[&str]); 3] = [
    ("mode", &["on", "shadow", "off"]),
    ("near", &["strict", "bounded", "off"]),
    ("log_format", &["human", "json"]),
];
/// Sections of the page after the settings.
const REST: [(&str, &[(&str, &str)]); 3] = [
    (
        "EXIT STATUS",
        &[
            ("0", "It was asked to end, and has; or the command has done what it is for."),
            (
                "1",
                "It could not start or serve; or check --strict or healthcheck found something down.",
            ),
            ("2", "Wrong usage."),
            ("78", "The configuration is wrong."),
            ("130", "A second signal has ended it at once."),
        ],
    ),
    (
        "SIGNALS",
        &[
            ("SIGTERM, SIGINT", "Drain and end; a second one ends it at once."),
            ("SIGHUP", "Read the configuration and the certificates anew."),
        ],
    ),
    (
        "FILES",
        &[(
            "--config FILE, or JOBCACHE_CONFIG",
            "The configuration, in TOML. None is read that is not named there. Settings without a table \
             stand at its top, before the first [table].",
        )],
    ),
];
const SETTINGS: &str = include_str!("../../config/jobcache.toml");

/// Prints the script that makes a shell complete the command line.
pub(crate) fn completions(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut offering(Cli::command()), NAME, &mut script);
    print(&script)
}

/// With the values of flags that take one of a few words. They are judged by `config`, with those of all
/// other sources; here they are only offered.
fn offering(command: Command) -> Command {
    let command = VALUES.into_iter().fold(command, |command, (flag, values)| {
        if command.get_arguments().all(|arg| arg.get_id() != flag) {
            return command;
        }
        command.mut_arg(flag, |arg| {
            arg.value_parser(PossibleValuesParser::new(values.iter().copied()))
        })
    });
    command.mut_subcommands(offering)
}

/// Prints the manual page of the whole, or of one of its commands.
pub(crate) fn manual(command: Option<&str>) -> io::Result<()> {
    let mut all = Cli::command().subcommand_help_heading("COMMANDS");
    all.build();
    let Some(name) = command else { return print(&page(all, Some(SETTINGS))?) };
    // The command line has been checked: there is one.
    let one = all.find_subcommand(name).cloned().ok_or(io::ErrorKind::NotFound)?;
    print(&page(one, None)?)
}

fn page(command: Command, settings: Option<&str>) -> io::Result<Vec<u8>> {
    let man = Man::new(command).source(concat!("jobcache ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    whole_words().to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if let Some(settings) = settings {
        man.render_subcommands_section(&mut page)?;
        render_settings(settings).to_writer(&mut page)?;
        render_rest().to_writer(&mut page)?;
    }
    Ok(page)
}

/// What is looked for under these names.
fn render_rest() -> Roff {
    let mut roff = Roff::new();
    for (section, items) in REST {
        roff.control("SH", [section]);
        for (name, text) in items {
            roff.control("TP", []).text([bold(*name)]).text([roman(*text)]);
        }
    }
    roff.control("SH", ["NOTES"]).text([roman(AFTER.replace('\n', " "))]);
    roff
}

/// Flags and variables are long, and are to be found and copied: no hyphen, and no filling of lines to
/// both edges, for which such words leave no room.
fn whole_words() -> Roff {
    let mut roff = Roff::new();
    roff.control("nh", []).control("ad", ["l"]);
    roff
}

/// Text and values of the configuration file: what belongs together stands between empty lines, with the
/// values at its end.
fn render_settings(file: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SETTINGS"]);
    let mut table = String::new();
    for block in file.split("\n\n") {
        let mut text = Vec::new();
        for line in block.lines() {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                paragraph(&mut roff, &mut text);
                name.clone_into(&mut table);
                roff.control("SS", [bare]);
            } else if is_assignment(bare) || !line.starts_with('#') {
                let dot = if table.is_empty() || line.starts_with('#') && table.starts_with('[') {
                    String::new()
                } else {
                    format!("{table}.")
                };
                let shown =
                    if is_assignment(bare) { format!("{dot}{bare}") } else { bare.to_owned() };
                roff.control("TP", []).text([bold(shown)]);
                paragraph(&mut roff, &mut text);
            } else if line == "#" {
                paragraph(&mut roff, &mut text);
            } else {
                text.push(bare.trim_start_matches('#').trim());
            }
        }
        paragraph(&mut roff, &mut text);
    }
    roff
}

/// Writes what has come together, filled.
fn paragraph(roff: &mut Roff, text: &mut Vec<&str>) {
    if !text.is_empty() {
        roff.text([roman(text.join(" "))]);
        text.clear();
    }
}

/// `key = value`, also where it stands in a comment.
fn is_assignment(line: &str) -> bool {
    let key = line.split_once(" = ").map(|(key, _)| key);
    key.is_some_and(|key| {
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    })
}

/// All at once: a reader that stops early (`| head`) is no error of ours.
fn print(text: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_setting_with_its_variable() {
        let page = String::from_utf8(page(Cli::command(), Some(SETTINGS)).unwrap()).unwrap();
        let page = page.replace("\\-", "-");
        for line in SETTINGS.lines().filter(|line| is_assignment(line.trim_start_matches("# "))) {
            let (key, _) = line.trim_start_matches("# ").split_once(" = ").unwrap();
            assert!(page.contains(&format!("{key} = ")), "{key}");
        }
        for text in ["store.budget = ", "upstream.tls.ca = ", "JOBCACHE_WEBHOOK_SECRET_FILE"] {
            assert!(page.contains(text), "{text} is missing");
        }
    }
}
