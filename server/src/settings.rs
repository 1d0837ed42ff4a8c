//! What a server is told: from code, a file, the environment and flags, validated once.
//!
//! Every setting has one name, spelled the way its place spells things: `log_bytes` in a file,
//! `DRIFTLESS_LOG_BYTES` in the environment, `--log-bytes` as a flag. A later layer replaces what an
//! earlier one said, lists included. [`SettingsBuilder::build`] checks the whole, so a [`Settings`]
//! that exists is valid, and each refusal says which setting it is about, where it was given, and
//! what to do.
//!
//! Who owns it: whoever starts a server. It reads the file it is given and nothing else: no process
//! environment, no clock, no network.

mod name;
mod text;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use driftless_proto::KeyRange;

pub use self::name::{ENVIRONMENT_PREFIX, Given, Origin, Setting, SettingsError};
use self::name::{is_foreign, known, known_variables, nearest};
pub use self::text::parse_duration;
use self::text::{address, check_etcd_url, parse_bytes, parse_count, show_duration, toml_texts};
use crate::service::Patience;

/// Where gRPC is served unless told otherwise: loopback, since there are no rights to check yet.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);

/// Where the binary serves health and metrics unless told otherwise.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);

/// A change log smaller than this could not hold one large value, and every client that blinked
/// would get a snapshot.
const MIN_LOG_BYTES: usize = 1024 * 1024;

/// Intervals below this would be load without use; the wire has milliseconds.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Above this, a peer that is gone would go unnoticed for hours.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// Whoever stops a server is not to wait longer than this; service managers wait 90 s at most.
const MAX_DRAIN: Duration = Duration::from_secs(60);

/// Bounds of how long a client may leave unread what it asked for. Below, every hiccup of a network
/// would close connections; above, none would be closed that matters.
const STALL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// It is sent to every client as part of the epoch.
const MAX_GENERATION_BYTES: usize = 64;

/// What a server does and with what. Made by [`Settings::builder`]; one that exists is valid.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    etcd: Vec<String>,
    prefixes: Vec<KeyRange>,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    tls: Option<TlsFiles>,
    generation: String,
    log_bytes: usize,
    progress_interval: Duration,
    ping_interval: Duration,
    report_interval: Duration,
    audit_interval: Option<Duration>,
    stall_timeout: Duration,
    drain_timeout: Duration,
    max_connections: usize,
    patience: Patience,
}

impl Settings {
    /// Starts with the defaults that [`SettingsBuilder`]'s methods state.
    pub fn builder() -> SettingsBuilder {
        SettingsBuilder::default()
    }

    /// URLs of the members of one etcd cluster; at least one.
    pub fn etcd(&self) -> &[String] {
        &self.etcd
    }

    /// The served prefixes: at least one, each a [`KeyRange::Prefix`], none inside another.
    pub fn prefixes(&self) -> &[KeyRange] {
        &self.prefixes
    }

    /// Where to serve gRPC. Port 0: one that is free.
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where to serve health and metrics. `None`: nowhere. Port 0: one that is free.
    pub const fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The files of TLS for gRPC. `None`: it is served without TLS.
    pub const fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// The operator's part of the [epoch](driftless_proto::Epoch).
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// What all change logs together may hold, in bytes.
    pub const fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// A stream on which nothing happens says so at least this often.
    pub const fn progress_interval(&self) -> Duration {
        self.progress_interval
    }

    /// How often a connection is checked for being alive.
    pub const fn ping_interval(&self) -> Duration {
        self.ping_interval
    }

    /// How often clients report, at most.
    pub const fn report_interval(&self) -> Duration {
        self.report_interval
    }

    /// How often the state is compared with what etcd holds. `None`: never.
    pub const fn audit_interval(&self) -> Option<Duration> {
        self.audit_interval
    }

    /// How long a client may leave unread what it asked for, before its connection is closed.
    pub const fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// How long a shutdown waits for streams to end.
    pub const fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// How many connections are served at a time.
    pub const fn max_connections(&self) -> usize {
        self.max_connections
    }

    pub(crate) const fn patience(&self) -> Patience {
        self.patience
    }
}

/// Where the certificates are that gRPC is served with. The files are read when a server starts, and
/// again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The server's certificate, with those that lead to its CA behind it; PEM.
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// Its key; PEM.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The CAs from one of which every client has to have a certificate; PEM. `None`: clients need
    /// none.
    pub fn client_ca(&self) -> Option<&Path> {
        self.client_ca.as_deref()
    }
}

/// A value and where it was given.
#[derive(Clone, Debug)]
struct Slot<T> {
    value: T,
    origin: Origin,
}

