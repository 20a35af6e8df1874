//! Query options of the store's URL, as redis-py, Celery (kombu), ioredis and go-redis write them.
//!
//! One variable, `REDIS_URL`, often serves a queue, an application and jobcache. So an option that
//! jobcache does not know must not keep it from starting: it is ignored, and a warning names it.
//! Values never show: one of them may be a password, or a part of one that was not encoded.
//!
//! Names are compared without case, underscores and hyphens, so one list serves `socket_timeout` and
//! `socketTimeout`.

use url::form_urlencoded;

use super::{Secret, StoreLogin, TlsVerify};

/// Options that are of no use here: their effects are those of the client that they are meant for.
const WITHOUT_EFFECT: &str = "\
    ackemulation additionalconnectionerrors addressremap alternates \
    autopipeliningignoredcommands autoresendunfulfilledcommands autoresubscribe blockingtimeout \
    blockingtimeoutgrace bodyencoding cache cacheconfig cachefactory clientinfotag \
    clustererrorretryattempts clusternoderetrystrategy clusterretrystrategy commandpacker \
    commandqueue commandtimeout confirmpublish connectionclass connectionkwargs connectionpool \
    connectiontimeout connectretry connecttimeout connmaxidletime connmaxlifetime \
    connmaxlifetimejitter contexttimeoutenabled deadletterqueue decoderesponses dialerretries \
    dialerretrybackoff dialerretrytimeout dialtimeout disableclientinfo disableidentity \
    disableindentity disconnecttimeout dnslookup driverinfo dropbuffersupport \
    dynamicstartupnodes enableautopipelining enableofflinequeue enablereadycheck encoding \
    encodingerrors eventdispatcher failingtimeoutseconds failoverdetector failoverstrategy \
    family fanoutpatterns fanoutprefix globalkeyprefix healthcheckinterval heartbeat \
    himportfieldsets himportregistry identitysuffix idlecheckfrequency idletimeout insist \
    interval intervalmax intervalstart intervalstep keepalive lazyconnect legacyresponses \
    libname libraryname libraryversion libversion loadbalancingstrategy loginmethod \
    maintnotificationsconfig maxactiveconns maxconcurrentdials maxconnage maxconnections \
    maxidleconns maxloadingretrytime maxredirections maxredirects maxretries \
    maxretriesperrequest maxretrybackoff maxscriptscachingtime minidleconns minothersentinels \
    minretrybackoff monitor natmap nodelay offlinequeue parserclass pipelinepoolsize \
    pollinginterval poolfifo poolsize pooltimeout preferredslaves prioritysteps protocol \
    queueclass queuenameprefix queueorderstrategy readbuffersize readfromreplicas readonly \
    readtimeout reconnectonerror redisconnectfunc redisoptions reinitializesteps replicaonly \
    replymapping requirefullcoverage resolvesrv retry retrydelayonclusterdown \
    retrydelayonfailover retrydelayonmoved retrydelayontryagain retryonerror retryontimeout \
    retrypolicy retrystrategy role routebylatency routerandomly scalereads scripts \
    sentinelcommandtimeout sentinelfanoutcompat sentinelmaxconnections sentinelreconnectstrategy \
    sentinelretrystrategy sep shardedsubscribers showfriendlyerrorstack singleconnectionclient \
    slotsrefreshinterval slotsrefreshtimeout socketconnecttimeout socketkeepalive \
    socketkeepaliveoptions socketreadsize socketreadtimeout sockettimeout sockettype \
    stringnumbers timeout unackedindexkey unackedkey unackedmutexexpire unackedmutexkey \
    unackedrestoreinterval unackedrestorelimit unackedrestorethrottle unstableresp3 \
    updatesentinels usedisconnectedreplicas usesrvrecords visibilitytimeout writebuffersize \
    writetimeout";

