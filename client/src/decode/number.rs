//! Says what is wrong with a number without quoting it: every text is one of the constants below.

/// Too small for an unsigned integer.
const NEGATIVE: &str = "a negative number";

/// A number that is no integer.
const FRACTION: &str = "a number with a fraction";

/// An integer in another notation, such as `1e3` and `6.0`.
const NOT_WRITTEN_AS_INTEGER: &str = "a number that is not written as an integer";

/// Quotes that are left over from a shell or a document.
const QUOTED: &str = "quoted text";

/// Only white space.
const NOTHING: &str = "an empty value";

/// The limits of an integer type.
struct Integer {
    min: i128,
    max: u128,
    out_of_range: &'static str,
}

macro_rules! integers {
    ($($asked:literal $type:ty: $out_of_range:literal,)*) => {
        fn integer(asked: &str) -> Option<Integer> {
            match asked {
                $($asked => Some(Integer {
                    // Each type fits into these.
                    min: <$type>::MIN as i128,
                    max: <$type>::MAX as u128,
                    out_of_range: $out_of_range,
                }),)*
                _ => None,
            }
        }

        #[cfg(test)]
        const ALL: &[(&str, &str, &str)] = &[$(($asked, stringify!($type), $out_of_range),)*];
    };
}

integers! {
    "an integer (i8)" i8: "an integer out of its range (-128 to 127)",
    "an integer (i16)" i16: "an integer out of its range (-32768 to 32767)",
    "an integer (i32)" i32: "an integer out of its range (-2147483648 to 2147483647)",
    "an integer (i64)" i64:
        "an integer out of its range (-9223372036854775808 to 9223372036854775807)",
    "an integer (i128)" i128: "an integer out of its range (-2^127 to 2^127 - 1)",
    "an integer (u8)" u8: "an integer out of its range (0 to 255)",
    "an integer (u16)" u16: "an integer out of its range (0 to 65535)",
    "an integer (u32)" u32: "an integer out of its range (0 to 4294967295)",
    "an integer (u64)" u64: "an integer out of its range (0 to 18446744073709551615)",
    "an integer (u128)" u128: "an integer out of its range (0 to 2^128 - 1)",
}

/// What was found instead of `asked`: a text that does not parse.
pub(super) fn text(asked: &str, text: &str) -> &'static str {
    let text = text.trim();
    let is_number = asked.starts_with("a number");
    let integer = integer(asked);
    if text.is_empty() {
        return NOTHING;
    }
    if text.starts_with(['"', '\'']) {
        return QUOTED;
    }
    if !is_number && integer.is_none() {
        return "other text";
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    // Not "inf" and "nan", which parse too.
    let parsed = text.parse::<f64>().ok();
    match (
        parsed.filter(|_| unsigned.contains(char::is_numeric)),
        integer,
    ) {
        (None, _) => "text that is no number",
        (Some(_), None) => "a number out of its range",
        (Some(_), Some(integer)) if unsigned.bytes().all(|byte| byte.is_ascii_digit()) => {
            integer.outside(text.starts_with('-'))
        }
        (Some(number), Some(integer)) => integer.not(number),
    }
}

/// What was found instead of `asked`: an integer. `None` if it is in the range, so that something else is wrong.
pub(super) fn out_of_range(asked: &str, number: Result<i128, u128>) -> Option<&'static str> {
    let integer = integer(asked)?;
    let (below, beyond) = match number {
        Ok(number) => (
            number < integer.min,
            u128::try_from(number).is_ok_and(|number| number > integer.max),
        ),
        Err(beyond) => (false, beyond > integer.max),
    };
    (below || beyond).then(|| integer.outside(below))
}

/// What was found instead of `asked`: a number that may have a fraction. `None` if no integer was asked for.
pub(super) fn no_integer(asked: &str, number: f64) -> Option<&'static str> {
    integer(asked).map(|integer| integer.not(number))
}

