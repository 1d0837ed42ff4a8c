//! `Debug` for errors: the variant's name, then the `Display` text.

/// Implements `Debug` for an error enum, whose variants are listed.
macro_rules! debug_as_display {
    ($error:ident: $($variant:ident)*) => {
        impl std::fmt::Debug for $error {
            /// The variant's name, and the text.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let variant = match self {
                    $(Self::$variant { .. } => stringify!($variant),)*
                };
                write!(f, "{variant}: {self}")
            }
        }
    };
}
