//! Turns an error of the command line's parser into one line, with the nearest valid word.

use std::error::Error as _;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use crate::Cli;
use crate::exit::{Failure, Kind};

/// The failure for an error of the parser. Prints help and exits when that was asked for.
pub(crate) fn failure(error: &Error) -> Failure {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        error.exit();
    }
    Failure::new(Kind::Usage, message(error, subcommand().as_deref()))
}

fn message(error: &Error, subcommand: Option<&str>) -> String {
    let said = |kind| error.get(kind).map_or_else(Vec::new, texts);
    let first = |kind| said(kind).into_iter().next().unwrap_or_default();
    // The parser lists similar words, the nearest last.
    let nearest = |kind| said(kind).pop().map(|near| format!("did you mean {near}?"));
    let place = subcommand.map_or_else(String::new, |name| format!("{name}: "));
    let command = ["driftless"].into_iter().chain(subcommand);
    let command = command.collect::<Vec<_>>().join(" ");
    let usage = usage(subcommand);
    let argument = first(ContextKind::InvalidArg);
    let flag = bare(&argument);
    let value = first(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let advice = nearest(ContextKind::SuggestedSubcommand);
            format!(
                "unknown command {}; {}",
                first(ContextKind::InvalidSubcommand),
                advice.unwrap_or_else(|| "see driftless --help".to_owned())
            )
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => format!(
            "{place}unknown flag {argument}; {}",
            nearest(ContextKind::SuggestedArg).unwrap_or_else(|| format!("see {command} --help"))
        ),
        ErrorKind::UnknownArgument => {
            format!("{place}unexpected argument {argument:?}; usage: {usage}")
        }
        ErrorKind::MissingRequiredArgument => format!(
            "{place}missing {}; usage: {usage}",
            said(ContextKind::InvalidArg).join(" and ")
        ),
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{flag}: missing value; write {argument}")
        }
        ErrorKind::InvalidValue => format!(
            "{flag}: {value:?} is not one of {}{}",
            said(ContextKind::ValidValue).join(", "),
            nearest(ContextKind::SuggestedValue)
                .map_or_else(String::new, |advice| format!("; {advice}"))
        ),
        ErrorKind::ValueValidation => match error.source() {
            Some(problem) => format!("{flag}: {problem}"),
            None => format!("{flag}: {value:?} is not a valid value"),
        },
        ErrorKind::ArgumentConflict => match &said(ContextKind::PriorArg)[..] {
            [prior] if *prior == argument => format!("{place}{flag} is given twice"),
            [prior] => format!("{place}{flag} cannot be combined with {}", bare(prior)),
            priors => format!(
                "{place}{flag} cannot be combined with {}",
                priors.join(", ")
            ),
        },
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            format!("{place}{}", line.trim_start_matches("error: "))
        }
    }
}

/// The usage line of the command.
fn usage(subcommand: Option<&str>) -> String {
    let mut cli = Cli::command();
    cli.build();
    let usage = match subcommand.and_then(|name| cli.find_subcommand_mut(name)) {
        Some(subcommand) => subcommand.render_usage(),
        None => cli.render_usage(),
    };
    usage.to_string().trim_start_matches("Usage: ").to_owned()
}

/// The flag of `--color <WHEN>`, without its value.
fn bare(flag: &str) -> &str {
    flag.split([' ', '=']).next().unwrap_or_default()
}

/// The subcommand on the command line, if there is one.
fn subcommand() -> Option<String> {
    let cli = Cli::command();
    std::env::args_os()
        .skip(1)
        .filter_map(|argument| argument.into_string().ok())
        .find(|argument| cli.find_subcommand(argument).is_some())
}

fn texts(value: &ContextValue) -> Vec<String> {
    match value {
        ContextValue::String(text) => vec![text.clone()],
        ContextValue::Strings(texts) => texts.clone(),
        ContextValue::StyledStr(text) => vec![text.to_string()],
        _ => Vec::new(),
    }
}