impl<T> Slot<T> {
    const fn code(value: T) -> Self {
        Self {
            value,
            origin: Origin::Code,
        }
    }

    const fn given(&self, setting: Setting) -> GivenRef<'_> {
        GivenRef(setting, &self.origin)
    }
}

/// [`Given`], not yet cloned: only a refusal needs it to be.
#[derive(Clone, Copy)]
struct GivenRef<'a>(Setting, &'a Origin);

impl GivenRef<'_> {
    fn owned(self) -> Given {
        Given {
            setting: self.0,
            origin: self.1.clone(),
        }
    }

    fn refuse(self, problem: impl Into<String>) -> SettingsError {
        SettingsError::Invalid {
            given: self.owned(),
            problem: problem.into(),
        }
    }
}

/// Collects settings, layer by layer; what comes later replaces what came before.
///
/// ```
/// use driftless_server::Settings;
///
/// let settings = Settings::builder()
///     .etcd("http://127.0.0.1:2379")
///     .prefix("/config/")
///     .listen(([127, 0, 0, 1], 0).into())
///     .build()?;
/// assert_eq!(settings.etcd(), ["http://127.0.0.1:2379"]);
/// # Ok::<(), driftless_server::SettingsError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SettingsBuilder {
    etcd: Slot<Vec<String>>,
    prefix: Slot<Vec<Vec<u8>>>,
    listen: Slot<SocketAddr>,
    admin: Slot<Option<SocketAddr>>,
    tls_cert: Slot<Option<PathBuf>>,
    tls_key: Slot<Option<PathBuf>>,
    tls_client_ca: Slot<Option<PathBuf>>,
    generation: Slot<String>,
    log_bytes: Slot<usize>,
    progress_interval: Slot<Duration>,
    ping_interval: Slot<Duration>,
    report_interval: Slot<Duration>,
    audit_interval: Slot<Option<Duration>>,
    stall_timeout: Slot<Duration>,
    drain_timeout: Slot<Duration>,
    max_connections: Slot<usize>,
    patience: Patience,
}

impl Default for SettingsBuilder {
    fn default() -> Self {
        Self {
            etcd: Slot::code(Vec::new()),
            prefix: Slot::code(Vec::new()),
            listen: Slot::code(DEFAULT_LISTEN),
            admin: Slot::code(None),
            tls_cert: Slot::code(None),
            tls_key: Slot::code(None),
            tls_client_ca: Slot::code(None),
            generation: Slot::code(String::new()),
            log_bytes: Slot::code(64 * 1024 * 1024),
            progress_interval: Slot::code(Duration::from_secs(10)),
            ping_interval: Slot::code(Duration::from_secs(20)),
            report_interval: Slot::code(Duration::from_secs(10)),
            audit_interval: Slot::code(Some(Duration::from_secs(600))),
            stall_timeout: Slot::code(Duration::from_secs(120)),
            drain_timeout: Slot::code(Duration::from_secs(8)),
            max_connections: Slot::code(65_536),
            patience: Patience::default(),
        }
    }
}

/// Refuses a variable of the environment that nothing of driftless reads, as
/// [`SettingsBuilder::environment`] does, for those who read none of the server's settings: a name
/// that is mistyped would go unnoticed.
///
/// # Errors
/// When one starts as driftless's do and is none of them.
pub fn check_variables<N: AsRef<std::ffi::OsStr>>(
    names: impl IntoIterator<Item = N>,
) -> Result<(), SettingsError> {
    names
        .into_iter()
        .filter_map(|name| name.as_ref().to_str().map(variable))
        .try_for_each(|known| known.map(drop))
}

/// Which setting a variable holds; `None` when it is somebody else's.
fn variable(name: &str) -> Result<Option<Setting>, SettingsError> {
    if is_foreign(name) {
        return Ok(None);
    }
    known(name, Setting::variable)
        .map(Some)
        .ok_or_else(|| SettingsError::Unknown {
            place: "environment".to_owned(),
            name: name.to_owned(),
            nearest: nearest(name, known_variables()),
        })
}

impl SettingsBuilder {
    /// Adds the URL of a member of the etcd cluster, such as `http://127.0.0.1:2379`. No default.
    pub fn etcd(mut self, url: impl Into<String>) -> Self {
        self.etcd.value.push(url.into());
        self.etcd.origin = Origin::Code;
        self
    }

