//! Addresses to listen on, and the purge webhook.

use crate::config::{
    parse,
    setter::put,
    setting_spec::{PLACES, SettingSection, Visibility, number, text, words},
};

const ADDRESS: &str = "`ip:port` or `unix:/path/to/socket`";

pub(super) const LISTENERS: SettingSection = SettingSection {
    title: "Listeners",
    table: "",
    intro: "",
    settings: &[
        text("listen", "127.0.0.1:8080", ADDRESS, |c, v| put(&mut c.listen, v.parse()))
            .flag("listen", "ADDR", PLACES)
            .env(&["JOBCACHE_LISTEN"])
            .help("Address on which clients connect.")
            .note("Use `0.0.0.0` only if other machines must be able to connect."),
        text("admin", "127.0.0.1:9090", ADDRESS, |c, v| put(&mut c.admin, v.parse()))
            .flag("admin", "ADDR", PLACES)
            .env(&["JOBCACHE_ADMIN"])
            .help("Address of the purge webhook, the health checks, the metrics and the status page.")
            .note(
                "Any address other than loopback or a unix socket needs `webhook_secret`: anyone who \
                 can connect can purge.",
            )
            .see("security"),
        text("unix_mode", "0660", "permissions in octal, at most 0777", |c, v| {
            put(&mut c.unix_mode, parse::mode_bits(v))
        })
        .env(&["JOBCACHE_UNIX_MODE"])
        .help("File permissions of `listen` and `admin` where they are unix sockets.")
        .note("A client needs write permission to connect."),
    ],
};

pub(super) const WEBHOOK: SettingSection = SettingSection {
    title: "Purge webhook",
    table: "",
    intro: "",
    settings: &[
        // Each call is compared with every secret.
        words("webhook_secret", (1, 8, "secret"), |c, v| {
            put(&mut c.webhook_secret, parse::secrets(v))
        })
        .form("each 16 visible ASCII characters or more, or `whsec_` and base64")
        .visibility(Visibility::Hidden)
        .env_file()
        .on_reload()
        .env(&["JOBCACHE_WEBHOOK_SECRET"])
        .unset("none: every caller may purge", "[\"...\"]")
        .help("Secret of the purge webhook.")
        .note(
            "Callers send it as a bearer token, or sign `POST /purge` with it (Standard Webhooks). \
             During a rotation list several, the newest first; all of them are accepted. A variable \
             or a secret file separates them by spaces or newlines. Prefer the variables to the \
             configuration file, so that the file holds no secret.",
        )
        .see("purging"),
        number("webhook_max_purges", "5000", (1, 1_000_000), |c, v| c.webhook_max_purges = v)
            .on_reload()
            .env(&["JOBCACHE_WEBHOOK_MAX_PURGES"])
            .help("Purge calls that the webhook accepts per second, of any number of jobs each.")
            .note(
                "A call beyond this limit gets 429 with `Retry-After` and purges nothing; the sender \
                 has to repeat it.",
            ),
        number("webhook_max_failures", "60", (1, 1_000_000), |c, v| c.webhook_max_failures = v)
            .on_reload()
            .env(&["JOBCACHE_WEBHOOK_MAX_FAILURES"])
            .help("Calls per minute that one address may make without a valid secret or signature.")
            .note(
                "Calls with a body that does not arrive count too; all addresses of an IPv6 /64 count as \
                 one. Further calls get 429 instead of 401, and signed bodies of more than 8 KiB are \
                 then refused unread. A call with a valid secret is accepted even then.",
            ),
    ],
};
