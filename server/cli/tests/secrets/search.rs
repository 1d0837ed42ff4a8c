//! Collects all output and searches it for canaries.

use std::fmt::Debug;
use std::io::{self, Write};
use std::panic;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A text that no output may contain, in any notation.
pub(crate) struct Canary {
    forms: Vec<(&'static str, String)>,
}

impl Canary {
    pub(crate) fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let joined = |separator: &str, show: fn(&u8) -> String| {
            bytes.iter().map(show).collect::<Vec<_>>().join(separator)
        };
        let mut forms = vec![
            ("as it is", text.to_owned()),
            ("as a list of bytes", joined(", ", u8::to_string)),
            ("as hexadecimal", joined("", |byte| format!("{byte:02x}"))),
            ("as HEXADECIMAL", joined("", |byte| format!("{byte:02X}"))),
        ];
        // In base64 it looks like one of three, by what is before it; the characters at its ends
        // depend on its neighbours.
        for before in 0..3 {
            let shifted = [&[0; 2][..before], bytes].concat();
            let encoded = STANDARD.encode(shifted);
            let own = encoded.trim_end_matches('=');
            let start = (before * 8).div_ceil(6);
            forms.push(("as base64", own[start..own.len() - 1].to_owned()));
        }
        Self { forms }
    }

    /// The notation that was found, and its surroundings.
    pub(crate) fn find(&self, text: &str) -> Option<String> {
        self.forms.iter().find_map(|(how, form)| {
            let at = text.find(form)?;
            let bytes = text.as_bytes();
            let end = bytes.len().min(at + form.len() + 80);
            let around = String::from_utf8_lossy(&bytes[at.saturating_sub(200)..end]);
            Some(format!("{how}: …{around}…"))
        })
    }
}

/// All output of this process, except what a test prints.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Captures from now on all that is logged, at every level and by every crate, and the
    /// messages of panics, those of `service` aside: what a service's own code says in a panic is
    /// its own.
    pub(crate) fn capture(service: &'static str) -> Self {
        static ONLY: OnceLock<Output> = OnceLock::new();
        let begin = || {
            let output = Self::default();
            let log = output.clone();
            tracing_subscriber::fmt()
                .with_writer(move || log.clone())
                .with_max_level(tracing::Level::TRACE)
                .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
                .with_ansi(false)
                .init();
            let (panics, before) = (output.clone(), panic::take_hook());
            panic::set_hook(Box::new(move |info| {
                if !info
                    .location()
                    .is_some_and(|at| at.file().ends_with(service))
                {
                    panics.clone().note(&format_args!("{info}"));
                    before(info);
                }
            }));
            output
        };
        ONLY.get_or_init(begin).clone()
    }

    /// Adds a text.
    pub(crate) fn note(&self, text: &impl ToString) {
        let line = text.to_string() + "\n";
        let _ = self.clone().write_all(line.as_bytes());
    }

    /// Adds what `Debug` shows, in both ways.
    pub(crate) fn debug(&self, shown: &impl Debug) {
        self.note(&format_args!("{shown:?} {shown:#?}"));
    }

    pub(crate) fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[test]
fn search_finds_every_form_of_a_value() {
    const TEXT: &str = "sEcReT42";
    let canary = Canary::new(TEXT);
    let bytes = [b"xyz".as_slice(), TEXT.as_bytes(), b"!"].concat();
    for shown in [
        format!("{TEXT:?}"),
        format!("{bytes:?}"),
        format!("{:?}", bytes::Bytes::from(bytes.clone())),
        format!("{:02x?}", bytes).replace([',', ' '], ""),
        STANDARD.encode(&bytes),
        STANDARD.encode(&bytes[1..]),
        STANDARD.encode(&bytes[2..]),
    ] {
        assert!(canary.find(&shown).is_some(), "{shown}");
    }
    assert!(canary.find("secret42 sEcReT4").is_none());
}