    /// Adds a prefix to serve: clients can watch it, and what lies under it. No default.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix.value.push(prefix.as_ref().to_vec());
        self.prefix.origin = Origin::Code;
        self
    }

    /// Where to serve gRPC; port 0 takes one that is free. Default: `127.0.0.1:7400`.
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.listen.value = address;
        self
    }

    /// Where to serve health and metrics over HTTP; port 0 takes one that is free. Default: nowhere
    /// (the binary: `127.0.0.1:7401`).
    pub const fn admin(mut self, address: SocketAddr) -> Self {
        self.admin.value = Some(address);
        self
    }

    /// Serves gRPC over TLS (1.2 and 1.3) and only so, with the certificate in this PEM file, and those
    /// that lead to its CA behind it. Needs [`tls_key`](Self::tls_key). The files may be replaced while
    /// the server runs: within some 10 s new connections get the new certificate. Default: none, and no
    /// TLS.
    pub fn tls_cert(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls_cert = Slot::code(Some(path.into()));
        self
    }

    /// The key of [`tls_cert`](Self::tls_cert): PEM (PKCS#8, PKCS#1 or SEC1), not encrypted. Default:
    /// none.
    pub fn tls_key(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls_key = Slot::code(Some(path.into()));
        self
    }

    /// Lets in only clients that have a certificate from a CA in this PEM file. Needs
    /// [`tls_cert`](Self::tls_cert). Default: none, and clients need no certificate.
    pub fn tls_client_ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls_client_ca = Slot::code(Some(path.into()));
        self
    }

    /// Tells this history of etcd from that before a restore from a backup, which etcd's own
    /// identity may not. The same on all servers of one etcd; changed by hand after a restore. At
    /// most 64 bytes. Default: empty.
    pub fn generation(mut self, generation: impl Into<String>) -> Self {
        self.generation = Slot::code(generation.into());
        self
    }

    /// What all change logs together may hold, in bytes: the more, the longer a client may be away
    /// and still get only what changed. Default: 64 MiB; at least 1 MiB.
    pub const fn log_bytes(mut self, bytes: usize) -> Self {
        self.log_bytes.value = bytes;
        self
    }

    /// A stream on which nothing happens says so at least this often. Default: 10 s.
    pub const fn progress_interval(mut self, interval: Duration) -> Self {
        self.progress_interval.value = interval;
        self
    }

    /// How often a connection is checked for being alive. Default: 20 s.
    pub const fn ping_interval(mut self, interval: Duration) -> Self {
        self.ping_interval.value = interval;
        self
    }

    /// How often clients report what became of what they got, at most. Default: 10 s.
    pub const fn report_interval(mut self, interval: Duration) -> Self {
        self.report_interval.value = interval;
        self
    }

    /// How often the state of each prefix is compared with what etcd holds, by a list at one
    /// revision: after this long on average, half of it more or less. `None` for never. Default:
    /// 10 min.
    pub const fn audit_interval(mut self, interval: Option<Duration>) -> Self {
        self.audit_interval.value = interval;
        self
    }

    /// How long a client may leave unread what a stream has to send, before its connection is
    /// closed; a quarter more or 30 s at most, whichever is less. A stream with nothing to send may
    /// be idle for ever. Default: 2 min; from 1 s to 24 h.
    pub const fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout.value = timeout;
        self
    }

    /// How long a shutdown waits for streams to end. Default: 8 s, so that all of a shutdown fits
    /// into the 10 s that service managers commonly give.
    pub const fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout.value = timeout;
        self
    }

    /// How many connections are served at a time; more wait to be accepted. Default: 65,536.
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections.value = connections;
        self
    }

    /// How long a client that does nothing is waited for: until TLS is agreed on, until the first call,
    /// until a ping is answered. For tests of what the server ends by itself; nobody else has to set
    /// it. Default: 10 s, 30 s and 20 s.
    #[cfg(feature = "test-util")]
    pub const fn patience(mut self, within: Duration) -> Self {
        self.patience = Patience::of(within);
        self
    }

    /// Adds what a TOML file says, such as `prefix = ["/config/"]`. Blocks while it reads.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, names an unknown setting, or a value cannot be read.
    pub fn file(mut self, path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |source| SettingsError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let text = String::from_utf8(std::fs::read(path).map_err(unreadable)?).map_err(|_| {
            unreadable(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not UTF-8",
            ))
        })?;
        let line_of = |offset| {
            1 + text
                .bytes()
                .take(offset)
                .filter(|byte| *byte == b'\n')
                .count()
        };
        let table = toml::de::DeTable::parse(&text).map_err(|error| SettingsError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(span.start)),
            problem: error.message().to_owned(),
        })?;
        for (name, value) in table.get_ref() {
            let line = line_of(name.span().start);
            let Some(setting) = known(name.get_ref(), Setting::name) else {
                return Err(SettingsError::Unknown {
                    place: format!("{}, line {line}", path.display()),
                    name: name.get_ref().to_string(),
                    nearest: nearest(
                        name.get_ref(),
                        Setting::ALL.map(|known| known.name().to_owned()),
                    ),
                });
            };
            let origin = Origin::File {
                path: path.to_owned(),
                line,
            };
            let texts = toml_texts(setting, value.get_ref())
                .map_err(|problem| GivenRef(setting, &origin).refuse(problem))?;
            self.set(setting, texts, origin)?;
        }
        Ok(self)
    }

    /// Adds what environment variables say: those that start with `DRIFTLESS_`, lists separated by
    /// commas. Pass [`std::env::vars_os`].
    ///
    /// Ignores what an empty value says, the variables of the command line tools, and those that
    /// Kubernetes makes for a service that is called `driftless`.
    ///
    /// # Errors
    /// When one names an unknown setting, or its value cannot be read.
    pub fn environment<N, V>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, SettingsError>
    where
        N: AsRef<std::ffi::OsStr>,
        V: AsRef<std::ffi::OsStr>,
    {
        for (name, value) in variables {
            let Some(name) = name.as_ref().to_str() else {
                continue;
            };
            let Some(setting) = variable(name)? else {
                continue;
            };
            let Some(value) = value.as_ref().to_str() else {
                return Err(
                    GivenRef(setting, &Origin::Environment).refuse("the value is not UTF-8")
                );
            };
            if value.is_empty() {
                continue;
            }
            let texts = if setting.is_list() {
                value.split(',').map(str::to_owned).collect()
            } else {
                vec![value.to_owned()]
            };
            self.set(setting, texts, Origin::Environment)?;
        }
        Ok(self)
    }

    /// Adds what a flag says; nothing when there are no values.
    ///
    /// # Errors
    /// When a value cannot be read, or several are given for what is no list.
    pub fn flag(
        mut self,
        setting: Setting,
        values: impl IntoIterator<Item = String>,
    ) -> Result<Self, SettingsError> {
        let texts: Vec<_> = values.into_iter().collect();
        if !texts.is_empty() {
            self.set(setting, texts, Origin::Flag)?;
        }
        Ok(self)
    }

    /// Checks all of it.
    ///
    /// # Errors
    /// When a setting is missing, out of its bounds, or at odds with another.
    pub fn build(self) -> Result<Settings, SettingsError> {
        use Setting as S;
        if self.etcd.value.is_empty() {
            return Err(SettingsError::Missing {
                setting: S::Etcd,
                what: "no etcd to watch",
            });
        }
        for url in &self.etcd.value {
            check_etcd_url(url).map_err(|problem| self.etcd.given(S::Etcd).refuse(problem))?;
        }
        let prefixes = check_prefixes(&self.prefix)?;
        if self.generation.value.len() > MAX_GENERATION_BYTES {
            return Err(self.generation.given(S::Generation).refuse(format!(
                "it is {} bytes long; at most {MAX_GENERATION_BYTES} are allowed",
                self.generation.value.len()
            )));
        }
        if self.log_bytes.value < MIN_LOG_BYTES {
            return Err(self.log_bytes.given(S::LogBytes).refuse(format!(
                "{} bytes cannot hold the changes of large values; at least 1MiB is needed",
                self.log_bytes.value
            )));
        }
        let interval = (MIN_INTERVAL, MAX_INTERVAL);
        for (value, given, bounds) in [
            (
                self.progress_interval.value,
                self.progress_interval.given(S::ProgressInterval),
                interval,
            ),
            (
                self.ping_interval.value,
                self.ping_interval.given(S::PingInterval),
                interval,
            ),
            (
                self.report_interval.value,
                self.report_interval.given(S::ReportInterval),
                interval,
            ),
            (
                self.stall_timeout.value,
                self.stall_timeout.given(S::StallTimeout),
                STALL,
            ),
            (
                self.audit_interval.value.unwrap_or(MAX_INTERVAL),
                self.audit_interval.given(S::AuditInterval),
                interval,
            ),
            (
                self.drain_timeout.value,
                self.drain_timeout.given(S::DrainTimeout),
                (Duration::ZERO, MAX_DRAIN),
            ),
        ] {
            if value < bounds.0 || value > bounds.1 {
                return Err(given.refuse(format!(
                    "{} is out of bounds; from {} to {} are allowed",
                    show_duration(value),
                    show_duration(bounds.0),
                    show_duration(bounds.1)
                )));
            }
        }
        if self.max_connections.value == 0 {
            return Err(self
                .max_connections
                .given(S::MaxConnections)
                .refuse("0 would serve nobody; at least 1 is needed"));
        }
        if self.listen.value.port() != 0 && self.admin.value == Some(self.listen.value) {
            return Err(self.admin.given(S::Admin).refuse(format!(
                "{} is where gRPC is served; give it another port, or \"off\"",
                self.listen.value
            )));
        }
        let tls = self.check_tls()?;
        Ok(Settings {
            etcd: self.etcd.value,
            prefixes,
            listen: self.listen.value,
            admin: self.admin.value,
            tls,
            generation: self.generation.value,
            log_bytes: self.log_bytes.value,
            progress_interval: self.progress_interval.value,
            ping_interval: self.ping_interval.value,
            report_interval: self.report_interval.value,
            audit_interval: self.audit_interval.value,
            stall_timeout: self.stall_timeout.value,
            drain_timeout: self.drain_timeout.value,
            max_connections: self.max_connections.value,
            patience: self.patience,
        })
    }

    /// The files of TLS: all that are needed, or none.
    fn check_tls(&self) -> Result<Option<TlsFiles>, SettingsError> {
        use Setting as S;
        let slots = [
            (S::TlsCert, &self.tls_cert),
            (S::TlsKey, &self.tls_key),
            (S::TlsClientCa, &self.tls_client_ca),
        ];
        for (setting, slot) in slots {
            if slot
                .value
                .as_ref()
                .is_some_and(|path| path.as_os_str().is_empty())
            {
                return Err(slot
                    .given(setting)
                    .refuse("the path is empty; name a PEM file"));
            }
        }
        let without = |given: GivenRef<'_>, what: &str, missing: S| {
            let (flag, variable, name) = (missing.flag(), missing.variable(), missing.name());
            Err(given.refuse(format!(
                "it is of no use without {what}: give {flag}, or set {variable}, or write {name} into \
                 the settings file"
            )))
        };
        match slots.map(|(_, slot)| slot.value.clone()) {
            [None, None, None] => Ok(None),
            [Some(cert), Some(key), client_ca] => Ok(Some(TlsFiles {
                cert,
                key,
                client_ca,
            })),
            [Some(_), None, _] => without(self.tls_cert.given(S::TlsCert), "its key", S::TlsKey),
            [None, Some(_), _] => {
                without(self.tls_key.given(S::TlsKey), "its certificate", S::TlsCert)
            }
            [None, None, Some(_)] => without(
                self.tls_client_ca.given(S::TlsClientCa),
                "a certificate of the server",
                S::TlsCert,
            ),
        }
    }

    /// Takes a setting over from text. `texts` is not empty.
    fn set(
        &mut self,
        setting: Setting,
        mut texts: Vec<String>,
        origin: Origin,
    ) -> Result<(), SettingsError> {
        let given = GivenRef(setting, &origin);
        if texts.len() > 1 && !setting.is_list() {
            return Err(given.refuse("given more than once; it takes one value"));
        }
        let refuse = |problem: String| given.refuse(problem);
        let mut text = || texts.pop().unwrap_or_default();
        match setting {
            Setting::Etcd => self.etcd.value = texts,
            Setting::Prefix => {
                self.prefix.value = texts.into_iter().map(String::into_bytes).collect();
            }
            Setting::Listen => self.listen.value = address(&text()).map_err(refuse)?,
            Setting::Admin => {
                let text = text();
                self.admin.value = match text.as_str() {
                    "off" => None,
                    _ => Some(address(&text).map_err(refuse)?),
                };
            }
            Setting::TlsCert => self.tls_cert.value = Some(text().into()),
            Setting::TlsKey => self.tls_key.value = Some(text().into()),
            Setting::TlsClientCa => self.tls_client_ca.value = Some(text().into()),
            Setting::Generation => self.generation.value = text(),
            Setting::LogBytes => self.log_bytes.value = parse_bytes(&text()).map_err(refuse)?,
            Setting::ProgressInterval => {
                self.progress_interval.value = parse_duration(&text()).map_err(refuse)?;
            }
            Setting::PingInterval => {
                self.ping_interval.value = parse_duration(&text()).map_err(refuse)?;
            }
            Setting::ReportInterval => {
                self.report_interval.value = parse_duration(&text()).map_err(refuse)?;
            }
            Setting::AuditInterval => {
                let text = text();
                self.audit_interval.value = match text.as_str() {
                    "off" => None,
                    _ => Some(parse_duration(&text).map_err(refuse)?),
                };
            }
            Setting::StallTimeout => {
                self.stall_timeout.value = parse_duration(&text()).map_err(refuse)?;
            }
            Setting::DrainTimeout => {
                self.drain_timeout.value = parse_duration(&text()).map_err(refuse)?;
            }
            Setting::MaxConnections => {
                self.max_connections.value = parse_count(&text()).map_err(refuse)?;
            }
        }
        *self.origin_mut(setting) = origin;
        Ok(())
    }

    const fn origin_mut(&mut self, setting: Setting) -> &mut Origin {
        match setting {
            Setting::Etcd => &mut self.etcd.origin,
            Setting::Prefix => &mut self.prefix.origin,
            Setting::Listen => &mut self.listen.origin,
            Setting::Admin => &mut self.admin.origin,
            Setting::TlsCert => &mut self.tls_cert.origin,
            Setting::TlsKey => &mut self.tls_key.origin,
            Setting::TlsClientCa => &mut self.tls_client_ca.origin,
            Setting::Generation => &mut self.generation.origin,
            Setting::LogBytes => &mut self.log_bytes.origin,
            Setting::ProgressInterval => &mut self.progress_interval.origin,
            Setting::PingInterval => &mut self.ping_interval.origin,
            Setting::ReportInterval => &mut self.report_interval.origin,
            Setting::AuditInterval => &mut self.audit_interval.origin,
            Setting::StallTimeout => &mut self.stall_timeout.origin,
            Setting::DrainTimeout => &mut self.drain_timeout.origin,
            Setting::MaxConnections => &mut self.max_connections.origin,
        }
    }
}
fn check_prefixes(slot: &Slot<Vec<Vec<u8>>>) -> Result<Vec<KeyRange>, SettingsError> {
    let given = slot.given(Setting::Prefix);
    if slot.value.is_empty() {
        return Err(SettingsError::Missing {
            setting: Setting::Prefix,
            what: "no prefix to serve",
        });
    }
    let mut prefixes: Vec<KeyRange> = Vec::with_capacity(slot.value.len());
    for bytes in &slot.value {
        let new = KeyRange::prefix(bytes).map_err(|error| given.refuse(error.to_string()))?;
        for old in &prefixes {
            let (inner, outer) = if old.covers(&new) {
                (&new, old)
            } else if new.covers(old) {
                (old, &new)
            } else {
                continue;
            };
            let (inner, outer) = (inner.start().clone(), outer.start().clone());
            return Err(if inner == outer {
                SettingsError::PrefixTwice {
                    given: given.owned(),
                    prefix: inner,
                }
            } else {
                SettingsError::PrefixInside {
                    given: given.owned(),
                    inner,
                    outer,
                }
            });
        }
        prefixes.push(new);
    }
    Ok(prefixes)
}
#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;

    fn minimal() -> SettingsBuilder {
        Settings::builder()
            .etcd("http://127.0.0.1:2379")
            .prefix("/config/")
    }

    fn refusal(result: Result<impl fmt::Debug, SettingsError>) -> String {
        result.unwrap_err().to_string()
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, PathBuf) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_owned();
        (file, path)
    }

    #[test]
    fn later_layers_replace_earlier_ones() {
        let (_file, path) = file(
            "etcd = 'http://file:1'\nprefix = ['/a/', '/b/']\nlisten = '127.0.0.1:1'\n\
             log_bytes = 2097152\nping_interval = '7s'\naudit_interval = 'off'\n\
             max_connections = 5\n",
        );
        let settings = minimal()
            .file(&path)
            .unwrap()
            .environment([
                ("DRIFTLESS_ETCD", "http://env:2,http://env:3"),
                ("DRIFTLESS_LISTEN", "127.0.0.1:2"),
                ("DRIFTLESS_PING_INTERVAL", ""),
                ("HOME", "/"),
            ])
            .unwrap()
            .flag(Setting::Listen, ["127.0.0.1:3".to_owned()])
            .unwrap()
            .flag(Setting::MaxConnections, [])
            .unwrap()
            .build()
            .unwrap();
        assert_eq!(settings.etcd(), ["http://env:2", "http://env:3"]);
        assert_eq!(
            settings.prefixes(),
            [
                KeyRange::prefix("/a/").unwrap(),
                KeyRange::prefix("/b/").unwrap()
            ]
        );
        assert_eq!(settings.listen().port(), 3);
        assert_eq!(settings.log_bytes(), 2 * 1024 * 1024);
        assert_eq!(settings.ping_interval(), Duration::from_secs(7));
        assert_eq!(settings.audit_interval(), None);
        assert_eq!(settings.max_connections(), 5);
        assert_eq!(settings.drain_timeout(), Duration::from_secs(8));
    }

    #[test]
    fn unknown_settings_are_refused_with_the_nearest_known_one() {
        let (_file, path) = file("etcd = 'http://e:1'\n\nprefixes = ['/a/']\n");
        assert_eq!(
            refusal(minimal().file(&path)),
            format!(
                "{}, line 3: there is no setting \"prefixes\"; did you mean \"prefix\"?",
                path.display()
            )
        );
        assert_eq!(
            refusal(minimal().environment([("DRIFTLESS_LISTN", "x")])),
            "environment: there is no setting \"DRIFTLESS_LISTN\"; did you mean \"DRIFTLESS_LISTEN\"?"
        );
        assert!(
            refusal(minimal().environment([("DRIFTLESS_COLOUR", "x")]))
                .contains("the known ones are DRIFTLESS_ETCD, DRIFTLESS_PREFIX, DRIFTLESS_LISTEN")
        );
        assert!(
            refusal(minimal().environment([("DRIFTLESS_SEVER", "x")]))
                .ends_with("did you mean \"DRIFTLESS_SERVER\"?")
        );
    }

    #[test]
    fn variables_that_are_not_ours_are_left_alone() {
        let _ = minimal()
            .environment([
                ("DRIFTLESS_SERVER", "http://x:1"),
                ("DRIFTLESS_LOG", "debug"),
                ("DRIFTLESS_CA", "ca.pem"),
                ("DRIFTLESS_CERT", "c.pem"),
                ("DRIFTLESS_KEY", "k.pem"),
                ("DRIFTLESS_SERVER_NAME", "config.example"),
                ("DRIFTLESS_TOKEN_FILE", "token"),
                ("DRIFTLESS_SERVICE_HOST", "10.0.0.1"),
                ("DRIFTLESS_SERVICE_PORT", "7400"),
                ("DRIFTLESS_SERVICE_PORT_GRPC", "7400"),
                ("DRIFTLESS_PORT", "tcp://10.0.0.1:7400"),
                ("DRIFTLESS_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
                ("DRIFTLESS_PORT_7400_TCP_ADDR", "10.0.0.1"),
                ("DRIFTLESS_EU_SERVICE_HOST", "10.0.0.1"),
            ])
            .unwrap();
    }

    #[test]
    fn what_is_not_a_value_is_named_with_its_place() {
        let flag = |setting, value: &str| refusal(minimal().flag(setting, [value.to_owned()]));
        assert_eq!(
            flag(Setting::Listen, "localhost"),
            "--listen: \"localhost\" is not an address; write an IP address and a port, such as 127.0.0.1:7400 or [::]:7400"
        );
        assert_eq!(
            flag(Setting::PingInterval, "10"),
            "--ping-interval: \"10\" is not a span of time; write a whole number and ms, s, m or h, such as 10s"
        );
        assert_eq!(
            flag(Setting::LogBytes, "64MB"),
            "--log-bytes: \"64MB\" is not a number of bytes; write it alone or with KiB, MiB or GiB, such as 64MiB"
        );
        assert_eq!(
            refusal(minimal().environment([("DRIFTLESS_MAX_CONNECTIONS", "many")])),
            "DRIFTLESS_MAX_CONNECTIONS: \"many\" is not a whole number between 1 and 18446744073709551615"
        );
        let (_file, path) = file("\nlisten = true\n");
        assert_eq!(
            refusal(minimal().file(&path)),
            format!(
                "{}, line 2: listen: it takes a text or a whole number, not a boolean",
                path.display()
            )
        );
        assert!(
            refusal(minimal().file(Path::new("/nowhere/d.toml")))
                .starts_with("cannot read the settings file /nowhere/d.toml: No such file")
        );
    }

    #[test]
    fn a_syntax_error_does_not_quote_the_file() {
        let (_file, path) = file("listen = '127.0.0.1:1'\netcd = CANARY\n");
        let message = refusal(minimal().file(&path));
        assert!(message.contains("line 2: not valid TOML"), "{message}");
        assert!(!message.contains("CANARY"), "{message}");
    }

    #[test]
    fn what_is_missing_is_said_in_every_spelling() {
        assert_eq!(
            refusal(Settings::builder().prefix("/a/").build()),
            "no etcd to watch: give --etcd, or set DRIFTLESS_ETCD, or write etcd into the settings file"
        );
        assert_eq!(
            refusal(Settings::builder().etcd("http://e:1").build()),
            "no prefix to serve: give --prefix, or set DRIFTLESS_PREFIX, or write prefix into the settings file"
        );
    }

    #[test]
    fn prefixes_may_not_overlap() {
        let flags = |prefixes: &[&str]| {
            refusal(
                minimal()
                    .flag(Setting::Prefix, prefixes.iter().map(ToString::to_string))
                    .unwrap()
                    .build(),
            )
        };
        assert_eq!(
            flags(&["/a/", "/b/", "/a/"]),
            "--prefix: the prefix /a/ is listed twice; remove one of them"
        );
        let inside = "--prefix: the prefix /a/b/ lies inside /a/, which serves its keys already; remove one of them";
        assert_eq!(flags(&["/a/", "/a/b/"]), inside);
        assert_eq!(flags(&["/a/b/", "/a/"]), inside);
        assert_eq!(
            flags(&["/a/", ""]),
            "--prefix: the prefix is empty; name at least one byte, such as \"/config/\""
        );
        assert!(flags(&[&"k".repeat(5000)]).contains("5000 bytes long; at most 4096"));
    }

    #[test]
    fn urls_are_checked_and_passwords_not_shown() {
        for (url, expected) in [
            ("", "the URL is empty"),
            (
                "127.0.0.1:2379",
                "\"127.0.0.1:2379\" does not start with http://; write it like http://127.0.0.1:2379",
            ),
            ("ftp://e:1", "does not start with http://"),
            ("https://e:1", "asks for TLS, which is not supported yet"),
            ("http://e", "has no port"),
            ("http://:2379", "names no host"),
            ("http://e:99999", "has no port between 1 and 65535"),
            ("http://e:1/v3", "something behind the port"),
            ("http://root:CANARY@e:1", "user name or password"),
            ("root:CANARY@e:1", "user name or password"),
            (
                "http://e:1,http://f:1",
                "holds a comma; give several URLs one by one, each like http://127.0.0.1:2379",
            ),
        ] {
            let message = refusal(Settings::builder().etcd(url).prefix("/a/").build());
            assert!(message.contains(expected), "{url}: {message}");
            assert!(!message.contains("CANARY"), "{message}");
        }
        for url in ["http://e:1", "http://e:1/", "http://[::1]:2379"] {
            Settings::builder().etcd(url).prefix("/a/").build().unwrap();
        }
    }

    #[test]
    fn bounds_are_kept() {
        for (builder, expected) in [
            (minimal().log_bytes(1024), "log_bytes: 1024 bytes"),
            (
                minimal().progress_interval(Duration::ZERO),
                "progress_interval: 0s is out of bounds; from 100ms to 1h are",
            ),
            (
                minimal().drain_timeout(Duration::from_secs(61)),
                "drain_timeout: 61s is out of bounds",
            ),
            (
                minimal().audit_interval(Some(Duration::from_millis(99))),
                "audit_interval: 99ms is out of bounds; from 100ms to 1h are",
            ),
            (
                minimal().stall_timeout(Duration::from_millis(999)),
                "stall_timeout: 999ms is out of bounds; from 1s to 24h",
            ),
            (minimal().max_connections(0), "max_connections: 0 would"),
            (minimal().generation("g".repeat(65)), "generation: it is 65"),
            (
                minimal().admin(DEFAULT_LISTEN),
                "admin: 127.0.0.1:7400 is where gRPC is served",
            ),
        ] {
            let message = refusal(builder.build());
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn tls_takes_a_certificate_and_its_key() {
        assert_eq!(minimal().build().unwrap().tls(), None);
        let settings = minimal()
            .tls_cert("c.pem")
            .tls_key("k.pem")
            .build()
            .unwrap();
        let files = settings.tls().unwrap();
        assert_eq!(
            (files.cert(), files.key()),
            ("c.pem".as_ref(), "k.pem".as_ref())
        );
        assert_eq!(files.client_ca(), None);
        for (builder, expected) in [
            (
                minimal().tls_cert("c.pem"),
                "tls_cert: it is of no use without its key: give --tls-key, or set DRIFTLESS_TLS_KEY, \
                 or write tls_key into the settings file",
            ),
            (
                minimal().tls_key("k.pem"),
                "tls_key: it is of no use without its certificate",
            ),
            (
                minimal().tls_key("k.pem").tls_client_ca("ca.pem"),
                "tls_key: it is of no use without its certificate: give --tls-cert",
            ),
            (
                minimal().tls_client_ca("ca.pem"),
                "tls_client_ca: it is of no use without a certificate of the server: give --tls-cert",
            ),
            (
                minimal().tls_cert("").tls_key("k.pem"),
                "tls_cert: the path is empty",
            ),
        ] {
            let message = refusal(builder.build());
            assert!(message.contains(expected), "{message}");
        }
        let given = minimal()
            .environment([("DRIFTLESS_TLS_CERT", "c.pem")])
            .unwrap();
        let message = refusal(given.build());
        assert!(message.starts_with("DRIFTLESS_TLS_CERT: "), "{message}");
    }

    #[test]
    fn durations_have_units_and_do_not_overflow() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "s", "1.5s", "-1s", "10 s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["0s", "250ms", "90s", "2m", "3h", "61001ms"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert!(parse_bytes("99999999999999999999").is_err());
    }
}