/// Options without effect that have a counterpart here, each with the remedy.
const ELSEWHERE: [(&str, &str); 11] = [
    ("addr startupnodes", "list the nodes in a redis-cluster:// URL"),
    ("credentialprovider", "set store.username and store.password_file"),
    ("keyprefix", "begin store.prefix with it, if the application deletes keys with that client"),
    ("mastername name sentinels sentinelmasterid", "use a redis-sentinel:// URL"),
    ("enabletlsforsentinelmode sentineltls", "set store.sentinel.tls"),
    (
        "sentinelkwargs sentinelpassword sentinelusername",
        "set store.sentinel.username and .password",
    ),
    ("ssl tls", "begin the URL with rediss:// for TLS"),
    ("sslcadata sslcapath", "set store.tls.ca to a file"),
    ("sslciphers sslminversion", "TLS 1.2 and 1.3 are spoken, with the ciphers of rustls"),
    (
        "sslpassword",
        "certificate and key are not used; set store.tls.key to one without a password",
    ),
    (
        "sslexcludeverifyflags sslincludeverifyflags sslocspcontext sslocspexpectedcert \
         sslvalidateocsp sslvalidateocspstapled",
        "certificates are verified without it",
    ),
];

/// Longest name that a warning shows.
const MAX_NAME: usize = 40;
/// Most names that one warning shows.
const MAX_NAMES: usize = 16;

/// The options of one URL.
#[derive(Debug, Default)]
pub(super) struct UrlOptions {
    /// Number of the database.
    pub(super) database: Option<u32>,
    /// User and password.
    pub(super) login: StoreLogin,
    /// Name of the connections.
    pub(super) client_name: Option<String>,
    /// Settings of `[store.tls]` that options stand for.
    pub(super) tls: Vec<TlsOption>,
    /// Warnings, without the origin of the URL.
    pub(super) warnings: Vec<String>,
    unknown: Vec<String>,
    has_unnamed: bool,
    has_key_password: bool,
}

/// A setting that an option of the URL stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TlsOption {
    /// Key of the setting.
    pub(super) key: &'static str,
    /// Value of the setting.
    pub(super) value: String,
    /// Option as it is written in the URL.
    pub(super) option: String,
}

impl UrlOptions {
    /// Reads the text after the question mark. Of two options with the same name the last one counts,
    /// as for kombu, ioredis and go-redis. Fails only if the database is not a number: another one
    /// would hold the keys of somebody else.
    pub(super) fn parse(query: &str) -> Result<Self, &'static str> {
        // An `@` here may be the end of a password with a `?` in it, so what follows the `?` may be a
        // part of the password.
        let is_suspicious = query.contains('@');
        let mut options = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !options.take(&name, value.trim())? {
                options.record_unknown(&name, is_suspicious);
            }
        }
        options.finish();
        Ok(options)
    }

    /// Returns whether the option is known.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, &'static str> {
        let plain = plain(name);
        let value = Some(value).filter(|value| !value.is_empty());
        let owned = value.map(str::to_owned);
        match plain.as_str() {
            "db" | "database" | "virtualhost" => {
                let number = value.map(|value| value.trim_matches('/')).filter(|db| !db.is_empty());
                let number =
                    number.map(str::parse).transpose().map_err(|_| "db must be a number")?;
                self.database = number.or(self.database);
            }
            "user" | "username" => self.login.username = owned,
            "pass" | "password" => self.login.password = value.map(Secret::new),
            "clientname" | "connectionname" => self.client_name = owned,
            "sslcacerts" => self.set_tls("store.tls.ca", name, owned),
            "sslcertfile" => self.set_tls("store.tls.cert", name, owned),
            "sslkeyfile" => self.set_tls("store.tls.key", name, owned),
            "sslcertreqs" | "sslcheckhostname" | "skipverify" | "verifypeer" => {
                let value = value.map(str::to_ascii_lowercase).unwrap_or_default();
                match verify(&plain, &value) {
                    Some(verify) => self.set_verify(verify, name),
                    None => self.warnings.push(format!(
                        "the option {name} of the URL of Redis has an unknown value; the certificate is \
                         verified"
                    )),
                }
            }
            plain => return Ok(self.take_elsewhere(name, plain)),
        }
        Ok(true)
    }

    fn take_elsewhere(&mut self, name: &str, plain: &str) -> bool {
        let is_one_of = |names: &str| names.split_whitespace().any(|known| known == plain);
        if let Some((_, remedy)) = ELSEWHERE.into_iter().find(|(names, _)| is_one_of(names)) {
            let text =
                format!("the option {name} of the URL of Redis has no effect here: {remedy}");
            self.warnings.push(text);
            self.has_key_password |= plain == "sslpassword";
            return true;
        }
        is_one_of(WITHOUT_EFFECT)
    }

    fn set_tls(&mut self, key: &'static str, option: &str, value: Option<String>) {
        self.tls.retain(|other| other.key != key);
        let option = option.to_owned();
        self.tls.extend(value.map(|value| TlsOption { key, value, option }));
    }

    /// Options may contradict each other (`ssl_cert_reqs=none&ssl_check_hostname=false`): the one that
    /// verifies least wins, because it says which server there is.
    fn set_verify(&mut self, verify: TlsVerify, option: &str) {
        const KEY: &str = "store.tls.verify";
        let none = TlsVerify::None.as_str();
        let is_none = |other: &TlsOption| other.key == KEY && other.value == none;
        if verify != TlsVerify::Full && !self.tls.iter().any(is_none) {
            self.set_tls(KEY, option, Some(verify.as_str().to_owned()));
        }
    }

    fn record_unknown(&mut self, name: &str, is_suspicious: bool) {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let is_name = !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(is_plain);
        if !is_name || is_suspicious || self.unknown.len() >= MAX_NAMES {
            self.has_unnamed = true;
        } else if !self.unknown.iter().any(|known| known == name) {
            self.unknown.push(name.to_owned());
        }
    }

    fn finish(&mut self) {
        if self.has_key_password {
            self.tls.retain(|tls| !matches!(tls.key, "store.tls.cert" | "store.tls.key"));
        }
        if !self.unknown.is_empty() {
            let names = self.unknown.join(", ");
            self.warnings.push(format!(
                "the URL of Redis has options that jobcache does not know, and ignores: {names}"
            ));
        }
        if self.has_unnamed {
            self.warnings.push(
                "the URL of Redis has an option that jobcache does not know, and ignores; if it is a \
                 part of the password, percent-encode the special characters of the password"
                    .to_owned(),
            );
        }
    }
}