impl Integer {
    fn outside(&self, negative: bool) -> &'static str {
        if negative && self.min == 0 {
            NEGATIVE
        } else {
            self.out_of_range
        }
    }

    /// What such a number is.
    fn not(&self, number: f64) -> &'static str {
        /// Decoders hand out as a float what is beyond all integers that they know: 2^64.
        const BEYOND: f64 = 18_446_744_073_709_551_616.0;
        if number.abs() >= BEYOND {
            self.outside(number.is_sign_negative())
        } else if number.fract() == 0.0 {
            NOT_WRITTEN_AS_INTEGER
        } else {
            FRACTION
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_those_of_the_types() {
        for (asked, name, out_of_range) in ALL {
            assert_eq!(*asked, format!("an integer ({name})"));
            let Integer { min, max, .. } = integer(asked).unwrap();
            let shown = if name.ends_with("128") {
                let signed = "-2^127 to 2^127 - 1";
                if min < 0 { signed } else { "0 to 2^128 - 1" }.to_owned()
            } else {
                format!("{min} to {max}")
            };
            assert_eq!(
                *out_of_range,
                format!("an integer out of its range ({shown})")
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_text() {
        let range = "an integer out of its range (0 to 4294967295)";
        for (value, found) in [
            ("", NOTHING),
            (" \n", NOTHING),
            ("abc", "text that is no number"),
            ("5 ms", "text that is no number"),
            ("0x10", "text that is no number"),
            ("1_000", "text that is no number"),
            ("nan", "text that is no number"),
            ("-inf", "text that is no number"),
            ("-", "text that is no number"),
            ("-3", NEGATIVE),
            ("6.5", FRACTION),
            ("-.5", FRACTION),
            ("6.0", NOT_WRITTEN_AS_INTEGER),
            ("1e3", NOT_WRITTEN_AS_INTEGER),
            ("1e999", range),
            ("\"7\"", QUOTED),
            ("'7'", QUOTED),
            ("5000000000", range),
            ("+5000000000", range),
            (&"9".repeat(400), range),
        ] {
            assert_eq!(text("an integer (u32)", value), found, "{value}");
        }
        let range = "an integer out of its range (-128 to 127)";
        assert_eq!(text("an integer (i8)", "-200"), range);
        assert_eq!(text("a number (f64)", "1e999"), "a number out of its range");
        assert_eq!(text("a number (f64)", "nan"), "text that is no number");
        assert_eq!(text("a number (f64)", "\"1\""), QUOTED);
        assert_eq!(text("a boolean (true or false)", "yes"), "other text");
        assert_eq!(text("a boolean (true or false)", "\"true\""), QUOTED);
    }

    #[test]
    fn what_is_wrong_with_a_number() {
        let out = |number| out_of_range("an integer (u8)", Ok(number));
        let range = "an integer out of its range (0 to 255)";
        assert_eq!(out(-1), Some(NEGATIVE));
        assert_eq!(out(256), Some(range));
        // Refused for another reason.
        assert_eq!((out(0), out(255)), (None, None));
        assert_eq!(out_of_range("an integer (u8)", Err(u128::MAX)), Some(range));
        assert_eq!(out_of_range("an integer (u128)", Err(u128::MAX)), None);
        assert_eq!(
            out_of_range("an integer (i8)", Ok(-129)),
            Some("an integer out of its range (-128 to 127)")
        );
        assert_eq!(out_of_range("a string", Ok(1)), None);
        assert_eq!(no_integer("an integer (u8)", 6.5), Some(FRACTION));
        assert_eq!(
            no_integer("an integer (u8)", 6.0),
            Some(NOT_WRITTEN_AS_INTEGER)
        );
        assert_eq!(no_integer("an integer (u8)", 2e19), Some(range));
        assert_eq!(no_integer("an integer (u8)", -2e19), Some(NEGATIVE));
        assert_eq!(no_integer("a string", 6.5), None);
    }
}
