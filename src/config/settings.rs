//! The table of all settings, one file for each group of them.
//!
//! Each group is a [`SettingSection`]. To add a setting, add its field to the configuration and one
//! entry to a section, then renew the documents: a test names the commands. The order here is the
//! order of `config/jobcache.toml`, in which the top level has to come before the first table.

mod cache_settings;
mod credential_settings;
mod listener_settings;
mod process_settings;
mod response_settings;
mod server_settings;
mod store_settings;
mod tls_settings;
mod ttl_settings;
mod units;
mod upstream_settings;
mod warm_settings;

pub(super) use self::credential_settings::IDENTITY_HEADERS;
use super::setting_spec::{SettingSection, SettingSpec};

/// All settings, by section.
pub static SECTIONS: [SettingSection; 20] = [
    listener_settings::LISTENERS,
    listener_settings::WEBHOOK,
    cache_settings::CACHE,
    cache_settings::NEAR,
    process_settings::LOG,
    process_settings::SHUTDOWN,
    cache_settings::QUERY,
    upstream_settings::UPSTREAM,
    tls_settings::UPSTREAM_TLS,
    store_settings::STORE,
    tls_settings::STORE_TLS,
    store_settings::SENTINEL,
    ttl_settings::TTL,
    ttl_settings::STATES,
    server_settings::SERVER,
    tls_settings::SERVER_TLS,
    store_settings::PENDING,
    credential_settings::CREDENTIALS,
    response_settings::RESPONSES,
    warm_settings::WARM,
];

/// Every setting, in the order of the documents.
pub fn settings() -> impl Iterator<Item = &'static SettingSpec> {
    SECTIONS.iter().flat_map(|section| section.settings)
}

/// The setting with the given key.
pub fn setting(key: &str) -> Option<&'static SettingSpec> {
    settings().find(|spec| spec.key == key)
}