const YES: &str = "true 1 t y yes";
const NO: &str = "false 0 f n no";

/// Options about certificates, their values in lower case, and what is then verified.
const VERIFY: [(&str, &str, TlsVerify); 10] = [
    ("sslcertreqs", "none cert_none", TlsVerify::None),
    ("sslcertreqs", "required optional cert_required cert_optional", TlsVerify::Full),
    ("sslcheckhostname", NO, TlsVerify::Ca),
    ("sslcheckhostname", YES, TlsVerify::Full),
    ("skipverify", YES, TlsVerify::None),
    ("skipverify", NO, TlsVerify::Full),
    ("verifypeer", "none", TlsVerify::None),
    ("verifypeer", "ca", TlsVerify::Ca),
    ("verifypeer", "full", TlsVerify::Full),
    ("verifypeer", YES, TlsVerify::Full),
];

/// Returns what is verified with an option; `None` if the value is not known.
fn verify(option: &str, value: &str) -> Option<TlsVerify> {
    let is_it = |(name, values, _): &(&str, &str, TlsVerify)| {
        *name == option && values.split(' ').any(|known| known == value)
    };
    let known = VERIFY.into_iter().find(is_it).map(|(_, _, verify)| verify);
    known.or_else(|| value.is_empty().then_some(TlsVerify::Full))
}

/// Options that jobcache uses, and that are no secret.
const USED: &str = "clientname connectionname database db skipverify sslcacerts sslcertfile \
    sslcertreqs sslcheckhostname sslkeyfile user username verifypeer virtualhost";

/// Words in the names of options whose values may hold a password.
const SECRET: [&str; 6] = ["credential", "kwargs", "options", "pass", "secret", "token"];

/// Whether the value of an option may be shown.
pub(super) fn is_public(name: &str) -> bool {
    let name = plain(name);
    let is_known = |names: &str| names.split_whitespace().any(|known| known == name);
    (is_known(USED) || is_known(WITHOUT_EFFECT)) && !SECRET.iter().any(|word| name.contains(word))
}

/// Whether an option holds a password.
pub(super) fn is_password(name: &str) -> bool {
    matches!(plain(name).as_str(), "pass" | "password" | "sentinelpassword" | "sslpassword")
}

/// Returns a name without case, underscores and hyphens.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> UrlOptions {
        UrlOptions::parse(query).unwrap()
    }

    /// The settings that a query stands for, as `key=value`.
    fn tls(query: &str) -> Vec<String> {
        let options = parsed(query);
        options.tls.into_iter().map(|tls| format!("{}={}", tls.key, tls.value)).collect()
    }

    #[test]
    fn options_for_tls_stand_for_settings() {
        for (query, expected) in [
            ("ssl_cert_reqs=none", "store.tls.verify=none"),
            ("ssl_cert_reqs=CERT_NONE", "store.tls.verify=none"),
            ("skip_verify=true", "store.tls.verify=none"),
            ("ssl_check_hostname=False", "store.tls.verify=ca"),
            ("ssl_cert_reqs=none&ssl_check_hostname=false", "store.tls.verify=none"),
            ("ssl_check_hostname=false&ssl_cert_reqs=none", "store.tls.verify=none"),
            ("ssl_ca_certs=%2Fetc%2Fca.pem", "store.tls.ca=/etc/ca.pem"),
            ("ssl_certfile=/c", "store.tls.cert=/c"),
            ("ssl_keyfile=/a&ssl_keyfile=/b", "store.tls.key=/b"),
        ] {
            assert_eq!(tls(query), [expected], "{query}");
        }
        for query in [
            "ssl_cert_reqs=required",
            "ssl_cert_reqs=optional",
            "ssl_cert_reqs=CERT_OPTIONAL",
            "ssl_check_hostname=true",
            "skip_verify=false",
            "ssl_ca_certs=",
        ] {
            assert_eq!((tls(query), parsed(query).warnings.len()), (Vec::new(), 0), "{query}");
        }
    }

    #[test]
    fn a_key_with_a_password_is_not_used() {
        let options = parsed("ssl_certfile=/c&ssl_keyfile=/k&ssl_password=sw0rdfish");
        assert!(options.tls.is_empty());
        let [warning] = &options.warnings[..] else { panic!("{:?}", options.warnings) };
        assert!(warning.contains("ssl_password") && !warning.contains("sw0rd"), "{warning}");
    }

    #[test]
    fn an_unknown_way_to_verify_verifies_and_is_a_warning_without_the_value() {
        for query in ["ssl_cert_reqs=nonne", "ssl_check_hostname=nonne"] {
            let options = parsed(query);
            assert!(options.tls.is_empty(), "{query}");
            assert_eq!(options.warnings.len(), 1, "{query}");
            assert!(!options.warnings[0].contains("nonne"), "{query}");
        }
    }

    #[test]
    fn what_other_clients_know_is_no_warning() {
        let queries = "socket_timeout=5&socket_connect_timeout=2&health_check_interval=30\
            &retry_on_timeout=true&max_connections=10&decode_responses=True&encoding=utf-8 \
            family=0&connectTimeout=10000&maxRetriesPerRequest=null&enableReadyCheck=false&lazyConnect=true \
            dial_timeout=3&read_timeout=6s&pool_size=5&min_idle_conns=1&protocol=3&conn_max_idle_time=1m \
            visibility_timeout=3600&fanout_prefix=true&global_keyprefix=x&polling_interval=1";
        for query in queries.split(' ') {
            assert_eq!(parsed(query).warnings, Vec::<String>::new(), "{query}");
        }
    }

    #[test]
    fn an_unknown_option_is_one_warning_that_names_it_and_no_value() {
        let options = parsed("frobnicate=sw0rdfish&foo=1&foo=2");
        let known = "the URL of Redis has options that jobcache does not know, and ignores: ";
        assert_eq!(options.warnings, [format!("{known}frobnicate, foo")]);
        for query in ["sw0rd/fish", "sw0rd%0afish=1", "sw0rdfish@host", "sw0rdfish&x@host/0"] {
            let warnings = parsed(query).warnings;
            assert_eq!(warnings.len(), 1, "{query}");
            assert!(!warnings[0].contains("sw0rd"), "{query}: {}", warnings[0]);
        }
        let remedy = parsed("keyPrefix=x").warnings.concat();
        assert!(remedy.contains("keyPrefix") && remedy.contains("store.prefix"), "{remedy}");
    }

    #[test]
    fn the_database_has_several_names_and_is_a_number() {
        for query in ["db=3", "virtual_host=/3", "virtual_host=3", "db=1&db=3", "db=3&db="] {
            assert_eq!(parsed(query).database, Some(3), "{query}");
        }
        assert_eq!(parsed("db=&virtual_host=/").database, None);
        assert_eq!(UrlOptions::parse("db=x").unwrap_err(), "db must be a number");
    }

    #[test]
    fn each_name_is_listed_once() {
        let elsewhere = ELSEWHERE.iter().flat_map(|(names, _)| names.split_whitespace());
        let mut all: Vec<_> = WITHOUT_EFFECT.split_whitespace().chain(elsewhere).collect();
        assert!(all.iter().all(|name| *name == plain(name)));
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
